"""The packed operators: the dense results without padding, whatever `cu_*` says; and `keep` as a ratio."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mi_pruner

from . import inputs

INT32 = st.integers(-(2**31), 2**31 - 1)


def pack(samples, shares, slack=0):
    """The positional arguments of `prune_varlen` and its priors; `slack` is added to the sizes that are only bounds."""
    lengths = [[s.n for s in samples], [len(s.text) for s in samples], list(shares)]
    device = samples[0].visual.device
    arguments = [
        torch.cat([s.visual for s in samples]),
        torch.cat([s.text for s in samples]),
        *(inputs.cu_seqlens(x, device) for x in lengths),
        *(max(x) + slack for x in lengths),
        sum(shares) + slack,
    ]
    sides = {name: [s.priors()[name] for s in samples] for name in samples[0].priors()}
    return arguments, {name: torch.cat(parts) for name, parts in sides.items() if parts[0] is not None}


def scores_and_picks(arguments, priors, **options):
    visual, text, cu_visual, cu_text, cu_keep, max_visual, max_text, max_keep, total_keep = arguments
    scores = mi_pruner.mi_scores_varlen(visual, text, cu_visual, cu_text, max_visual, max_text, **priors)
    prior = priors.get("visual_prior")
    picks = mi_pruner.greedy_select_varlen(
        scores, visual, cu_visual, cu_keep, max_visual, max_keep, total_keep, visual_prior=prior, **options
    )
    return scores, *picks


def ragged(sizes, dtype, device, prior="float"):
    return [
        inputs.make_sample("clustered", n, m, 19, dtype, seed, prior, prior).to(device)
        for seed, (n, m) in enumerate(sizes)
    ]


def dense_one(s, keep, **options):
    priors = {name: None if prior is None else prior[None] for name, prior in s.priors().items()}
    scores = mi_pruner.mi_scores(s.visual[None], s.text[None], **priors)
    picks = mi_pruner.greedy_select(scores, s.visual[None], keep, visual_prior=priors["visual_prior"], **options)
    pruned = mi_pruner.prune(s.visual[None], s.text[None], keep, **priors, **options)
    return [x[0] for x in (scores, *picks, *pruned)]


def unused(tokens, indices, gains):
    return bool((tokens == 0).all() and (indices == -1).all() and (gains == -math.inf).all())


# ---- packed = dense --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", [None, "float", "bool"])
@pytest.mark.parametrize("dtype", inputs.DTYPES, ids=str)
@pytest.mark.parametrize("slack", [0, 5])
def test_packed_samples_are_bit_for_bit_the_dense_ones(slack, dtype, prior, device):
    samples = ragged([(7, 3), (1, 1), (64, 17), (33, 9), (130, 1)], dtype, device, prior)
    shares = [3, 1, 64, 8, 20]
    arguments, priors = pack(samples, shares, slack)
    redundancies = inputs.REDUNDANCIES
    if inputs.SLOW:  # each of them still meets every dtype, and every kind of prior
        redundancies = redundancies[(2 * slack + inputs.DTYPES.index(dtype) + len(prior or "")) % 4 :][:1]
    for redundancy in redundancies:
        packed = [*scores_and_picks(arguments, priors, redundancy=redundancy)]
        packed += mi_pruner.prune_varlen(*arguments, **priors, redundancy=redundancy)
        starts = list(itertools.accumulate([0, *shares]))
        tokens_at = list(itertools.accumulate([0, *(s.n for s in samples)]))
        for b, s in enumerate(samples):
            expected = dense_one(s, shares[b], redundancy=redundancy)
            assert inputs.same_bits(packed[0][tokens_at[b] : tokens_at[b + 1]], expected[0])
            for flat, dense in zip(packed[1:], expected[1:], strict=True):
                assert inputs.same_bits(flat[starts[b] : starts[b + 1]], dense)
        assert unused(*(x[starts[-1] :] for x in packed[3:]))


@given(
    sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 24)), min_size=1, max_size=5),
    dtype=st.sampled_from(inputs.DTYPES),
    min_gain=st.none() | st.floats(-0.1, 0.1),
    ratio=st.none() | st.floats(1e-3, 1.0),
)
def test_samples_may_be_empty_or_smaller_than_their_share(device, sizes, dtype, min_gain, ratio):
    samples, options = [], {"min_gain": min_gain, "ratio": ratio}
    for seed, (n, m, _) in enumerate(sizes):
        s = inputs.make_sample("duplicates", max(n, 1), max(m, 1), 6, dtype, seed, "float", "float").to(device)
        fields = (s.visual, s.text, *s.priors().values())
        samples.append(inputs.Sample(*(x[:k] for x, k in zip(fields, (n, m) * 2, strict=True))))
    shares = [share for *_, share in sizes]
    arguments, priors = pack(samples, shares)
    tokens, indices, gains = mi_pruner.prune_varlen(*arguments, **priors, **options)
    scores, *_ = scores_and_picks(arguments, priors)
    start = scored = 0
    for s, share in zip(samples, shares, strict=True):
        own = slice(start, start + share)
        used = 0
        if s.n and len(s.text):
            expected = dense_one(s, min(max(share, 1), s.n), **options)
            used = min(int((expected[4] >= 0).sum()), share)
            assert inputs.same_bits(scores[scored : scored + s.n], expected[0])
            if share:
                assert inputs.same_bits(tokens[own][:used], expected[3][:used])
                assert inputs.same_bits(indices[own][:used], expected[4][:used])
                assert inputs.same_bits(gains[own][:used], expected[5][:used])
        elif s.n:  # no text: every score is 0, and redundancy alone chooses
            assert (scores[scored : scored + s.n] == 0).all()
            used = int((indices[own] >= 0).sum())
            valid = int((s.visual_prior > 0).sum())
            own_share = share if ratio is None else min(share, rounded(ratio, valid))
            assert min_gain is not None or used == min(own_share, valid)
        assert unused(tokens[own][used:], indices[own][used:], gains[own][used:])
        start += share
        scored += s.n


def test_nothing_at_all(device):
    for rows in (0, 4):
        visual, cu = torch.randn(rows, 8, device=device), inputs.cu_seqlens([], device)
        tokens, indices, gains = mi_pruner.prune_varlen(visual, visual, cu, cu, cu, 0, 0, 0, 0)
        assert tokens.shape == (0, 8)
        assert indices.shape == gains.shape == (0,)
        assert (mi_pruner.mi_scores_varlen(visual, visual, cu, cu, 0, 0) == 0).all()


def test_slots_that_no_sample_may_use(device):
    visual, cu = torch.randn(6, 8, device=device), inputs.cu_seqlens([6], device)
    tokens, indices, gains = mi_pruner.prune_varlen(visual, visual, cu, cu, inputs.cu_seqlens([4], device), 6, 6, 0, 4)
    assert unused(tokens, indices, gains)
    indices, gains = mi_pruner.greedy_select_varlen(
        torch.zeros(6, device=device), visual, cu, inputs.cu_seqlens([4], device), 6, 0, 4
    )
    assert unused(tokens, indices, gains)


def test_bounds_far_above_what_there_is(device):
    """`max_*` are bounds: they cost nothing where the tensors are smaller."""
    visual, cu = torch.randn(6, 8, device=device), inputs.cu_seqlens([6], device)
    many = 2**31 - 1
    packed = mi_pruner.prune_varlen(visual, visual, cu, cu, inputs.cu_seqlens([4], device), many, many, many, 4)
    dense = mi_pruner.prune(visual[None], visual[None], 4)
    assert all(inputs.same_bits(flat, one[0]) for flat, one in zip(packed, dense, strict=True))


def test_tokens_of_no_sample_score_zero(device):
    visual = torch.randn(9, 8, device=device)
    cu = torch.tensor([2, 5, 5, 8], dtype=torch.int32, device=device)
    scores = mi_pruner.mi_scores_varlen(visual, visual, cu, cu, 9, 9)
    assert scores[[0, 1, 8]].tolist() == [0.0] * 3
    assert inputs.same_bits(scores[2:5], mi_pruner.mi_scores(visual[None, 2:5], visual[None, 2:5])[0])


def test_a_sample_longer_than_the_bound_is_cut_to_it(device):
    visual = torch.randn(12, 8, device=device)
    cu, cu_keep = inputs.cu_seqlens([12], device), inputs.cu_seqlens([6], device)
    tokens, indices, gains = mi_pruner.prune_varlen(
        visual, visual[:4], cu, inputs.cu_seqlens([4], device), cu_keep, 7, 3, 5, 6
    )
    expected = mi_pruner.prune(visual[None, :7], visual[None, :3], 5)
    for flat, dense in zip((tokens, indices, gains), expected, strict=True):
        assert inputs.same_bits(flat[:5], dense[0])
    assert unused(tokens[5:], indices[5:], gains[5:])


# ---- whatever cu_* says ----------------------------------------------------------------------------------------------
def clamped(cu, total, longest):
    """(start, stop) of every sample: clamped to [0, total], never decreasing, cut to the longest length."""
    ends = itertools.accumulate((min(max(x, 0), total) for x in cu), max)
    return [(a, min(b, a + longest)) for a, b in itertools.pairwise(ends)]


def expected_picks(visual, text, share):
    """What `prune` of one sample has in `share` slots: tokens, indices, gains."""
    tokens, indices, gains = (
        visual.new_zeros(share, visual.shape[1]),
        torch.full((share,), -1, device=visual.device),
        torch.full((share,), -math.inf, device=visual.device),
    )
    used = min(share, len(visual))
    if used:
        scores = mi_pruner.mi_scores(visual[None], text[None]) if len(text) else torch.zeros(1, len(visual)).to(visual)
        picks, sizes = mi_pruner.greedy_select(scores, visual[None], used)
        indices[:used], order = picks[0].sort()
        gains[:used] = sizes[0, order]
        tokens[:used] = visual[indices[:used]]
    return tokens, indices, gains


@given(data=st.data(), samples=st.integers(1, 4), bound=st.integers(0, 25))
def test_garbage_in_cu_is_clamped_and_reaches_nothing_out_of_range(device, data, samples, bound):
    near = st.integers(-5, 30) | INT32
    cus = [data.draw(st.lists(near, min_size=samples + 1, max_size=samples + 1)) for _ in range(3)]
    as_tensor = [torch.tensor(cu, dtype=torch.int32, device=device) for cu in cus]
    s = inputs.make_sample("clustered", 20, 11, 8, seed=3).to(device)
    outputs = mi_pruner.prune_varlen(s.visual, s.text, *as_tensor, bound, bound, bound, 15)
    spans = [clamped(cu, total, bound) for cu, total in zip(cus, (20, 11, 15), strict=True)]
    owned = torch.zeros(15, dtype=torch.bool, device=device)
    for (v, v_end), (t, t_end), (k, k_end) in zip(*spans, strict=True):
        expected = expected_picks(s.visual[v:v_end], s.text[t:t_end], k_end - k)
        assert all(inputs.same_bits(flat[k:k_end], one) for flat, one in zip(outputs, expected, strict=True))
        owned[k:k_end] = True
    assert unused(*(x[~owned] for x in outputs))
    assert mi_pruner.mi_scores_varlen(s.visual, s.text, *as_tensor[:2], bound, bound).isfinite().all()


@pytest.mark.parametrize("cu_keep", [[-9, 4], [0, 2**31 - 1], [5, 2], [-(2**31), 2**31 - 1], [9, 12], [8, 8]], ids=str)
def test_garbage_in_cu_keep_alone(cu_keep, device):
    visual = torch.randn(10, 8, device=device)
    cu = inputs.cu_seqlens([10], device)
    share = torch.tensor(cu_keep, dtype=torch.int32, device=device)
    tokens, indices, gains = mi_pruner.prune_varlen(visual, visual, cu, cu, share, 10, 10, 8, 8)
    ((start, stop),) = clamped(cu_keep, 8, 8)
    expected = expected_picks(visual, visual, stop - start)
    for flat, one in zip((tokens, indices, gains), expected, strict=True):
        assert inputs.same_bits(flat[start:stop], one)
    assert unused(*(torch.cat([x[:start], x[stop:]]) for x in (tokens, indices, gains)))


def test_what_many_samples_are_given_is_made_non_decreasing(device):
    """More than kernels look at in one step, each a little before or after where it should be."""
    noise = torch.Generator().manual_seed(4)
    drift = torch.randint(-4, 5, (3, 301), generator=noise).tolist()
    cus = [[2 * k + x for k, x in enumerate(row)] for row in drift]
    s = inputs.make_sample("clustered", 600, 600, 8, seed=3).to(device)

    def prune(cus):
        cu = [torch.tensor(x, dtype=torch.int32, device=device) for x in cus]
        return mi_pruner.prune_varlen(s.visual, s.text, *cu, 6, 5, 4, 600)

    outputs = prune(cus)
    repaired = [list(itertools.accumulate((min(max(x, 0), 600) for x in cu), max)) for cu in cus]
    assert any(cu != given for cu, given in zip(repaired, cus, strict=True))
    assert all(inputs.same_bits(x, y) for x, y in zip(outputs, prune(repaired), strict=True))
    spans = [clamped(cu, 600, longest) for cu, longest in zip(cus, (6, 5, 4), strict=True)]
    for k in (0, 1, 31, 32, 126, 127, 128, 255, 256, 299):
        (v, v_end), (t, t_end), (out, out_end) = (span[k] for span in spans)
        expected = expected_picks(s.visual[v:v_end], s.text[t:t_end], out_end - out)
        assert all(inputs.same_bits(flat[out:out_end], one) for flat, one in zip(outputs, expected, strict=True))


# ---- keep as a ratio -------------------------------------------------------------------------------------------------
def rounded(ratio, tokens):
    return max(1, math.floor(ratio * tokens + 0.5))


@given(ratio=st.floats(1e-6, 1.0), n=st.integers(1, 40), seed=st.integers(0, 99), extra=st.none() | st.integers(-1, 30))
def test_a_ratio_is_taken_of_each_samples_own_valid_tokens(device, ratio, n, seed, extra):
    samples = [
        inputs.make_sample("separated", n, 2, 6, seed=seed + i, visual_prior="float" if i else "bool") for i in range(3)
    ]
    for s in samples:
        s.visual_prior = s.visual_prior.float()
    samples[1].visual_prior[:] = 1
    s = inputs.batch(samples).to(device)
    s.visual[2, 0, 0] = math.nan
    budget = None if extra is None else torch.tensor([extra] * 3, device=device)
    valid = (inputs.finite_rows(s.visual) & (s.visual_prior > 0)).sum(1).tolist()
    tokens, indices, gains = mi_pruner.prune(s.visual, s.text, ratio, visual_prior=s.visual_prior, budget=budget)
    assert tokens.shape[:2] == indices.shape == gains.shape == (3, rounded(ratio, n))
    for b, count in enumerate(valid):
        own = rounded(ratio, count) if extra is None else min(rounded(ratio, count), max(extra, 0))
        assert (indices[b] >= 0).sum() == min(own, count)


# Of all ratios in steps of 0.001 and up to 5000 tokens, a product in float32 gives another count in 1174 cases.
OTHER_IN_FLOAT32 = (
    *((0.29, 50), (0.525, 60), (0.53, 50), (0.57, 50), (0.58, 25), (0.59, 50), (0.7, 45)),
    *((0.525, 220), (0.009, 2500), (0.172, 4625), (0.891, 4500)),
)


def check_counts_of_ratios(pairs, device):
    """As many picks as the formula says in Python's float64."""
    for ratio, tokens in pairs:
        count = rounded(ratio, tokens)
        visual, scores = torch.ones(1, tokens, 1, device=device), torch.zeros(1, tokens, device=device)
        indices, _ = mi_pruner.greedy_select(scores, visual, min(tokens, count + 1), redundancy="none", ratio=ratio)
        assert (indices >= 0).sum() == count, (ratio, tokens)
        assert mi_pruner.greedy_select(scores, visual, ratio, redundancy="none")[0].shape == (1, count)


def test_halves_rounded_away_from_zero_are_the_floor_of_a_half_more():
    """What the compiled CPU kernels compute, and what the formula says, for every ratio in steps of 0.001."""
    tokens = np.arange(1, 5001)
    for step in range(1, 1001):
        product = step / 1000 * tokens
        whole = np.trunc(product)
        assert np.array_equal(whole + (product - whole >= 0.5), np.floor(product + 0.5))


def test_a_ratio_is_counted_in_float64(device):
    in_float32 = [math.floor(np.float32(r) * np.float32(n) + np.float32(0.5)) for r, n in OTHER_IN_FLOAT32]
    assert all(count != rounded(*pair) for count, pair in zip(in_float32, OTHER_IN_FLOAT32, strict=True))
    check_counts_of_ratios([*OTHER_IN_FLOAT32, (1.0, 77), (5e-324, 9), (1e-3, 499), (1e-3, 1500)], device)


@given(
    s=inputs.samples(),
    ratio=st.floats(1e-3, 1.0),
    share=st.floats(0, 1),
    redundancy=st.sampled_from(inputs.REDUNDANCIES),
    min_gain=st.none() | st.floats(-0.05, 0.05),
)
def test_a_ratio_cuts_the_picks_of_a_count_short(device, s, ratio, share, redundancy, min_gain):
    """Dense and packed, within `keep` or a sample's share; whatever stops a sample earlier still does."""
    s = s.to(device)
    own = rounded(ratio, int(inputs.valid_rows(s).sum()))
    keep, options = max(1, round(share * s.n)), {"redundancy": redundancy, "min_gain": min_gain}
    full, cut = (dense_one(s, keep, **options, **more) for more in ({}, {"ratio": ratio}))
    assert all(inputs.same_bits(a[:own], b[:own]) for a, b in zip(cut[1:3], full[1:3], strict=True))
    assert (cut[1][own:] == -1).all()
    assert (cut[2][own:] == -math.inf).all()
    assert torch.equal(cut[4], cut[1].sort(stable=True).values.roll(-int((cut[1] < 0).sum())))
    arguments, priors = pack([s], [keep])
    packed = (
        *scores_and_picks(arguments, priors, ratio=ratio, **options),
        *mi_pruner.prune_varlen(*arguments, **priors, ratio=ratio, **options),
    )
    assert all(inputs.same_bits(a, b) for a, b in zip(packed, cut, strict=True))


def test_an_int_is_a_count_and_a_float_a_ratio(device):
    s = inputs.make_sample("separated", 8, 2, 4).to(device)
    for keep, count in ((1, 1), (1.0, 8), (8, 8), (0.5, 4), (0.0625, 1), (0.1875, 2), (1e-9, 1)):
        for call in (mi_pruner.prune, mi_pruner.greedy_select):
            first = s.text[None] if call is mi_pruner.prune else torch.zeros(1, 8, device=device)
            arguments = (s.visual[None], first) if call is mi_pruner.prune else (first, s.visual[None])
            assert call(*arguments, keep)[-1].shape == (1, count)
