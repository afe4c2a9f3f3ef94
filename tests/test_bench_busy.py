"""`python -m bench busy`: beside whom, on how many threads, and what is shown."""

import sys

import pytest
import torch

from bench import __main__ as command
from bench import cases
from bench.pages import kept, tables
from bench.speed import busy

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(cases.CASES, busy.CASE, cases.of_photographs(cases.Case(busy.CASE, 36, 4, 32, text=4)))
    for name, value in (("NEIGHBOURS", (0, 1)), ("TURNS", 2), ("SAMPLES", 3), ("WARM_UP", 1), ("SIZE", 8)):
        monkeypatch.setattr(busy, name, value)


def test_calls_are_timed_alone_and_beside_a_busy_process(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    threads = torch.get_num_threads()
    assert command.main(["busy", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    assert "1 neighbours, 1 threads  ours-cpu" in capsys.readouterr().out
    waits = kept.read(tmp_path).waits
    found = {(w.neighbours, w.competitor, w.used) for w in waits}
    used = {1, threads}
    assert found == {(n, name, t) for n in (0, 1) for name in busy.COMPETITORS for t in used}
    assert all(w.samples == 6 and w.p50_ms <= w.p90_ms and w.policy == "passive" for w in waits)
    table = tables.busy_table(waits)
    assert table.startswith("| ms: p50 (p90) | threads | `OMP_WAIT_POLICY` | alone | beside 1 |")
    assert "| mi_pruner (cpu) | 1 | passive | " in table
    assert tables.busy_table([]) == tables.NONE


def test_a_neighbour_that_does_not_start_is_an_error(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "false")
    assert command.main(["busy", "--out", str(tmp_path)]) == 2
    assert "busy: 1 neighbours: a busy process did not start" in capsys.readouterr().err


def test_neighbours_end_with_the_measurement():
    with busy.beside(1):
        pass
    with pytest.raises(RuntimeError, match="mine"), busy.beside(1):
        raise RuntimeError("mine")
