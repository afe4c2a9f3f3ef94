"""The arithmetic of a greedy step, the order of picks, and how many there may be: for every way of selecting."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import fill, fill_unowned

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


@triton.jit
def finish_slots(index_ptr, gain_ptr, slot, used, slots, cu_ptr, sample, samples, total, longest):
    """-1 and -inf in the slots that a sample did not use, and in those of no sample."""
    fill(index_ptr + slot, -1, used, slots)
    fill(gain_ptr + slot, float("-inf"), used, slots)
    fill_unowned(index_ptr, -1, 1, cu_ptr, sample, samples, total, longest)
    fill_unowned(gain_ptr, float("-inf"), 1, cu_ptr, sample, samples, total, longest)
