"""`python -m bench repeats`: the videos are what they are called, and what is kept of a threshold."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cosine_similarity

from bench import __main__ as command
from bench import record, repeats
from bench.pages import kept, tables
from bench.pages import repeats as page


@pytest.fixture(autouse=True)
def _short_videos(monkeypatch):
    monkeypatch.setattr(repeats, "SHOWN", 4)
    monkeypatch.setattr(repeats, "SINCE", 2)
    monkeypatch.setattr(repeats, "SAMPLES", 1)


def tried(name, threshold):
    """The trial with the larger budget."""
    found = repeats.trials(record.this_run("cpu"), name, [repeats.VIDEOS[name](0)])
    return max((t for t in found if t.repeat_cosine == threshold), key=lambda t: t.keep)


@pytest.mark.parametrize("cosine", [1, 0.998, 0.97])
def test_noise_leaves_the_cosine_that_it_is_named_by(cosine):
    visual = repeats._still(0, cosine).visual
    assert cosine_similarity(visual[2], visual[3], dim=-1).mean() == pytest.approx(cosine, abs=0.003)


def test_the_projected_tokens_are_the_videos():
    film = repeats._film()
    assert torch.equal(repeats._moving(1, 2, 1).encoded, film[1, [0, 2, 4, 6]])
    assert torch.equal(repeats._cutting(3, 1).encoded, film[[3, 0, 1, 2], 3])
    assert torch.equal(repeats._cutting(1, 2).encoded, film[[1, 1, 2, 2], [1, 2, 1, 2]])
    video = repeats._changing(0)
    differ = (video.encoded[1:] != video.encoded[:-1]).any(-1)
    assert torch.equal(differ, video.changed[1:])
    assert video.changed.sum() == repeats.CHANGED**2


def test_turns_of_a_film_are_far_apart(monkeypatch):
    monkeypatch.setattr(repeats, "SHOWN", 16)
    film, encoded = repeats._film(), repeats._cutting(0, 1).encoded
    assert torch.equal(encoded[::4], film[0, ::8])


def test_a_still_video_is_kept_place_by_place():
    without, found = tried("still, noise 0.998", None), tried("still, noise 0.998", 0.9)
    assert (without.new, found.new) == (1, 0)
    assert without.same_picks == without.score == 1
    assert without.places < found.places == found.keep == 256
    assert without.coverage < found.coverage
    assert found.score < 1


def test_cuts_are_new_also_where_tokens_have_much_in_common():
    apart, common = tried(repeats.CUTS, 0.9), tried(f"{repeats.CUTS}, much in common", 0.9)
    assert apart.same_picks > 0.95
    assert min(common.new, apart.new) > 0.9
    assert common.cosine_50 > apart.cosine_50 + 0.3
    assert common.encoded_99 == apart.encoded_99


def test_a_change_is_found():
    found = tried("still but for a region", 0.95)
    assert found.found == 1
    assert found.new == pytest.approx(16 / (3 * 256), rel=1e-3)
    assert tried("still but for a region, noise 0.97, much in common", 0.9).found == 1


def test_the_command_keeps_what_it_tries(tmp_path, capsys, monkeypatch):
    names = (repeats.CUTS, "synthetic, still")
    monkeypatch.setattr(repeats, "VIDEOS", {name: repeats.VIDEOS[name] for name in names})
    assert command.main(["repeats", "--out", str(tmp_path)]) == 0
    assert "coverage" in capsys.readouterr().out
    found = kept.read(tmp_path).repeats
    assert {(t.video, t.repeat_cosine) for t in found} == {(n, c) for n in names for c in repeats.THRESHOLDS}
    assert sorted({t.keep for t in found}) == [49, 64, 196, 256]
    assert {t.encoded_99 is None for t in found if t.video == names[1]} == {True}
    table = page.block([dataclasses.replace(found[0], date="before", video="old"), *found])
    assert "| synthetic, still | 1.000 – 1.000 |" in table
    assert "before the projector" in table
    assert "old" not in table
    assert page.block([]) == tables.NONE
