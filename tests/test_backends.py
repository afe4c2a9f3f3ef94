"""Every backend against the float64 reference: dtypes, odd shapes, strides, priors, modes, rows that are not finite.

The yardstick is rounding: a backend may err twice as much as the reference does in the backend's own precision.
"""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch

import mi_pruner

from . import inputs, oracle

SHAPES = (  # B, N, M, D
    (1, 1, 1, 1),
    (2, 5, 3, 7),
    (1, 123, 5, 123),
    (3, 33, 17, 64),
    (2, 577, 9, 100),
    (1, 1000, 32, 257),
    (4, 16, 16, 16),
    (1, 65, 1, 31),
)
PRIORS = (None, "float", "bool", "odd")
# For the rounding of scores: all but the reference, whose own error is the yardstick.
measured = pytest.mark.parametrize("backend", [x for x in inputs.UNDER_TEST if x != "reference"], indirect=True)
STRIDES = {
    "batch-inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every-second-row": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "inside-wider-rows": lambda x: torch.nn.functional.pad(x, (3, 2), value=math.nan)[..., 3:-2],
    "last-dimension-outside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded-batch": lambda x: x[:1].expand_as(x),
    "one-row-for-all": lambda x: x[:, :1].expand_as(x),
    "storage-offset": lambda x: torch.cat([torch.zeros_like(x[:1]), x])[1:],
}


def batch_of(shape, dtype, prior=None, kind="clustered", seed=0) -> inputs.Sample:
    b, n, m, d = shape
    return inputs.batch([inputs.make_sample(kind, n, m, d, dtype, seed + i, prior, prior) for i in range(b)])


def exact_input(s: inputs.Sample) -> inputs.Sample:
    """The same sample in float64, where rows that overflow the accumulation dtype have lost their prior instead."""

    def masked(rows, prior):
        prior = torch.ones(rows.shape[:-1], dtype=torch.float64) if prior is None else prior.double()
        return prior.where(inputs.finite_rows(rows), 0.0)

    return inputs.Sample(
        s.visual.double(), s.text.double(), masked(s.visual, s.visual_prior), masked(s.text, s.text_prior)
    )


def scores_by(name, s, **options):
    with mi_pruner.backend(name) if name else contextlib.nullcontext():
        return mi_pruner.mi_scores(s.visual, s.text, **s.priors(), **options).cpu()


def allowed_error(s, exact, plain, bandwidth):
    """Twice the reference's error and a floor: a few units in the last place of a probability, and of a cosine / h²."""
    if exact is plain:  # float64 features: no reference is more exact, so rounding alone is the measure
        return inputs.rounding(torch.float64, 1e-4 if bandwidth is None else bandwidth**2, s.n)
    conditioning = 4 + min(0.25 / (0.1 if bandwidth is None else bandwidth**2), 8)
    largest = min(1, 8 / s.n) + exact.abs().max().item()  # scores are of the size of a token's share
    return 2 * (plain - exact).abs().max().item() + inputs.epsilon(s.visual.dtype) * conditioning * largest


def check_scores(s, device, **options):
    """The scores of the backend in use against float64, beside the reference's in the precision of the features."""
    a = scores_by(None, s.to(device), **options)
    exact = scores_by("reference", exact_input(s), **options)
    assert a.dtype == (torch.float64 if s.visual.dtype == torch.float64 else torch.float32)
    assert a.isfinite().all()
    plain = exact if a.dtype == torch.float64 else scores_by("reference", s, **options)
    error, allowed = (a - exact).abs().max().item(), allowed_error(s, exact, plain, options.get("bandwidth"))
    assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"


def judge_of(s: inputs.Sample, scores, keep, options):
    """A function that judges indices and gains (B, K) in float64: their largest regret and error."""
    exact = exact_input(s)
    prior, visual, scores = exact.visual_prior.numpy(), exact.visual.numpy(), scores.double().numpy()
    bandwidth = options.get("visual_bandwidth", 0.63)
    tables = [oracle.redundancy_table(v, p, bandwidth) for v, p in zip(visual, prior, strict=True)]
    mode = options.get("redundancy", "mean"), options.get("redundancy_weight", 1.0)

    def judge(indices, gains):
        regret = error = 0.0
        for b, table in enumerate(tables):
            valid = oracle.is_valid(visual[b], prior[b])
            picks = indices[b].cpu().numpy(), gains[b].double().cpu().numpy()
            one = oracle.replay(*picks, scores[b], table, oracle.normalise(prior[b], valid), valid, *mode)
            assert one.picks == min(keep, valid.sum())
            regret, error = max(regret, one.regret), max(error, one.error)
        return regret, error

    return judge


def check_selection(s, device, keep, **options):
    """The picks of the backend in use, each judged in float64; their errors beside those of the reference."""
    scores = scores_by("reference", s)
    judge = judge_of(s, scores, keep, options)

    def select(s, scores):
        return mi_pruner.greedy_select(scores, s.visual, keep, visual_prior=s.visual_prior, **options)

    regret, error = judge(*select(s.to(device), scores.to(device)))
    with mi_pruner.backend("reference"):
        _, plain = judge(*select(s, scores))
    magnitude = max(scores.abs().max().item(), options.get("redundancy_weight", 1.0))
    # As for scores: rounding a cosine once moves a gain by up to about half a unit / h².
    conditioning = 1 + min(0.25 / options.get("visual_bandwidth", 0.63) ** 2, 8)
    allowed = 2 * plain + 4 * inputs.epsilon(s.visual.dtype) * conditioning * magnitude + 1e-14
    assert error <= allowed, f"gains: error {error:.2e}, allowed {allowed:.2e}"
    assert regret <= 2 * allowed, f"picks: regret {regret:.2e}, allowed {2 * allowed:.2e}"


# ---- dtypes, shapes, priors, modes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@measured
def test_scores_err_no_more_than_rounding(shape, dtype, device):
    modes = itertools.product(inputs.MARGINALS, (None, 0.2, 1.0), PRIORS)
    every = max(1, shape[1] * shape[3] // 10_000)  # fewer combinations for the large shapes
    for marginal, bandwidth, prior in itertools.islice(modes, None, None, every):
        check_scores(batch_of(shape, dtype, prior), device, marginal=marginal, bandwidth=bandwidth)


@pytest.mark.parametrize("bandwidth", [1e-3, 0.02, 1e3])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@measured
def test_scores_err_no_more_than_rounding_at_extreme_bandwidths(dtype, bandwidth, device):
    check_scores(batch_of((2, 40, 6, 48), dtype, "float", "separated"), device, bandwidth=bandwidth)


def of_selection():
    """Every shape, dtype and mode; where a call takes long, of the largest shapes a mode with each dtype."""
    for shape, (k, dtype), (j, redundancy) in itertools.product(
        SHAPES, enumerate(inputs.DTYPES), enumerate(inputs.REDUNDANCIES)
    ):
        if not inputs.SLOW or shape[1] < 500 or (k + j + shape[0]) % 4 == 0:
            yield shape, dtype, redundancy


@pytest.mark.parametrize(("shape", "dtype", "redundancy"), list(of_selection()), ids=str)
def test_picks_are_greedy_and_gains_err_no_more_than_rounding(shape, dtype, redundancy, device):
    n = shape[1]
    prior = PRIORS[(n + shape[3] + len(redundancy)) % 4]
    keep = n if n < 200 else n // 10
    check_selection(batch_of(shape, dtype, prior), device, keep, redundancy=redundancy)


@pytest.mark.parametrize("redundancy", ["mean", "chain", "max"])
@pytest.mark.parametrize("bandwidth", [1e-3, 0.1, 1e3])
@pytest.mark.parametrize("kind", inputs.KINDS)
def test_picks_are_greedy_for_every_kind_of_tokens_and_bandwidth(kind, bandwidth, redundancy, device):
    s = batch_of((2, 40, 4, 24), torch.float32, "float", kind)
    check_selection(s, device, 40, visual_bandwidth=bandwidth, redundancy=redundancy, redundancy_weight=2.5)


# ---- rows out of the ordinary ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_rows_not_finite_or_of_extreme_norm(dtype, prior, device):
    s = batch_of((2, 37, 19, 22), dtype, prior)
    s.visual, s.text = inputs.odd_rows(s.visual, 1), inputs.odd_rows(s.text, 2)
    for marginal in inputs.MARGINALS:
        check_scores(s, device, marginal=marginal, bandwidth=0.3)
    check_selection(s, device, 37)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("norm", [1e15, 1e-15, 2.0**-12])
def test_all_norms_huge_or_tiny(norm, dtype, device):
    if dtype == torch.float16 and norm != 2.0**-12:
        pytest.skip("outside the range of float16")
    s = batch_of((2, 25, 5, 40), torch.float64)
    s.visual, s.text = (s.visual * norm).to(dtype), (s.text / norm).to(dtype)
    check_scores(s, device)
    check_selection(s, device, 25)


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_padding_under_a_zero_prior_may_hold_anything(dtype, device):
    s = batch_of((2, 30, 6, 20), dtype, "float").to(device)
    garbage = inputs.Sample(s.visual.clone(), s.text.clone(), s.visual_prior, s.text_prior)
    garbage.visual[garbage.visual_prior == 0] = math.nan
    garbage.text[garbage.text_prior == 0] = math.inf
    zeros = inputs.Sample(s.visual.clone(), s.text.clone(), s.visual_prior, s.text_prior)
    zeros.visual[zeros.visual_prior == 0] = 0
    zeros.text[zeros.text_prior == 0] = 0
    outputs = [mi_pruner.prune(x.visual, x.text, 0.5, **x.priors()) for x in (garbage, zeros)]
    assert all(inputs.same_bits(a, b) for a, b in zip(*outputs, strict=True))


def test_samples_without_a_valid_token(device):
    s = batch_of((3, 8, 4, 6), torch.float32).to(device)
    s.visual[0], s.text[1] = math.nan, math.nan
    a = mi_pruner.mi_scores(s.visual, s.text)
    assert (a[:2] == 0).all()
    tokens, indices, gains = mi_pruner.prune(s.visual, s.text, 3)
    assert (tokens[0] == 0).all()
    assert (indices[0] == -1).all()
    assert (gains[0] == -math.inf).all()
    assert len(set(indices[1].tolist())) == 3
    assert gains[1:].isfinite().all()


# ---- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("stride", STRIDES)
def test_strides_do_not_change_a_bit(stride, dtype, device):
    s = batch_of((3, 33, 17, 24), dtype, "float").to(device)
    visual, text = STRIDES[stride](s.visual), STRIDES[stride](s.text)
    prior = s.visual_prior.repeat_interleave(2, dim=1)[:, ::2]
    budget = torch.tensor([20, 0, 3, 0, 40, 0], device=device)[::2]
    strided = mi_pruner.prune(visual, text, 20, visual_prior=prior, budget=budget)
    plain = mi_pruner.prune(
        visual.contiguous(), text.contiguous(), 20, visual_prior=prior.contiguous(), budget=budget.contiguous()
    )
    assert all(inputs.same_bits(a, b) for a, b in zip(strided, plain, strict=True))
    scores = mi_pruner.mi_scores(visual, text).t().contiguous().t()
    picks = mi_pruner.greedy_select(scores, visual, 9)
    expected = mi_pruner.greedy_select(scores.contiguous(), visual.contiguous(), 9)
    assert all(inputs.same_bits(a, b) for a, b in zip(picks, expected, strict=True))


def every_operator(s):
    """All outputs of all operators on one batch, the last sample with a budget of 2."""
    b, n, d = s.visual.shape
    m = s.text.shape[1]
    keep = n // 2 + 1
    device = s.visual.device
    budget = torch.tensor([keep] * (b - 1) + [2], device=device)
    scores = mi_pruner.mi_scores(s.visual, s.text, **s.priors())
    picks = mi_pruner.greedy_select(scores, s.visual, keep, visual_prior=s.visual_prior, budget=budget)
    pruned = mi_pruner.prune(s.visual, s.text, keep, **s.priors(), budget=budget)
    cu = [inputs.cu_seqlens([size] * b, device) for size in (n, m, keep)]
    visual, text = s.visual.reshape(-1, d), s.text.reshape(-1, d)
    sizes = (n, m, keep, keep * b + 3)  # three slots that belong to no sample
    priors = {k: p.reshape(-1) for k, p in s.priors().items()}
    packed = mi_pruner.mi_scores_varlen(visual, text, *cu[:2], n, m, **priors)
    packed_picks = mi_pruner.greedy_select_varlen(packed, visual, cu[0], cu[2], n, *sizes[2:])
    packed_pruned = mi_pruner.prune_varlen(visual, text, *cu, *sizes, **priors)
    return [scores, *picks, *pruned, packed, *packed_picks, *packed_pruned]


@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (3, 37, 9, 21), (2, 130, 40, 64)], ids=str)
def test_outputs_are_fully_written(shape, dtype, device, request):
    s = batch_of(shape, dtype, "float").to(device)
    s.visual[0] = math.nan
    plain = every_operator(s)
    request.getfixturevalue("_poisoned")
    for a, b in zip(every_operator(s), plain, strict=True):
        assert inputs.same_bits(a, b)
        assert not a.isnan().any()


def test_inputs_are_not_modified(device):
    s = batch_of((2, 37, 19, 22), torch.float32, "odd").to(device)
    s.visual, s.text = inputs.odd_rows(s.visual, 1), inputs.odd_rows(s.text, 2)
    before = [x.clone() for x in (s.visual, s.text, s.visual_prior, s.text_prior)]
    every_operator(s)
    scores = torch.full((2, 37), math.nan, device=device)
    mi_pruner.greedy_select(scores, s.visual, 5)
    assert scores.isnan().all()
    for x, old in zip((s.visual, s.text, s.visual_prior, s.text_prior), before, strict=True):
        assert inputs.same_bits(x, old)
