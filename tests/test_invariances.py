"""What must not matter: the batch around a sample, threads, padding, order, the length of rows. The bounds of Σ a."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_pruner

from . import inputs, oracle

marginals = st.sampled_from(inputs.MARGINALS)
modes = st.sampled_from(inputs.REDUNDANCIES)
SLACK = 64  # by how much a bound on rounding may be missed where h² itself is rounded


def prune_one(s, keep, **options):
    priors = {name: None if prior is None else prior[None] for name, prior in s.priors().items()}
    return [x[0] for x in mi_pruner.prune(s.visual[None], s.text[None], keep, **priors, **options)]


def scores_of(s, **options):
    priors = {name: None if prior is None else prior[None] for name, prior in s.priors().items()}
    return mi_pruner.mi_scores(s.visual[None], s.text[None], **priors, **options)[0]


def arrays(s):
    return {
        "visual": s.visual.double().cpu().numpy(),
        "text": s.text.double().cpu().numpy(),
        **{name: None if prior is None else prior.double().cpu().numpy() for name, prior in s.priors().items()},
    }


def density_of(s):
    return oracle.density(**arrays(s))


def tolerance(s, density):
    return SLACK * inputs.rounding(s.visual.dtype, density.squared_bandwidth, s.n)


def regret_of(indices, gains, s, tol, redundancy="mean"):
    """Judges picks of `s` in order of selection, by the oracle's float64 scores."""
    x = arrays(s)
    valid = oracle.is_valid(x["visual"], x["visual_prior"])
    prior = oracle.normalise(x["visual_prior"], valid)
    table = oracle.redundancy_table(x["visual"], x["visual_prior"])
    a = oracle.scores(**x)
    picks = indices.cpu().numpy(), gains.double().cpu().numpy()
    replay = oracle.replay(*picks, a, table, prior, valid, redundancy)
    assert replay.regret <= 2 * tol
    assert replay.error <= tol


def select(s, keep, **options):
    prior = None if s.visual_prior is None else s.visual_prior[None]
    indices, gains = mi_pruner.greedy_select(scores_of(s)[None], s.visual[None], keep, visual_prior=prior, **options)
    return indices[0], gains[0]


# ---- bit for bit -----------------------------------------------------------------------------------------------------
BIG = [(577, 9, 100), (1030, 33, 64), (130, 1, 257)]


def outputs_with_threads(s, counts):
    threads = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield mi_pruner.mi_scores(s.visual, s.text), *mi_pruner.prune(s.visual, s.text, 40, **s.priors())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", BIG, ids=str)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_runs_and_thread_counts_give_the_same_bits(size, dtype, backend, device):
    many = [inputs.make_sample("clustered", *size, dtype, seed, "float") for seed in range(2)]
    # Plain PyTorch splits its sums by the number of threads: the reference is the same from run to run only.
    counts = (2, 2, 2) if backend == "reference" else (1, 2, 2, 3)
    first, *others = outputs_with_threads(inputs.batch(many).to(device), counts)
    for run in others:
        assert all(inputs.same_bits(a, b) for a, b in zip(run, first, strict=True))


def check_batch_invariance(many, keep, **options):
    """Alone, in a batch, in another place of another batch, and packed: the same bits."""
    alone = [prune_one(s, keep, **options) for s in many]
    for order in (range(len(many)), range(len(many) - 1, -1, -1)):
        s = inputs.batch([many[i] for i in order])
        together = mi_pruner.prune(s.visual, s.text, keep, **s.priors(), **options)
        for place, i in enumerate(order):
            assert all(inputs.same_bits(a[place], b) for a, b in zip(together, alone[i], strict=True))
    b, n, m = len(many), many[0].n, len(many[0].text)
    cu = [inputs.cu_seqlens([size] * b, s.visual.device) for size in (n, m, keep)]
    flat = {name: None if prior is None else prior.flatten() for name, prior in s.priors().items()}
    packed = mi_pruner.prune_varlen(
        s.visual.flatten(0, 1), s.text.flatten(0, 1), *cu, n, m, keep, keep * b, **flat, **options
    )
    for dense, flat_output in zip(together, packed, strict=True):
        assert inputs.same_bits(dense.flatten(0, 1), flat_output)


@given(s=inputs.samples(), others=st.integers(1, 3), share=st.floats(0, 1), redundancy=modes)
def test_a_sample_gives_the_same_bits_alone_in_a_batch_and_packed(device, s, others, share, redundancy):
    sides = [None if p is None else ("bool" if p.dtype == torch.bool else "float") for p in s.priors().values()]
    rest = [
        inputs.make_sample("clustered", s.n, len(s.text), s.visual.shape[1], s.visual.dtype, seed, *sides)
        for seed in range(others)
    ]
    check_batch_invariance([x.to(device) for x in (s, *rest)], max(1, round(share * s.n)), redundancy=redundancy)


@pytest.mark.parametrize("size", BIG, ids=str)
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
def test_a_large_sample_gives_the_same_bits_alone_in_a_batch_and_packed(size, dtype, device):
    many = [inputs.make_sample("clustered", *size, dtype, seed, "float").to(device) for seed in range(3)]
    check_batch_invariance(many, 30)


@given(s=inputs.samples(dtypes=inputs.FULL), redundancy=modes)
def test_rows_scaled_by_powers_of_two_give_the_same_bits(device, s, redundancy):
    s = s.to(device)
    g = torch.Generator().manual_seed(s.n)
    scaled = inputs.Sample(
        *(x * 2.0 ** torch.randint(-20, 21, (len(x), 1), generator=g).to(x) for x in (s.visual, s.text))
    )
    scaled.visual_prior, scaled.text_prior = s.visual_prior, s.text_prior
    assert inputs.same_bits(scores_of(scaled), scores_of(s))
    for a, b in zip(select(scaled, s.n, redundancy=redundancy), select(s, s.n, redundancy=redundancy), strict=True):
        assert inputs.same_bits(a, b)


# ---- up to rounding --------------------------------------------------------------------------------------------------
@given(s=inputs.samples(dtypes=inputs.FULL), factor=st.floats(1e-3, 1e3), marginal=marginals)
def test_scaled_rows_change_scores_by_rounding_only(device, s, factor, marginal):
    s = s.to(device)
    scaled = inputs.Sample(s.visual * factor, s.text / factor, s.visual_prior, s.text_prior)
    tol = tolerance(s, density_of(s))
    assert (scores_of(scaled, marginal=marginal) - scores_of(s, marginal=marginal)).abs().max() <= tol


@given(s=inputs.samples(), factor=st.floats(1e-3, 1e3), marginal=marginals)
def test_scaled_priors_change_scores_by_rounding_only(device, s, factor, marginal):
    s = s.to(device)
    weights = [torch.ones(len(x), dtype=torch.float64, device=device) for x in (s.visual, s.text)]
    weights = [w if prior is None else prior.double() for w, prior in zip(weights, s.priors().values(), strict=True)]
    weights = [w * (w > 1e-30) for w in weights]  # a denormal weight loses digits when scaled
    base, scaled = (inputs.Sample(s.visual, s.text, *(w * f for w in weights)) for f in (1.0, factor))
    tol = tolerance(base, density_of(base))
    assert (scores_of(scaled, marginal=marginal) - scores_of(base, marginal=marginal)).abs().max() <= tol


@given(s=inputs.samples(), extra=st.tuples(st.integers(1, 40), st.integers(1, 12)), redundancy=modes)
def test_padding_changes_a_result_by_rounding_only(device, s, extra, redundancy):
    def pad(rows, count):
        return torch.cat([rows, rows.new_full((count, rows.shape[1]), math.nan)])

    def pad_prior(prior, rows, count):
        prior = torch.ones(len(rows), device=device) if prior is None else prior.float()
        return torch.cat([prior, prior.new_zeros(count)])

    s = s.to(device)
    padded = inputs.Sample(
        pad(s.visual, extra[0]),
        pad(s.text, extra[1]),
        pad_prior(s.visual_prior, s.visual, extra[0]),
        pad_prior(s.text_prior, s.text, extra[1]),
    )
    tol = tolerance(s, density_of(s))
    scores = scores_of(padded)
    assert (scores[s.n :] == 0).all()
    assert (scores[: s.n] - scores_of(s)).abs().max() <= tol
    indices, gains = select(padded, s.n, redundancy=redundancy)
    regret_of(indices, gains, s, tol, redundancy)


@given(s=inputs.samples(), seed=st.integers(0, 99), redundancy=modes)
def test_permuted_tokens_give_permuted_results_up_to_rounding(device, s, seed, redundancy):
    g = torch.Generator().manual_seed(seed)
    order, text_order = torch.randperm(s.n, generator=g), torch.randperm(len(s.text), generator=g)
    shuffled = inputs.Sample(
        s.visual[order],
        s.text[text_order],
        None if s.visual_prior is None else s.visual_prior[order],
        None if s.text_prior is None else s.text_prior[text_order],
    ).to(device)
    s = s.to(device)
    tol = tolerance(s, density_of(s))
    assert (scores_of(shuffled) - scores_of(s)[order.to(device)]).abs().max() <= tol
    indices, gains = select(shuffled, s.n, redundancy=redundancy)
    original = order.to(device)[indices.clamp(min=0)].where(indices >= 0, -1)
    regret_of(original, gains, s, tol, redundancy)


# ---- the quantity itself ---------------------------------------------------------------------------------------------
def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


@given(s=inputs.samples())
def test_the_scores_sum_to_an_information_between_zero_and_both_entropies(device, s):
    total = scores_of(s.to(device)).double().sum().item()
    p = density_of(s)
    tol = tolerance(s, p)
    # V is distributed as Σ_j w'_j P[·|j], T' as w', the null word among both.
    assert -tol <= total <= min(entropy(p.mixture), entropy(p.word_weights)) + tol
    assert total <= math.log(max(1, min(p.visual_valid.sum(), p.text_valid.sum() + 1))) + tol


@given(s=inputs.samples(), marginal=marginals)
def test_scores_are_those_of_the_oracle_up_to_rounding(device, s, marginal):
    expected = oracle.scores(**arrays(s), marginal=marginal)
    error = np.abs(scores_of(s.to(device), marginal=marginal).double().cpu().numpy() - expected).max()
    assert error <= tolerance(s, density_of(s))


@given(s=inputs.samples(), redundancy=modes)
def test_every_pick_is_greedy_given_the_earlier_ones(device, s, redundancy):
    tol = tolerance(s, density_of(s))
    regret_of(*select(s.to(device), s.n, redundancy=redundancy), s, tol, redundancy)
