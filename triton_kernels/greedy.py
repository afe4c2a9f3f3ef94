"""Greedy selection of a sample by one program: the gains stay in registers, a step reads one row of cosines.

Algorithm: a step takes the largest gain (the lowest index among equals: both in one 64-bit key, one reduction), stores
it, and adds the redundancy of the pick with every token, R[i, s] = π_i exp(ℓ) ℓ with ℓ = (cos - 1)/h² - log Z_s.
Mapping: program = sample; token = lane.
Cost a step: N exponentials, one reduction, N floats read. Bound by latency: K × (reduction + row read).
Determinism: no sum crosses lanes; the sum over picks runs in their order.
`top_k_kernel` is the case without redundancy: a token's rank is the number of keys above its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import log_total, log_weight, span

_ABSENT = tl.constexpr(-(2**63))  # below every key


@triton.jit
def gain_key(gain, index, available):
    """int64 keys in the order of picks: larger gain first, then lower index."""
    bits = tl.where(gain == 0, 0.0, gain).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(available, (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64), _ABSENT)


@triton.jit
def key_gain(key):
    ordered = (key >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def key_index(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def redundancy(cosines, log_z, log_prior, kappa):
    """R[i, s] of the tokens i whose normalised log prior is given; 0 where it is -inf."""
    present = log_prior > float("-inf")
    log_r = tl.where(present, (cosines - 1) * kappa - log_z, 0.0)
    return tl.where(present, tl.exp(tl.where(present, log_r + log_prior, 0.0)) * log_r, 0.0)


@triton.jit
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
    kappa,
    weight,
    cu_keep_ptr,
    keep_total,
    longest_keep,
    budget_ptr,
    min_gain,
    index_ptr,
    gain_ptr,
    SAMPLES: tl.constexpr,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    sample = tl.program_id(0)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual, SAMPLES)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep, SAMPLES)
    total, valid = log_total(visual_prior_ptr, inverse_ptr, start, count)
    limit = tl.minimum(slots, valid)
    if budget_ptr is not None:
        limit = tl.minimum(tl.maximum(tl.load(budget_ptr + sample), 0), limit).to(tl.int32)
    at = tl.arange(0, TOKENS)
    mask = at < count
    inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
    weights = log_weight(visual_prior_ptr, start + at, inverse, mask)
    available = weights > float("-inf")
    log_prior = weights - tl.where(valid > 0, total, 0.0)
    score = tl.load(score_ptr + start + at, mask=mask, other=0.0)
    score = tl.where(score == score, score, float("-inf"))
    rho = tl.zeros((TOKENS,), tl.float32)
    gain = score
    step = 0
    while step < limit:
        key = tl.max(gain_key(gain, at, available), axis=0)
        pick = key_index(key)
        best = key_gain(key)
        if STOPS and best < min_gain:
            limit = step
        else:
            tl.store(index_ptr + slot + step, pick.to(tl.int64))
            tl.store(gain_ptr + slot + step, best)
            available = available & (at != pick)
            row = tl.load(gram_ptr + (start + pick) * gram_stride + at, mask=mask, other=0.0)
            extra = redundancy(row, tl.load(log_z_ptr + start + pick), log_prior, kappa)
            step += 1
            if REDUNDANCY == "max":
                rho = tl.where(step == 1, extra, tl.maximum(rho, extra))
            elif REDUNDANCY == "chain":
                rho += extra * tl.exp(tl.max(tl.where(at == pick, log_prior, float("-inf")), axis=0))
            else:
                rho += extra
            scale = weight
            if REDUNDANCY == "mean":
                scale = weight / step
            gain = score - scale * rho
    for first in range(step, slots, TOKENS):
        tl.store(index_ptr + slot + first + at, tl.full((TOKENS,), -1, tl.int64), mask=first + at < slots)
        tl.store(gain_ptr + slot + first + at, tl.full((TOKENS,), float("-inf"), tl.float32), mask=first + at < slots)


@triton.jit
def top_k_kernel(
    score_ptr,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    inverse_ptr,
    cu_keep_ptr,
    keep_total,
    longest_keep,
    budget_ptr,
    min_gain,
    index_ptr,
    gain_ptr,
    programs,
    SAMPLES: tl.constexpr,
    STOPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program ranks ROWS tokens against all of the sample. The slots hold -1 and -inf before."""
    which = tl.program_id(0) % programs
    sample = tl.program_id(0) // programs
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual, SAMPLES)
    slot, limit = span(cu_keep_ptr, sample, keep_total, longest_keep, SAMPLES)
    if budget_ptr is not None:
        limit = tl.minimum(tl.maximum(tl.load(budget_ptr + sample), 0), limit).to(tl.int32)
    rows = which * ROWS + tl.arange(0, ROWS)
    mine = _score_keys(score_ptr, visual_prior_ptr, inverse_ptr, start, rows, count)
    rank = tl.zeros((ROWS,), tl.int32)
    for first in range(0, count, CHUNK):
        others = _score_keys(score_ptr, visual_prior_ptr, inverse_ptr, start, first + tl.arange(0, CHUNK), count)
        rank += tl.sum((others[None, :] > mine[:, None]).to(tl.int32), axis=1)
    picked = (mine != _ABSENT) & (rank < limit)
    gain = key_gain(mine)
    if STOPS:
        picked = picked & (gain >= min_gain)
    tl.store(index_ptr + slot + rank, rows.to(tl.int64), mask=picked)
    tl.store(gain_ptr + slot + rank, gain, mask=picked)


@triton.jit
def _score_keys(score_ptr, prior_ptr, inverse_ptr, start, at, count):
    mask = at < count
    inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
    available = log_weight(prior_ptr, start + at, inverse, mask) > float("-inf")
    score = tl.load(score_ptr + start + at, mask=mask, other=0.0)
    return gain_key(tl.where(score == score, score, float("-inf")), at, available)
