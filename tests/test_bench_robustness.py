"""The robustness table: ours passes everything; and the table sees what it is made to see."""

import pytest
import torch

from bench import __main__ as command
from bench import competitors, record, robustness
from bench.competitors import COMPETITORS
from bench.robustness import KEEP, KEEP_OF_HALVES, NaNWatch, Verdict, judge

OURS = [n for n, c in COMPETITORS.items() if c.family == competitors.OURS and competitors.why_not(n, "cpu") is None]


@pytest.mark.parametrize("name", OURS)
def test_ours_passes_everything(name):
    right = {"identical": KEEP, "forty": KEEP, "halves": KEEP_OF_HALVES, "batch": "yes", "padding": "yes"}
    assert judge(COMPETITORS[name]) == {**right, "nan_free": "yes"}


def test_defects_are_seen():
    """By method, not by count: which of equal tokens a rival repeats depends on the rounding of the machine."""
    assert judge(COMPETITORS["cdpruner"])["batch"] == "no", "its relevance is normalised over the batch"
    dart = judge(COMPETITORS["dart"])
    assert (dart["identical"], dart["padding"]) == (KEEP + 4, "no mask"), "its pivots come on top"


def test_nan_watch():
    with NaNWatch() as watch:
        torch.zeros(2) + 1
        assert not watch.seen
        torch.zeros(2) / 0
    assert watch.seen


def test_the_command_keeps_the_table(tmp_path, monkeypatch, capsys):
    names = ("ours-cpu", "plain-compiled", "cosine")
    monkeypatch.setattr(robustness, "COMPETITORS", {name: COMPETITORS[name] for name in names})
    assert command.main(["robustness", "--out", str(tmp_path)]) == 0
    kept = record.read(tmp_path / robustness.FILE, Verdict)
    if not torch.cuda.is_available():
        assert [v.competitor for v in kept] == ["ours-cpu", "cosine"]
        assert [v.padding for v in kept] == ["yes", "no mask"]
    assert "identical" in capsys.readouterr().out
