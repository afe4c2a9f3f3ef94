"""The arithmetic of a greedy step, the order of picks, and how many there may be: for every way of selecting."""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import fill, fill_unowned

ABSENT = tl.constexpr(-(2**63))  # below every key
UNRANKED = tl.constexpr(-(2**31))
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def gain_rank(gain):
    """int32 in the order of gains; -0 counts as 0, and NaN, where a token can't be picked, is below all."""
    bits = tl.where(gain == 0, 0.0, gain).to(tl.int32, bitcast=True)
    return tl.where(gain == gain, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), UNRANKED)


@triton.jit
def rank_key(rank, index):
    """int64 keys in the order of picks: larger gain first, then lower index; ABSENT where a token can't be picked."""
    key = (rank.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)
    return tl.where(rank == UNRANKED, ABSENT, key)


@triton.jit
def gain_key(gain, index):
    """ABSENT for a gain of NaN."""
    return rank_key(gain_rank(gain), index)


@triton.jit
def key_gain(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def ranked_score(score, available):
    """A score to rank by: NaN counts as -inf, and stands for a token that can't be picked."""
    return tl.where(available, tl.where(score == score, score, float("-inf")), float("nan"))


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
def added_redundancy(rho, log_kernel, log_z, log2_prior, pick_log2_prior, step, REDUNDANCY: tl.constexpr):
    """Σ or max of R[i, s] over the picks, from that over all but the last of the `step` picks, of normalised priors.
    Of tokens that can't be picked, it is not looked at."""
    log_r = log_kernel - log_z
    extra = tl.exp2(tl.fma(log_r, LOG2_E, log2_prior)) * log_r
    if REDUNDANCY == "chain":
        extra = extra * tl.exp2(pick_log2_prior)
    return tl.where(step == 1, extra, tl.maximum(rho, extra)) if REDUNDANCY == "max" else rho + extra


@triton.jit
def gain_of(score, rho, weight, step, REDUNDANCY: tl.constexpr):
    """Marginal gains after `step` picks: the score minus `weight` times the redundancy with them, 0 before any."""
    if REDUNDANCY == "mean":
        weight = weight / tl.maximum(step, 1)
    return tl.fma(rho, -weight, score)


@triton.jit
def best_keys(gain, at, TOKENS: tl.constexpr):
    """The largest key of each 128 tokens in a row, (TOKENS // 128,), whose gains are NaN where one can't be picked.

    Most of a reduction, without 64-bit numbers: a lane's four neighbours, then a warp by `redux`. As long as a token
    can be picked, some gain is there: scores are no NaN, and ρ is finite, since π K / Z, with Z a sum of such terms, is
    at most 1."""
    gains, places = tl.reshape(gain, (TOKENS // 4, 4)), tl.reshape(at, (TOKENS // 4, 4))
    top = tl.max(gains, axis=1)
    first = tl.min(tl.where(gains == top[:, None], places, 0x7FFFFFFF), axis=1)
    ranks, places = tl.reshape(gain_rank(top), (TOKENS // 128, 32)), tl.reshape(first, (TOKENS // 128, 32))
    best = tl.max(ranks, axis=1)
    return rank_key(best, tl.min(tl.where(ranks == best[:, None], places, 0x7FFFFFFF), axis=1))


@triton.jit
def finish_slots(index_ptr, gain_ptr, slot, used, slots, cu_ptr, sample, samples, total, longest):
    """-1 and -inf in the slots that a sample did not use, and in those of no sample."""
    fill(index_ptr + slot, -1, used, slots)
    fill(gain_ptr + slot, float("-inf"), used, slots)
    fill_unowned(index_ptr, -1, 1, cu_ptr, sample, samples, total, longest)
    fill_unowned(gain_ptr, float("-inf"), 1, cu_ptr, sample, samples, total, longest)
