"""The guarantees of the selection, on every backend and on generated inputs: counts, ties, bits, nesting, stopping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_pruner

from . import inputs, oracle

redundancies = st.sampled_from(inputs.REDUNDANCIES)
modes = st.fixed_dictionaries(
    {
        "redundancy": redundancies,
        "redundancy_weight": st.sampled_from([0.0, 0.3, 1.0, 4.0]),
        "visual_bandwidth": st.sampled_from([0.05, 0.63, 5.0]),
    }
)


def scores_of(s, **options):
    return mi_pruner.mi_scores(s.visual[None], s.text[None], **batched(s.priors()), **options)[0]


def batched(priors):
    return {name: None if prior is None else prior[None] for name, prior in priors.items()}


def select(s, keep, scores=None, **options):
    """indices, gains (K,) of one sample."""
    scores = scores_of(s) if scores is None else scores
    visual_prior = None if s.visual_prior is None else s.visual_prior[None]
    indices, gains = mi_pruner.greedy_select(scores[None], s.visual[None], keep, visual_prior=visual_prior, **options)
    return indices[0], gains[0]


def duplicate_groups(s):
    """Lists of valid tokens whose rows and priors are bitwise equal."""
    groups: dict = {}
    prior = torch.ones(s.n) if s.visual_prior is None else s.visual_prior.float()
    for i in inputs.valid_rows(s).nonzero()[:, 0].tolist():
        groups.setdefault((tuple(s.visual[i].tolist()), prior[i].item()), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


# ---- how many --------------------------------------------------------------------------------------------------------
@given(s=inputs.samples(), share=st.floats(0, 1), budget=st.integers(-3, 60), options=modes)
def test_exactly_as_many_distinct_valid_tokens_as_asked_for(device, s, share, budget, options):
    s = s.to(device)
    keep = max(1, round(share * s.n))
    indices, gains = select(s, keep, budget=torch.tensor([budget], device=device), **options)
    valid = inputs.valid_rows(s)
    expected = min(keep, max(budget, 0), int(valid.sum()))
    assert len(set(indices[:expected].tolist())) == expected
    assert valid[indices[:expected]].all()
    assert gains[:expected].isfinite().all()
    assert (indices[expected:] == -1).all()
    assert (gains[expected:] == -math.inf).all()


@pytest.mark.parametrize("redundancy", inputs.REDUNDANCIES)
@pytest.mark.parametrize(("n", "distinct"), [(64, 1), (400, 40), (96, 48)], ids=["identical", "40-rows", "half"])
def test_duplicates_neither_collapse_nor_stop_the_selection(n, distinct, redundancy, device):
    rows = torch.randn(distinct, 32, generator=torch.Generator().manual_seed(n))
    visual = rows[torch.arange(n) % distinct][None].to(device)
    tokens, indices, gains = mi_pruner.prune(visual, visual[:, :3], n // 2, redundancy=redundancy)
    assert len(set(indices[0].tolist())) == n // 2
    assert gains.isfinite().all()
    assert torch.equal(tokens[0], visual[0, indices[0]])


@given(s=inputs.samples(min_n=3), at=st.integers(0, 2), value=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_row_that_is_not_finite_is_never_picked(device, s, at, value):
    s.visual[at, -1] = value
    indices, _ = select(s.to(device), s.n)
    assert at not in indices.tolist()


# ---- what a question says --------------------------------------------------------------------------------------------
@given(s=inputs.samples(dtypes=inputs.FULL), copies=st.integers(1, 9), weighed=st.booleans())
def test_words_that_are_alike_reward_what_they_speak_for_and_nothing_that_they_speak_against(
    device, s, copies, weighed
):
    """Of one word, or copies of it: a = π (1 − w'_0) r (ℓ − log(w'_0 + (1 − w'_0) r)), of the sign of ℓ."""
    weights = torch.rand(copies, generator=torch.Generator().manual_seed(copies)) + 0.1 if weighed else None
    same = inputs.Sample(s.visual, s.text[:1].repeat(copies, 1), s.visual_prior, weights)
    p = oracle.density(*(None if x is None else x.double().numpy() for x in vars(same).values()))
    log_r, null = np.where(p.visual_valid, p.log_r[:, 0], 0.0), 1 / (copies + 1)
    r = np.exp(np.where(p.visual_prior > 0, log_r, 0.0))
    expected = p.visual_prior * (1 - null) * r * (log_r - np.log(null + (1 - null) * r))
    scores = scores_of(same.to(device)).double().cpu().numpy()
    tol = 64 * inputs.rounding(s.visual.dtype, p.squared_bandwidth, s.n)
    assert np.abs(scores - expected).max() <= tol
    assert (scores[expected > tol] > 0).all()
    assert (scores[log_r <= 0] <= tol).all()


WORDS = torch.randn(6, 64, generator=torch.Generator().manual_seed(7))
QUESTIONS = {
    "one word": WORDS[:1],
    "the same word twice": WORDS[:1].repeat(2, 1),
    "two that are alike": WORDS[:1] + torch.tensor([[0.0], [0.02]]) * WORDS[1:2],
    "two": WORDS[:2],
    "six": WORDS,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_read_however_few_words_it_has(question, device):
    """12 of 144 clustered tokens lean towards a word each: all of them are among the 18 that are kept."""
    g = torch.Generator().manual_seed(1)
    words, clusters = QUESTIONS[question], torch.randn(8, 64, generator=g)
    visual = clusters[torch.randint(8, (144,), generator=g)] + 0.5 * torch.randn(144, 64, generator=g)
    leaning = torch.randperm(144, generator=g)[:12]
    visual[leaning] = 0.6 * words[torch.arange(12) % len(words)] + 0.8 * torch.randn(12, 64, generator=g)
    scores = mi_pruner.mi_scores(visual[None].to(device), words[None].to(device))
    assert set(scores[0].topk(12).indices.tolist()) == set(leaning.tolist())
    _, indices, _ = mi_pruner.prune(visual[None].to(device), words[None].to(device), 18)
    assert set(indices[0].tolist()) >= set(leaning.tolist())


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
def test_without_a_valid_word_all_scores_are_zero(marginal, device):
    s = inputs.make_sample("separated", 40, 5, 16, text_prior="bool").to(device)
    for text, prior in ((s.text * math.nan, None), (s.text, torch.zeros(1, 5, device=device))):
        scores = mi_pruner.mi_scores(s.visual[None], text[None], text_prior=prior, marginal=marginal)
        assert (scores == 0).all()


@pytest.mark.parametrize("marginal", inputs.MARGINALS)
def test_words_that_are_absent_do_not_count(marginal, device):
    """Neither as words nor beside the null word: padding of the text changes nothing but rounding."""
    s = inputs.make_sample("separated", 40, 3, 16).to(device)
    padded = torch.cat([s.text, torch.full_like(s.text, math.nan), s.text])
    prior = torch.tensor([1.0] * 6 + [0.0] * 3, device=device)
    given = scores_of(s, marginal=marginal)
    with_padding = scores_of(inputs.Sample(s.visual, padded, None, prior), marginal=marginal)
    torch.testing.assert_close(with_padding, given, rtol=1e-4, atol=1e-7)


# ---- ties ------------------------------------------------------------------------------------------------------------
@given(s=inputs.samples(kinds=("duplicates", "identical")), options=modes, marginal=st.sampled_from(inputs.MARGINALS))
def test_equal_rows_get_equal_scores_and_gains_and_go_lowest_index_first(device, s, options, marginal):
    s = s.to(device)
    scores = scores_of(s, marginal=marginal)
    indices, _ = select(s, s.n, scores, **options)
    order = indices.tolist()
    for group in duplicate_groups(s):
        assert all(inputs.same_bits(scores[i], scores[group[0]]) for i in group), group
        assert [i for i in order if i in group] == group


@pytest.mark.parametrize("m", [1, 2, 3, 5, 33])
@pytest.mark.parametrize("n", [2, 3, 7, 31, 33, 127, 258])
def test_equal_rows_get_equal_bits_wherever_they_stand(n, m, device):
    for d in (3, 16, 67):
        for dtype in inputs.DTYPES:
            s = inputs.make_sample("separated", n, m, d, dtype, seed=n + d).to(device)
            s.visual[n // 2] = s.visual[0]
            s.visual[n - 1] = s.visual[0]
            twins = sorted({0, n // 2, n - 1})
            for marginal in inputs.MARGINALS:
                scores = scores_of(s, marginal=marginal)
                assert all(inputs.same_bits(scores[i], scores[0]) for i in twins), (n, m, d, dtype)
            order = select(s, n, scores)[0].tolist()
            assert [i for i in order if i in twins] == twins


@given(seed=st.integers(0, 999), n=st.integers(1, 50), options=modes)
def test_equal_gains_go_to_the_lowest_index(device, seed, n, options):
    s = inputs.make_sample("identical", n, 1, 8, seed=seed).to(device)
    levels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed)).float().to(device)
    indices, _ = select(s, n, levels, **options)
    expected = levels.sort(descending=True, stable=True).indices  # equal rows: redundancy is the same for all
    assert torch.equal(indices, expected)


# ---- top-k, and scores of the caller ---------------------------------------------------------------------------------
ODD_SCORES = st.lists(
    st.one_of(st.floats(-3, 3, width=16), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0])),
    min_size=1,
    max_size=40,
)


@given(values=ODD_SCORES, by_weight=st.booleans(), redundancy=redundancies)
def test_without_redundancy_the_selection_is_a_stable_top_k(device, values, by_weight, redundancy):
    s = inputs.make_sample("separated", len(values), 1, 5).to(device)
    scores = torch.tensor(values, device=device)
    option = {"redundancy": redundancy, "redundancy_weight": 0.0} if by_weight else {"redundancy": "none"}
    indices, gains = select(s, s.n, scores, **option)
    cleaned = scores.where(~scores.isnan(), -math.inf)
    assert torch.equal(indices, cleaned.sort(descending=True, stable=True).indices)
    assert torch.equal(gains, cleaned[indices])


@given(values=ODD_SCORES, options=modes)
def test_scores_of_the_caller_may_hold_nan_and_infinities(device, values, options):
    s = inputs.make_sample("clustered", len(values), 1, 5).to(device)
    scores = torch.tensor(values, device=device)
    indices, gains = select(s, s.n, scores, **options)
    assert sorted(indices.tolist()) == list(range(s.n))
    assert not gains.isnan().any()
    rank = scores.where(~scores.isnan(), -math.inf)[indices]  # every +inf before, every −inf after the finite ones
    assert torch.equal(gains.isinf(), rank.isinf())
    assert torch.equal(gains[rank.isinf()], rank[rank.isinf()])
    assert torch.equal(
        rank.clamp(-9, 9).sign() * rank.isinf(), (rank.sign() * rank.isinf()).sort(descending=True).values
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_scores_of_the_caller_may_be_of_any_floating_dtype(dtype, device):
    s = inputs.make_sample("separated", 9, 1, 5).to(device)
    scores = torch.arange(9, device=device).flip(0).to(dtype)
    indices, gains = select(s, 9, scores, redundancy="none")
    assert indices.tolist() == list(range(9))
    assert gains.dtype == torch.float32


# ---- nested picks, budget, min_gain ----------------------------------------------------------------------------------
@given(s=inputs.samples(), options=modes)
def test_the_picks_for_a_smaller_keep_are_the_first_of_a_larger_one(device, s, options):
    s = s.to(device)
    full = select(s, s.n, **options)
    for keep in {1, s.n // 3 + 1, s.n // 2 + 1, max(1, s.n - 1)} - {s.n + 1}:
        fewer = select(s, min(keep, s.n), **options)
        assert all(inputs.same_bits(a, b[:keep]) for a, b in zip(fewer, full, strict=True))


@pytest.mark.parametrize("redundancy", ["mean", "chain", "max"])
@pytest.mark.parametrize(("rank", "weight"), [(3, 100.0)] if inputs.SLOW else [(3, 1.0), (3, 100.0), (6, 10.0)])
@pytest.mark.slow
def test_nested_where_the_candidates_are_hard_to_guess(rank, weight, redundancy, device):
    """Tokens in few dimensions: each pick reorders the rest. A kernel that computes rows ahead computes many in vain,
    and others for a smaller K: the picks must not tell."""
    g = torch.Generator().manual_seed(rank)
    visual = (torch.randn(1, 1500, rank, generator=g) @ torch.randn(rank, 24, generator=g)).to(device)
    scores = torch.rand(1, 1500, generator=g).to(device) * 1e-3
    options = {"redundancy": redundancy, "redundancy_weight": weight}
    indices, gains = mi_pruner.greedy_select(scores, visual, 400, **options)
    for keep in (2, 9, 70):
        fewer = mi_pruner.greedy_select(scores, visual, keep, **options)
        assert inputs.same_bits(fewer[0], indices[:, :keep])
        assert inputs.same_bits(fewer[1], gains[:, :keep])
    with mi_pruner.backend("reference"):
        reference, _ = mi_pruner.greedy_select(scores.double().cpu(), visual.double().cpu(), 400, **options)
    assert (indices == reference.to(device)).float().mean() > 0.9  # near-ties may fall either way


@given(
    s=inputs.samples(), budgets=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 50), min_size=1, max_size=4)
)
def test_a_budget_is_clamped_and_cuts_the_picks_short(device, s, budgets):
    s = s.to(device)
    full, gains = select(s, s.n)
    for dtype, asked in ((torch.int32, budgets), (torch.int64, [*budgets, 3 - 2**32, 3 + 2**32, -(2**63), 2**63 - 1])):
        many = inputs.batch([s] * len(asked))
        scores = torch.stack([scores_of(s)] * len(asked))
        budget = torch.tensor(asked, dtype=dtype, device=device)
        indices, cut = mi_pruner.greedy_select(scores, many.visual, s.n, visual_prior=many.visual_prior, budget=budget)
        for b, limit in enumerate(asked):
            limit = min(max(limit, 0), s.n)
            assert inputs.same_bits(indices[b, :limit], full[:limit])
            assert inputs.same_bits(cut[b, :limit], gains[:limit])
            assert (indices[b, limit:] == -1).all()
            assert (cut[b, limit:] == -math.inf).all()


@given(s=inputs.samples(), options=modes, at=st.floats(0, 1), above=st.booleans())
def test_min_gain_stops_a_sample_for_good(device, s, options, at, above):
    s = s.to(device)
    full, gains = select(s, s.n, **options)
    threshold = gains[int(at * (s.n - 1))].item()
    if above:
        threshold = math.nextafter(threshold, math.inf)
    low = ((gains < threshold) | (full < 0)).nonzero()[:, 0].tolist()
    stop = low[0] if low else s.n
    indices, cut = select(s, s.n, min_gain=threshold, **options)
    assert inputs.same_bits(indices[:stop], full[:stop])
    assert inputs.same_bits(cut[:stop], gains[:stop])
    assert (indices[stop:] == -1).all()
    assert (cut[stop:] == -math.inf).all()


def test_min_gain_at_infinity(device):
    s = inputs.make_sample("separated", 9, 2, 5).to(device)
    scores = torch.full((9,), -math.inf, device=device)
    assert (select(s, 9, min_gain=math.inf)[0] == -1).all()
    assert sorted(select(s, 9, scores, min_gain=-math.inf)[0].tolist()) == list(range(9))  # −inf is not below −inf
    assert (select(s, 9, scores, min_gain=-1e30)[0] == -1).all()


# ---- prune -----------------------------------------------------------------------------------------------------------
@given(s=inputs.samples(), options=modes, share=st.floats(0, 1))
def test_prune_is_score_select_sort_and_gather(device, s, options, share):
    s = s.to(device)
    keep = max(1, round(share * s.n))
    picked, gains = select(s, keep, **options)
    tokens, indices, sorted_gains = mi_pruner.prune(
        s.visual[None], s.text[None], keep, **batched(s.priors()), **options
    )
    used = int((picked >= 0).sum())
    order = picked[:used].argsort()
    assert torch.equal(indices[0, :used], picked[order])
    assert inputs.same_bits(sorted_gains[0, :used], gains[order])
    assert inputs.same_bits(tokens[0, :used], s.visual[picked[order]])
    assert (indices[0, used:] == -1).all()
    assert (sorted_gains[0, used:] == -math.inf).all()
    assert (tokens[0, used:] == 0).all()
