"""`histogram_mi_scores` on every backend that has it: against the oracle, and what must not change a bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from . import inputs, oracle

SHAPES = ((1, 1, 1, 1), (2, 5, 3, 7), (1, 6, 5, 123), (2, 18, 5, 64), (1, 6, 5, 1030))  # B, N, M, D
SIZES = ((9, 5, 40), (5, 17, 100))  # N, M, D
DTYPES = inputs.DTYPES
if inputs.INTERPRETED:  # as many ways through the kernels, in seconds
    SHAPES, SIZES, DTYPES = SHAPES[:3], SIZES[:1], (torch.float32,)
BINS = (2, 7, 16, 33, 64)
STRIDES = {
    "every-second-row": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "inside-wider-rows": lambda x: torch.nn.functional.pad(x, (3, 2), value=math.nan)[..., 3:-2],
    "last-dimension-outside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded-batch": lambda x: x[:1].expand_as(x),
}


@pytest.fixture(autouse=True)
def _on_backends_that_have_it(request):
    if "backend" in request.fixturenames:
        name = request.getfixturevalue("backend")
        if "histogram_mi_scores" in BACKENDS[name].lacks:
            pytest.skip(f"backend {name!r} has no histogram_mi_scores")


def batch_of(shape, dtype=torch.float32, prior=None, kind="clustered"):
    b, n, m, d = shape
    return inputs.batch([inputs.make_sample(kind, n, m, d, dtype, i, prior, prior) for i in range(b)])


def scores_of(s, bins=16):
    return mi_pruner.histogram_mi_scores(s.visual, s.text, **s.priors(), bins=bins)


def check(s, device, bins=16):
    """Against the oracle, up to the rounding of a few entropies of at most 2 log bins."""
    scores = scores_of(s.to(device), bins)
    assert scores.dtype == (torch.float64 if s.visual.dtype == torch.float64 else torch.float32)
    valid = {"visual": inputs.finite_rows(s.visual), "text": inputs.finite_rows(s.text)}
    allowed = 16 * inputs.epsilon(s.visual.dtype) * (1 + math.log(bins))
    for b in range(len(scores)):
        arrays = {
            name: (torch.ones(rows.shape[:1]) if prior is None else prior[b]).where(rows, 0).double().numpy()
            for name, prior, rows in (
                ("visual_prior", s.visual_prior, valid["visual"][b]),
                ("text_prior", s.text_prior, valid["text"][b]),
            )
        }
        expected = oracle.histogram_scores(
            s.visual[b].double().numpy(), s.text[b].double().numpy(), **arrays, bins=bins
        )
        assert np.abs(scores[b].double().cpu().numpy() - expected).max() <= allowed


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_are_those_of_the_oracle(shape, dtype, device):
    cases = list(zip(BINS, (None, "float", "odd", "bool", None), strict=True))
    if inputs.SLOW and shape[0] * shape[1] > 1:  # each of them with one dtype or two
        cases = cases[inputs.DTYPES.index(dtype) :: 3]
    for bins, prior in cases:
        check(batch_of(shape, dtype, prior), device, bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_not_finite_or_of_extreme_norm(dtype, device):
    s = batch_of((2, 21, 9, 22), dtype, "float")
    s.visual, s.text = inputs.odd_rows(s.visual, 1), inputs.odd_rows(s.text, 2)
    check(s, device)


@given(s=inputs.samples(max_n=8), bins=st.integers(2, 64))
def test_any_sample_scores_as_the_oracle_says(device, s, bins):
    check(inputs.batch([s]), device, bins)


def test_a_vector_says_all_about_itself(device):
    """The integers 0 to 31 fill 16 bins evenly: log 16 nats about themselves, in any order; one bin of two: log 2."""
    ramp = torch.arange(32.0, device=device)
    visual = torch.stack([ramp, ramp.flip(0), (ramp > 15).float(), ramp % 2])[None]
    scores = mi_pruner.histogram_mi_scores(visual, ramp[None, None])
    expected = [math.log(16), math.log(16), math.log(2), 0.0]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_independent_vectors_of_few_coordinates_look_informative(device):
    """The bias that the documentation states: about 1 nat at D = 64."""
    s = batch_of((1, 40, 4, 64), kind="separated")
    text = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(77))
    assert mi_pruner.histogram_mi_scores(s.visual.to(device), text.to(device)).mean().item() == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bins", BINS)
def test_constant_vectors_score_exactly_zero(bins, dtype, device):
    s = batch_of((1, 7, 3, 41), dtype)
    s.visual[:, 2], s.visual[:, 4] = 3.0, 0.0
    scores = scores_of(s.to(device), bins)[0]
    assert (scores[[2, 4]] == 0).all()
    assert (scores[[0, 1, 3, 5, 6]] > 0).all()
    s.text[:] = s.text[..., :1]
    assert (scores_of(s.to(device), bins) == 0).all()


def test_a_range_that_float32_cannot_scale_counts_as_constant(device):
    steps = torch.arange(8.0, device=device)[None, None]
    assert (mi_pruner.histogram_mi_scores(steps * 2.0**-140, steps) == 0).all()
    if torch.float64 in inputs.DTYPES:
        assert (mi_pruner.histogram_mi_scores(steps.double() * 1e60, steps.double()) == 0).all()


def test_samples_without_a_valid_token_score_zero(device):
    s = batch_of((3, 8, 4, 6)).to(device)
    s.visual[0], s.text[1] = math.nan, math.nan
    scores = scores_of(s)
    assert (scores[:2] == 0).all()
    assert (scores[2] > 0).all()
    assert (mi_pruner.histogram_mi_scores(s.visual, s.text, text_prior=torch.zeros(3, 4, device=device)) == 0).all()
    assert (mi_pruner.histogram_mi_scores(s.visual[..., :0], s.text[..., :0]) == 0).all()


# ---- bits ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_sample_gives_the_same_bits_alone_in_a_batch_and_with_any_threads(size, dtype, backend, device):
    many = [inputs.make_sample("clustered", *size, dtype, seed, "float", "float").to(device) for seed in range(3)]
    alone = [scores_of(inputs.batch([s])) for s in many]
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3) if backend == "cpu" else (threads,):
            torch.set_num_threads(count)
            together = scores_of(inputs.batch(many[::-1]))
            assert all(inputs.same_bits(together[2 - i : 3 - i], one) for i, one in enumerate(alone))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_rows_get_equal_bits_wherever_they_stand_and_whatever_their_prior(dtype, device):
    s = batch_of((1, 33, 7, 67), dtype).to(device)
    s.visual[:, [16, 32]] = s.visual[:, :1].clone()
    s.visual_prior = torch.rand(1, 33, device=device) + 0.1
    scores = scores_of(s)[0]
    assert inputs.same_bits(scores[16], scores[0])
    assert inputs.same_bits(scores[32], scores[0])
    assert inputs.same_bits(scores, scores_of(inputs.Sample(s.visual, s.text))[0])  # the prior only masks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_under_a_zero_prior_may_hold_anything_and_changes_nothing_else(dtype, device):
    s = batch_of((2, 12, 6, 20), dtype, "float").to(device)
    scores = scores_of(s)
    s.visual[s.visual_prior == 0] = math.nan
    s.text[s.text_prior == 0] = math.inf
    assert inputs.same_bits(scores_of(s), scores)
    assert (scores[s.visual_prior == 0] == 0).all()


@pytest.mark.parametrize("stride", STRIDES)
def test_strides_do_not_change_a_bit(stride, device):
    s = batch_of((3, 9, 5, 24), torch.bfloat16 if not inputs.INTERPRETED else torch.float16).to(device)
    visual, text = STRIDES[stride](s.visual), STRIDES[stride](s.text)
    strided = mi_pruner.histogram_mi_scores(visual, text)
    assert inputs.same_bits(strided, mi_pruner.histogram_mi_scores(visual.contiguous(), text.contiguous()))


def test_outputs_are_fully_written_and_inputs_not_modified(device):
    s = batch_of((2, 21, 9, 22), torch.float32, "odd").to(device)
    s.visual = inputs.odd_rows(s.visual, 1)
    before = [x.clone() for x in (s.visual, s.text, s.visual_prior, s.text_prior)]
    plain = scores_of(s)
    torch.use_deterministic_algorithms(True)
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert inputs.same_bits(scores_of(s), plain)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not plain.isnan().any()
    for x, old in zip((s.visual, s.text, s.visual_prior, s.text_prior), before, strict=True):
        assert inputs.same_bits(x, old)


# ---- compile, export -------------------------------------------------------------------------------------------------
def test_compile_and_export_serve_every_size():
    class Scores(torch.nn.Module):
        def forward(self, visual, text):
            return mi_pruner.histogram_mi_scores(visual, text, bins=8)

    def features(b, n, m):
        s = batch_of((b, n, m, 24))
        return s.visual, s.text

    torch.compiler.reset()
    scores = Scores()
    compiled = torch.compile(scores, fullgraph=True, dynamic=True, backend="eager")
    compiled(*features(2, 31, 5))
    sizes = [torch.export.Dim.AUTO] * 3
    shapes = {"visual": dict(enumerate(sizes[:2])), "text": {0: sizes[0], 1: sizes[2]}}
    exported = torch.export.export(scores, features(3, 31, 8), dynamic_shapes=shapes).module()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((2, 31, 5), (3, 48, 7), (5, 17, 2)):
            for call in (compiled, exported):
                assert inputs.same_bits(call(*features(*size)), scores(*features(*size)))
