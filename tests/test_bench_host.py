"""`python -m bench host`: which calls, in which unit, and what is shown."""

from __future__ import annotations

import pytest
import torch

from bench import __main__ as command
from bench.measure import cuda
from bench.pages import host as page
from bench.pages import kept
from bench.pages.markdown import NONE
from bench.speed import host
from mi_pruner import _dispatch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def times(tmp_path_factory):
    folder, threads = tmp_path_factory.mktemp("host"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "TURNS", 4)
        assert command.main(["host", "--out", str(folder)]) == 0
    assert torch.get_num_threads() == threads
    return kept.read(folder).host_times


def test_every_call_is_timed_in_times_of_the_unit(times):
    assert times[0].call == host.UNIT
    assert times[0].ratio == 1
    assert all(t.turns == 4 and 0 < t.p20_us <= t.p50_us <= t.p80_us and t.threads == 1 for t in times)


def test_only_the_call_beside_another_backend_goes_through_python(monkeypatch):
    chosen, choose = [], _dispatch.choose
    calls = host.calls("cpu")
    calls[host.UNIT]()
    monkeypatch.setattr(_dispatch, "choose", lambda *a: chosen.append(a) or choose(*a))
    monkeypatch.setattr(host, "TURNS", 1)
    found = host.measure({name: calls[name] for name in (host.UNIT, "mi_pruner.prune", host.THROUGH_PYTHON)}, "cpu")
    assert list(found) == [host.UNIT, "mi_pruner.prune", host.THROUGH_PYTHON]
    assert len(chosen) == host.WARM_UP + cuda.HOST_CALLS
    assert all(torch.equal(a, b) for a, b in zip(calls["mi_pruner.prune"](), calls[host.THROUGH_PYTHON](), strict=True))


def test_the_table_shows_the_last_run_of_a_device(times):
    text = page.block(times, "cpu")
    assert text.startswith("| call | p20 – p50 – p80, us | times the `layer_norm` of its turn, median |")
    assert all(f"| `{t.call}` |" in text for t in times)
    assert "by `python -m " in text
    assert page.block(times, "cuda") == NONE
