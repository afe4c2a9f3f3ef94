"""`python -m bench guess`: rows counted in the CPU backend's sources, and what its draft is worth where it is hard."""

import dataclasses

import pytest
import torch

from bench import __main__ as command
from bench import cases, record
from bench.cases import Case
from bench.pages import kept, tables
from bench.speed import guess

pytestmark = pytest.mark.slow

PHOTOGRAPH = cases.of_photographs(Case("photograph", 576, 64, 1024))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guess.instructions, "BUILD", tmp_path_factory.mktemp("drivers"))
        yield guess.build()


def features(case):
    given = cases.inputs(case)[0]
    return given.visual[0], given.text[0]


def test_a_draft_guesses_most_picks_of_photographs(driver):
    visual, text = features(PHOTOGRAPH)
    drafted = guess.by_draft(driver, visual, text, 64)
    assert 63 <= drafted.rows <= 1.8 * 64
    assert drafted.rows <= guess.by_gain(visual, text, 64, 20).rows / 2
    assert drafted.products <= 10


@pytest.mark.parametrize("redundancy", ["mean", "chain", "max"])
@pytest.mark.parametrize("with_prior", [False, True], ids=["uniform", "prior"])
@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_in_all_modes(driver, redundancy, with_prior, weight):
    visual, text = features(PHOTOGRAPH)
    prior = torch.rand(576, generator=torch.Generator().manual_seed(0)) + 0.1 if with_prior else None
    work = guess.by_draft(driver, visual, text, 64, prior, redundancy, weight)
    assert 63 <= work.rows <= 2.5 * 64


@pytest.mark.parametrize("massive", [1, 3, 8])
def test_a_few_massive_coordinates_do_not_spoil_it(driver, massive):
    """A known trait of vision transformers: some coordinates are a hundred times the others, in all tokens alike."""
    visual, text = features(PHOTOGRAPH)
    where = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:massive]
    visual, text = visual.clone(), text.clone()
    visual[:, where] += 20 * visual.std()
    text[:, where] += 20 * visual.std()
    assert guess.by_draft(driver, visual, text, 64).rows <= 1.7 * 64


def test_tokens_of_few_values_need_their_rows_only(driver):
    assert guess.by_draft(driver, *features(Case("40-rows", 576, 64, 512, features="40-rows")), 64).rows <= 70


@pytest.mark.parametrize("width", [1, 7, 8, 100, 511])
def test_odd_widths(driver, width):
    generator = torch.Generator().manual_seed(0)
    visual, text = torch.randn(50, width, generator=generator), torch.randn(3, width, generator=generator)
    assert 9 <= guess.by_draft(driver, visual, text, 10).rows <= 50


def test_a_pick_is_drafted_only_where_more_follow(driver):
    visual, text = features(Case("synthetic", 50, 3, 64))
    assert guess.by_draft(driver, visual, text, 1) == guess.Work(0, 0, 0)
    assert guess.by_draft(driver, visual, text, 2) == guess.Work(1, 1, 0), (
        "the last pick needs no row, the first no guess"
    )


def test_rows_by_gain_are_those_of_a_selection_that_knows_them():
    """A row at a time nothing is guessed, and no row is computed twice, whatever the block."""
    visual, text = features(Case("synthetic", 60, 20, 64))
    assert guess.by_gain(visual, text, 20, 1) == guess.Work(19, 19, 0)
    assert guess.by_gain(visual, text, 2, 20) == guess.Work(1, 1, 0)
    for block in (2, 7, 60):
        assert guess.by_gain(visual, text, 60, block).rows <= 60


def test_the_command_keeps_what_it_counts(driver, tmp_path, monkeypatch, capsys):
    case = cases.of_photographs(Case("photographs, 64 → 8", 64, 8, 64, batch=2))
    rank = Case("rank-2", 64, 8, 64, features="rank-2")
    monkeypatch.setattr(guess, "CASES", (case, rank))
    assert command.main(["guess", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "photographs, 64 → 8" in said
    assert "drafted" in said
    found = kept.read(tmp_path).guesses
    assert [(g.case, g.guess, g.block) for g in found] == [
        (c.name, *way) for c in (case, rank) for way in (*((guess.GAIN, b) for b in guess.BLOCKS), (guess.DRAFT, 64))
    ]
    assert all(g.rows_a_pick >= 7 / 8 and g.samples == (2 if g.case == case.name else 1) for g in found)
    table = tables.guess_table([dataclasses.replace(found[0], date="before", case="old"), *found])
    assert "old" not in table
    assert "| rows a pick (in so many products) | largest gain, blocks of 20 | " in table
    assert tables.guess_table([]) == tables.NONE


def test_without_a_compiler_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guess.instructions.shutil, "which", lambda *args, **kwargs: None)
    assert command.main(["guess", "--out", str(tmp_path)]) == 2
    assert "guess: expected cmake on PATH, found none: pip install cmake" in capsys.readouterr().err
    assert record.read_if_there(tmp_path / guess.FILE, guess.Guess) == []
