"""Features of photographs: what the benchmarks take is what a vision transformer gives, and no noise."""

import dataclasses
import importlib.metadata

import pytest
import torch
from torch.nn.functional import normalize

from bench import __main__ as command
from bench import cases, competitors, record
from bench.photographs import features, make

SMALL = cases.Case("small", 600, 60, 64, text=6, features="photograph")
PICTURES = len(make.PHOTOGRAPHS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_seeded(dtype):
    case = dataclasses.replace(SMALL, batch=PICTURES + 1, dtype=dtype)
    given = cases.inputs(case)[0]
    assert [tuple(x.shape) for x in given] == [(5, 600, 64), (5, 6, 64), (5, 600)]
    assert (given.visual.dtype, given.text.dtype, given.saliency.dtype) == (dtype, dtype, torch.float32)
    assert all(x.isfinite().all() for x in given)
    assert all(map(torch.equal, given, cases.inputs(case)[0]))
    assert not torch.equal(given.visual, cases.inputs(case, seed=1)[0].visual)


def test_samples_take_the_photographs_in_turn_and_then_other_views():
    first, again = (features.features("photograph", 600, number) for number in (0, PICTURES))
    assert torch.equal(first[features.VIEW : 2 * features.VIEW], again[: features.VIEW])
    starts = [features.cut("photograph", 600, number) for number in range(15 * PICTURES + 1)]
    assert [picture for picture, _ in starts[:5]] == [0, 1, 2, 3, 0]
    assert starts[14 * PICTURES] == (0, slice(14, 17))
    assert starts[15 * PICTURES] == (0, slice(0, 3))
    assert features.cut("film", 10000, 2) == (0, slice(2, 42))


def test_packed_samples_are_of_different_photographs():
    case = dataclasses.replace(SMALL, tokens=900, keep=90, batch=2, sizes=(300, 600))
    one, other = cases.inputs(case)
    assert (tuple(one.visual.shape), tuple(other.visual.shape)) == ((1, 300, 64), (1, 600, 64))
    assert not torch.equal(one.visual, other.visual[:, :300])
    assert len(competitors.calls(case, ["ours-cpu"])["ours-cpu"]()[1]) == 90


def test_every_case_has_its_tokens():
    found = [cases.CASES[case.name] for case in cases.SETS["photographs"]]
    assert {case.features for case in found} == {"photograph", "film"}
    for case in found:
        assert features.features(case.features, case.tokens).shape == (case.tokens, features.WIDTH)
        assert case == cases.of_photographs(case)
    assert features.kept("photograph").coefficients[0, 0].numel() == features.PHOTOGRAPH


@pytest.mark.parametrize(("source", "most"), [("photograph", 4352), ("film", 32768)])
def test_more_tokens_than_there_are(source, most):
    assert len(features.features(source, most)) == most
    with pytest.raises(ValueError, match=rf"tokens: expected 1 to {most:,} of a {source}, got {most + 1:,}; a film"):
        features.features(source, most + 1)


@pytest.mark.parametrize("number", range(PICTURES))
def test_nine_tenths_of_the_energy_lie_in_few_dimensions(number):
    """Of noise in the place of features they lie in over 200 of the 384."""
    own = features.features("photograph", 576, number)
    project = features.projector(1024, torch.Generator().manual_seed(0), "cpu")
    for tokens, most in ((own, 6), (project(own), 12)):
        energy = torch.linalg.svdvals(tokens - tokens.mean(0)).square()
        dimensions = int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1
        assert 2 <= dimensions <= most


def test_every_other_text_token_is_near_a_patch():
    given = cases.inputs(dataclasses.replace(SMALL, width=512, text=32))[0]
    nearest = (normalize(given.text[0], dim=1) @ normalize(given.visual[0], dim=1).T).amax(1)
    assert nearest[::2].min() > 0.9
    assert nearest[1::2].max() < 0.3


def test_views_are_tiles_and_frames():
    pytest.importorskip("skimage")
    picture = make._photograph("rocket.jpg")
    tiles, shot = list(make._tiles(picture)), list(make._shot(picture))
    assert (len(tiles) * features.VIEW, len(shot)) == (features.PHOTOGRAPH, make.FRAMES)
    assert {view.size for view in (*tiles, *shot)} == {(make.SIDE, make.SIDE)}
    whole = picture.resize((4 * make.SIDE, 4 * make.SIDE))
    assert tiles[1].getpixel((100, 100)) == whole.getpixel((make.SIDE + 100, 100)), "row by row"


def test_what_is_made_is_kept(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        make, "_encoder", lambda: lambda view: 2 * torch.randn(make.VIEW, make.WIDTH, generator=generator)
    )
    monkeypatch.setattr(make, "PACKAGES", ("torch",))
    monkeypatch.setattr(make, "PHOTOGRAPHS", make.PHOTOGRAPHS[:1])
    monkeypatch.setattr(make, "COMPARED", (("photograph", 300, 30, 2),))
    monkeypatch.setattr(make, "PROJECTED", 64)
    for module in (make, features):
        monkeypatch.setattr(module, "FILE", tmp_path / "features.npz")
    features.kept.cache_clear()
    try:
        assert command.main(["photographs", "--out", str(tmp_path)]) == 0
        assert features.features("film", make.FRAMES * features.VIEW).std() == pytest.approx(2, rel=0.05)
    finally:
        features.kept.cache_clear()
    (found,) = record.read(tmp_path / make.RECORDS, make.Fidelity)
    assert (found.source, found.tokens, found.keep, found.samples) == ("photograph", 300, 30, 2)
    assert found.packages == f"torch {importlib.metadata.version('torch')}"
    assert 0.05 < found.error < 0.1, "a step of 0.5 beside a deviation of 2"
    assert found.same_picks > 0.5
    assert "photograph, 300 -> 30: error " in capsys.readouterr().out


def test_what_can_not_be_made_or_kept_is_told_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "PACKAGES", ("no-such-package",))
    assert command.main(["photographs", "--out", str(tmp_path)]) == 2
    assert "photographs: No package metadata was found for no-such-package; pip install " in capsys.readouterr().err
    (tmp_path / make.RECORDS).write_text("a,b\n")
    monkeypatch.setattr(make, "PACKAGES", ())
    assert command.main(["photographs", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("got a, b\n")
