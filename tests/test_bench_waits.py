"""`python -m bench waits`: what computing rows beside the steps is worth, and what a wait is."""

import dataclasses

import pytest
import torch

from bench import __main__ as command
from bench import cases, record
from bench.cases import Case
from bench.pages import kept, tables
from bench.speed import guess, waits

CASE = Case("clusters", 8192, 200, 64)


@pytest.fixture(autouse=True)
def _a_short_case(monkeypatch):
    monkeypatch.setattr(waits, "CASES", (CASE,))


def simulated(way):
    given = cases.inputs(CASE)[0]
    return waits.simulated(record.this_run("cpu"), CASE, way, given.visual[0], given.text[0])


def test_before_a_pick_every_product_is_waited_for(monkeypatch):
    """Products are not shorter where fewer picks are left, as on a CPU: no more of them, with all rows kept."""
    monkeypatch.setattr(waits, "ROWS_OF_PICK", 100)
    given = cases.inputs(CASE)[0]
    counted = guess.by_gain(given.visual[0], given.text[0], CASE.keep, waits.BLOCKS[waits.BEFORE])
    found = simulated(waits.BEFORE)
    assert found.waits == found.products <= counted.products
    assert found.us == pytest.approx(199 * waits.STEP + 74 * found.products, rel=1e-3)


def test_products_beside_the_steps_are_waited_for_less():
    before, beside = simulated(waits.BEFORE), simulated(waits.BESIDE)
    assert beside.rows_a_pick * CASE.keep >= 199
    assert beside.products > before.products
    assert beside.waited_us < before.waited_us
    assert beside.us < before.us


def test_candidates_of_each_warp():
    """The best two of 128 neighbours each, in the order of their gains; of a token without a gain none."""
    gains = torch.arange(1024.0)
    gains[1000:] = -torch.inf
    assert waits.candidates(waits.BESIDE, gains, 5) == [999, 998, 895, 894, 767]
    assert waits.candidates(waits.BEFORE, gains, 3) == [999, 998, 997]
    assert len(waits.candidates(waits.BESIDE, gains, 64)) == 16


def test_the_command_keeps_both_ways(tmp_path, capsys):
    assert command.main(["waits", "--out", str(tmp_path)]) == 0
    assert "beside the steps" in capsys.readouterr().out
    found = kept.read(tmp_path).row_waits
    assert [(w.case, w.way) for w in found] == [(CASE.name, way) for way in waits.BLOCKS]
    table = tables.row_waits_table([dataclasses.replace(found[0], date="before", case="old"), *found])
    assert "clusters" in table
    assert "old" not in table
    assert tables.row_waits_table([]) == tables.NONE
