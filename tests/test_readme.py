"""The README's examples run as they stand."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    exec(compile("\n".join(blocks), str(README), "exec"), names)
    packed = names["tokens"], names["indices"], names["gains"]
    assert [tuple(x.shape) for x in packed] == [(468, 4096), (468,), (468,)]
    assert (names["indices"] >= 0).all()
    assert torch.isfinite(names["gains"]).all()


def test_every_figure_is_filled_in():
    assert "@@" not in README.read_text(encoding="utf-8")
