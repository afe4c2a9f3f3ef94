"""Greedy selection of a sample of many tokens by one program: they lie in memory, and a step takes them in chunks.

Algorithm: that of `greedy_on_gram.py`. A pass adds the redundancy of the last pick, which it reads from one row of
log K, and finds the next.
Mapping: one program, for one sample; of a chunk, token = lane. The launches of a batch follow one another: log K of all
pairs of a sample is large, and the next sample's takes its place (`long_launches.py`).
Cost a step: N exponentials, 4 floats a token read and 1 written, one reduction: 20 N bytes through one multiprocessor,
which bounds it.
Determinism, bits: as there, by the same arithmetic. A packed sample may run here that alone would run there.
Barriers: what a lane stored another may read, in the next pass or as the pick's prior.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .step import (
    ABSENT,
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
from .tokens import COUNTS, first_gram_row, in_fours, log_weight, span

STEP_CHUNK = 4096  # 8 tokens a lane of 16 warps


@triton.jit
def _start(
    score_ptr,
    visual_prior_ptr,
    inverse_ptr,
    start,
    count,
    prior_total,
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    CHUNK: tl.constexpr,
):
    """Writes the state before the first pick, and counts the valid tokens. `rank`: scores, NaN where a token can't be
    picked (any more)."""
    numbers = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        mask = at < count
        inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
        weight = log_weight(visual_prior_ptr, start + at, inverse, mask)
        score = tl.load(score_ptr + start + at, mask=mask, other=0.0)
        available = weight > float("-inf")
        numbers += available.to(tl.int32)
        log2_prior = tl.where(available, weight - prior_total, float("-inf")) * LOG2_E
        mask = in_fours(at, count)
        tl.store(rank_ptr + at, ranked_score(score, available), mask=mask)
        tl.store(rho_ptr + at, tl.zeros((CHUNK,), tl.float32), mask=mask)
        tl.store(log2_prior_ptr + at, log2_prior, mask=mask)
    tl.debug_barrier()
    return tl.sum(numbers, axis=0)


@triton.jit
def _pass(
    gram_ptr,
    gram_stride,
    log_z_ptr,
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    count,
    pick,
    weight,
    step,
    REDUNDANCY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the redundancy with `pick` (none if negative) and returns the best key."""
    best = tl.full((CHUNK // 128,), ABSENT, tl.int64)
    new = pick >= 0
    row_ptr = gram_ptr + pick.to(tl.int64) * gram_stride
    log_z = tl.load(log_z_ptr + pick, mask=new, other=0.0)
    pick_log2_prior = 0.0
    if REDUNDANCY == "chain":
        pick_log2_prior = tl.load(log2_prior_ptr + pick, mask=new, other=0.0)
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        mask = in_fours(at, count)
        rank = tl.load(rank_ptr + at, mask=mask, other=float("nan"))
        rho = tl.load(rho_ptr + at, mask=mask, other=0.0)
        log2_prior = tl.load(log2_prior_ptr + at, mask=mask & new, other=float("-inf"))
        row = tl.load(row_ptr + at, mask=mask & new, other=0.0)
        added = added_redundancy(rho, row, log_z, log2_prior, pick_log2_prior, step, REDUNDANCY)
        rho = tl.where(new, added, rho)
        rank = tl.where(at == pick, float("nan"), rank)
        tl.store(rho_ptr + at, rho, mask=mask & new)
        best = tl.maximum(best, best_keys(gain_of(rank, rho, weight, step, REDUNDANCY), at, CHUNK))
    tl.store(rank_ptr + pick, float("nan"), mask=new)
    tl.debug_barrier()
    return tl.max(best, axis=0)


@triton.jit(do_not_specialize=COUNTS)
def chunked_greedy_kernel(
    score_ptr,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    inverse_ptr,
    gram_ptr,
    gram_rows,
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
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    index_ptr,
    gain_ptr,
    sample,
    samples,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    valid = _start(
        score_ptr,
        visual_prior_ptr,
        inverse_ptr,
        start,
        count,
        tl.load(log_total_ptr + sample),
        rank_ptr,
        rho_ptr,
        log2_prior_ptr,
        CHUNK,
    )
    limit = pick_limit(slots, valid, budget_ptr, ratio_bits, sample)
    gram_ptr += first_gram_row(start, visual_total, gram_rows) * gram_stride
    pick = tl.full((), -1, tl.int32)
    step = 0
    while step < limit:
        best = _pass(
            gram_ptr,
            gram_stride,
            log_z_ptr + start,
            rank_ptr,
            rho_ptr,
            log2_prior_ptr,
            count,
            pick,
            weight,
            step,
            REDUNDANCY,
            CHUNK,
        )
        pick = key_index(best)
        gain = key_gain(best)
        if STOPS and gain < min_gain:
            limit = step
        else:
            tl.store(index_ptr + slot + step, pick.to(tl.int64))
            tl.store(gain_ptr + slot + step, gain)
            step += 1
    finish_slots(index_ptr, gain_ptr, slot, step, slots, cu_keep_ptr, sample, samples, keep_total, longest_keep)
