"""The blocks of docs/transformers.md: all are Python, and those whose processor can be built here run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("skimage")

from PIL import Image
from skimage import data

from mi_pruner.integrations.transformers import SUPPORTED

from . import tiny_checkpoints

PAGE = Path(__file__).parents[1] / "docs" / "transformers.md"
SECTIONS = {
    "LLaVA-1.5": "llava",
    "LLaVA-NeXT": "llava_next",
    "LLaVA-OneVision": "llava_onevision",
    "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3-VL": "qwen3_vl",
    "InternVL": "internvl",
    "Gemma 3": "gemma3",
    "SmolVLM": "smolvlm",
    "Idefics3": "idefics3",
}


def blocks() -> tuple[str, dict[str, str]]:
    """The imports, and the block of each family."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"\n### (.+?)\n.*?```python\n(.*?)```", text, flags=re.DOTALL)
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], dict(found)


def test_every_family_has_a_block():
    imports, found = blocks()
    assert list(found) == list(SECTIONS)
    assert set(SECTIONS.values()) == set(SUPPORTED)
    for name, block in found.items():
        compile(imports + block, name, "exec")


@pytest.mark.parametrize("section", [name for name, f in SECTIONS.items() if f in tiny_checkpoints.WITH_PROCESSOR])
def test_block_runs(section, tmp_path):
    imports, found = blocks()
    folder = tiny_checkpoints.save(SECTIONS[section], tmp_path)
    block, changed = re.subn(r'from_pretrained\("[^"]+"', f'from_pretrained("{folder}"', found[section])
    assert changed == 2
    names = {"picture": Image.fromarray(data.coffee())}
    exec(compile(imports + block, section, "exec"), names)
    lengths = [names[inputs]["input_ids"].shape[1] for inputs in ("pruned", "inputs")]
    assert lengths[0] < lengths[1] if "keep=0.25" in block else lengths[0] == lengths[1]  # tiny images: below the count
    assert isinstance(names["answer"][0], str)
