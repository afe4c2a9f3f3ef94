"""Greedy selection of a sample by one program: the gains stay in registers, a step reads one row of log K.

Algorithm: a step takes the largest gain (the lowest index among equals), stores it, and adds the redundancy of the pick
with every token, R[i, s] = π_i exp(ℓ) ℓ with ℓ = log K(v_i, v_s) - log Z_s. A token that can't be picked has a score of
NaN; its ρ is computed, too, and never looked at.
Mapping: program = sample; token = lane.
Cost a step: N exponentials, one reduction, N floats read. Bound by latency: K × (reduction + row read).
Determinism: no sum crosses lanes; the sum over picks runs in their order.
For more tokens than a program's registers hold see `greedy_in_chunks.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .step import (
    LOG2_E,
    added_redundancy,
    best_keys,
    finish_slots,
    gain_of,
    key_gain,
    key_index,
    pick_limit,
    ranked_score,
)
from .tokens import COUNTS, in_fours, log_weight, span


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
    log2_prior = tl.where(available, weights - tl.load(log_total_ptr + sample), float("-inf")) * LOG2_E
    score = ranked_score(tl.load(score_ptr + start + at, mask=mask, other=0.0), available)
    rho = tl.zeros((TOKENS,), tl.float32)
    step = 0
    while step < limit:
        key = tl.max(best_keys(gain_of(score, rho, weight, step, REDUNDANCY), at, TOKENS), axis=0)
        pick = key_index(key)
        best = key_gain(key)
        if STOPS and best < min_gain:
            limit = step
        else:
            tl.store(index_ptr + slot + step, pick.to(tl.int64))
            tl.store(gain_ptr + slot + step, best)
            score = tl.where(at == pick, float("nan"), score)
            step += 1
            row = tl.load(gram_ptr + (start + pick) * gram_stride + at, mask=in_fours(at, count), other=0.0)
            log_z = tl.load(log_z_ptr + start + pick)
            pick_log2_prior = 0.0
            if REDUNDANCY == "chain":
                pick_log2_prior = tl.max(tl.where(at == pick, log2_prior, float("-inf")), axis=0)
            rho = added_redundancy(rho, row, log_z, log2_prior, pick_log2_prior, step, REDUNDANCY)
    finish_slots(index_ptr, gain_ptr, slot, step, slots, cu_keep_ptr, sample, samples, keep_total, longest_keep)
