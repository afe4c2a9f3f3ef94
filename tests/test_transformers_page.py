"""The blocks of docs/transformers.md: all are Python, and those whose processor can be built here run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("skimage")

from PIL import Image
from skimage import data

from mi_pruner import MIPruner
from mi_pruner.integrations.supported_model import SUPPORTED
from mi_pruner.integrations.transformers import prune_inputs

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


def on_disk(block: str, folder: Path) -> str:
    """The block with the checkpoint of a folder, and a count that is less than its tiny images have."""
    block, changed = re.subn(r'from_pretrained\("[^"]+"', f'from_pretrained("{folder}"', block)
    assert changed == 2
    return re.sub(r"keep=\d+\)", "keep=5)", block)


def run(program: str) -> dict[str, Any]:
    names = {"picture": Image.fromarray(data.coffee())}
    exec(compile(program, str(PAGE), "exec"), names)
    return names


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
    names = run(imports + on_disk(found[section], folder))
    assert names["pruned"]["input_ids"].shape[1] < names["inputs"]["input_ids"].shape[1]
    assert isinstance(names["answer"][0], str)


def blocks_of(section: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_loop_is_generate(tmp_path):
    imports, found = blocks()
    (loop,) = blocks_of("A decoding loop of your own")
    names = run(imports + on_disk(found["LLaVA-1.5"], tiny_checkpoints.save("llava", tmp_path)) + loop)
    generated = names["model"].generate(**names["pruned"], max_new_tokens=32, do_sample=False, suppress_tokens=None)
    answer = generated[0, names["pruned"].input_ids.shape[1] :].tolist()
    assert answer == torch.cat(names["answer"], 1)[0, : len(answer)].tolist()


def test_training_reads_the_question_alone(tmp_path):
    imports, found = blocks()
    (training,) = blocks_of("Training, and likelihoods of answers")
    before = imports + on_disk(found["LLaVA-1.5"], tiny_checkpoints.save("llava", tmp_path))
    kept = [run(before + training.replace("Coffee.", answer)) for answer in ("Coffee.", "A rocket of the woman?")]
    assert all(torch.isfinite(names["loss"]) for names in kept)
    first, second = (names["pruned"].images[0].order.tolist() for names in kept)
    assert first == second
    asked = run(before)["inputs"]
    alone = prune_inputs(kept[0]["model"], asked, MIPruner(keep=0.25), processor=kept[0]["processor"])
    assert alone.images[0].order.tolist() == first


def test_conversation_runs(tmp_path):
    imports, found = blocks()
    folder = tiny_checkpoints.save("llava", tmp_path)
    shared, reused, anew = blocks_of("A conversation")
    before = imports + on_disk(found["LLaVA-1.5"], folder) + shared
    names = run(before + reused)
    words = names["processor"].tokenizer.decode(names["ids"][0])
    assert words == "<end>\n<turn>user\nAnd what colour is it?<end>\n<turn>assistant\n"
    assert names["second"].sequences.shape[1] > names["turn"]["input_ids"].shape[1]
    names = run(before + anew)
    marked = names["processor"].tokenizer.decode(names["inputs"]["input_ids"][names["text_mask"]])
    assert marked == "<turn>user\nAnd what colour is it?<end>\n<turn>assistant\n"
    assert names["pruned"]["input_ids"].shape[1] == names["inputs"]["input_ids"].shape[1] - 27
