"""Greedy selection of a sample by one program: the gains stay in registers, a step reads one row of cosines.

Algorithm: a step takes the largest gain (the lowest index among equals: both in one 64-bit key, one reduction), stores
it, and adds the redundancy of the pick with every token, R[i, s] = π_i exp(ℓ) ℓ with ℓ = (cos - 1)/h² - log Z_s.
Mapping: program = sample; token = lane.
Cost a step: N exponentials, one reduction, N floats read. Bound by latency: K × (reduction + row read).
Determinism: no sum crosses lanes; the sum over picks runs in their order.
For more tokens than a program's registers hold see `rows.py`, which takes its arithmetic from here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import COUNTS, fill, fill_unowned, log_weight, span

ABSENT = tl.constexpr(-(2**63))  # below every key


@triton.jit
def gain_key(gain, index, available):
    """int64 keys in the order of picks: larger gain first, then lower index."""
    bits = tl.where(gain == 0, 0.0, gain).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(available, (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64), ABSENT)


@triton.jit
def key_gain(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def ranked_score(score):
    """A score to rank by: NaN counts as -inf."""
    return tl.where(score == score, score, float("-inf"))


@triton.jit
def pick_limit(slots, valid, budget_ptr, ratio_bits, sample):
    """How many picks a sample may have: its slots, its valid tokens, its budget (clamped), a ratio of the valid."""
    limit = tl.minimum(slots, valid)
    if ratio_bits is not None:
        ratio = ratio_bits.to(tl.int64).to(tl.float64, bitcast=True)
        limit = tl.minimum(limit, tl.maximum((ratio * valid.to(tl.float64) + 0.5).to(tl.int32), 1))
    if budget_ptr is not None:
        limit = tl.minimum(tl.maximum(tl.load(budget_ptr + sample), 0), limit).to(tl.int32)
    return limit


@triton.jit
def added_redundancy(rho, cosines, log_z, log_prior, pick_log_prior, kappa, step, REDUNDANCY: tl.constexpr):
    """Σ or max of R[i, s] over the picks, from that over all but the last of the `step` picks, of normalised priors."""
    present = log_prior > float("-inf")
    log_r = tl.where(present, (cosines - 1) * kappa - log_z, 0.0)
    extra = tl.where(present, tl.exp(tl.where(present, log_r + log_prior, 0.0)) * log_r, 0.0)
    if REDUNDANCY == "chain":
        extra = extra * tl.exp(pick_log_prior)
    return tl.where(step == 1, extra, tl.maximum(rho, extra)) if REDUNDANCY == "max" else rho + extra


@triton.jit
def gain_of(score, rho, weight, step, REDUNDANCY: tl.constexpr):
    """Marginal gains after `step` picks: the score minus `weight` times the redundancy with them."""
    if REDUNDANCY == "mean":
        weight = weight / tl.maximum(step, 1)
    return tl.where(step > 0, score - weight * rho, score)


@triton.jit(do_not_specialize=COUNTS)
def greedy_kernel(
    score_ptr,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    inverse_ptr,
    gram_ptr,
    gram_stride,
    log_z_ptr,
    log_total_ptr,
    kappa,
    weight,
    cu_keep_ptr,
    keep_total,
    longest_keep,
    budget_ptr,
    ratio_bits,
    min_gain,
    index_ptr,
    gain_ptr,
    samples,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    sample = tl.program_id(0)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    at = tl.arange(0, TOKENS)
    mask = at < count
    inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
    weights = log_weight(visual_prior_ptr, start + at, inverse, mask)
    available = weights > float("-inf")
    limit = pick_limit(slots, tl.sum(available.to(tl.int32), axis=0), budget_ptr, ratio_bits, sample)
    log_prior = tl.where(available, weights - tl.load(log_total_ptr + sample), float("-inf"))
    score = ranked_score(tl.load(score_ptr + start + at, mask=mask, other=0.0))
    rho = tl.zeros((TOKENS,), tl.float32)
    step = 0
    while step < limit:
        key = tl.max(gain_key(gain_of(score, rho, weight, step, REDUNDANCY), at, available), axis=0)
        pick = key_index(key)
        best = key_gain(key)
        if STOPS and best < min_gain:
            limit = step
        else:
            tl.store(index_ptr + slot + step, pick.to(tl.int64))
            tl.store(gain_ptr + slot + step, best)
            available = available & (at != pick)
            step += 1
            row = tl.load(gram_ptr + (start + pick) * gram_stride + at, mask=mask, other=0.0)
            log_z = tl.load(log_z_ptr + start + pick)
            pick_log_prior = 0.0
            if REDUNDANCY == "chain":
                pick_log_prior = tl.max(tl.where(at == pick, log_prior, float("-inf")), axis=0)
            rho = added_redundancy(rho, row, log_z, log_prior, pick_log_prior, kappa, step, REDUNDANCY)
    finish_slots(index_ptr, gain_ptr, slot, step, slots, cu_keep_ptr, sample, samples, keep_total, longest_keep)


@triton.jit
def finish_slots(index_ptr, gain_ptr, slot, used, slots, cu_ptr, sample, samples, total, longest):
    """-1 and -inf in the slots that a sample did not use, and in those of no sample."""
    fill(index_ptr + slot, -1, used, slots)
    fill(gain_ptr + slot, float("-inf"), used, slots)
    fill_unowned(index_ptr, -1, 1, cu_ptr, sample, samples, total, longest)
    fill_unowned(gain_ptr, float("-inf"), 1, cu_ptr, sample, samples, total, longest)
