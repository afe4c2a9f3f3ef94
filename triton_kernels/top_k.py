"""Selection without redundancy: a token's place is the number of keys above its own.

Mapping: a program ranks ROWS tokens against all of their sample, a chunk at a time.
Cost: N² comparisons, N · (N / ROWS) · 12 bytes from L2. Bound by the comparisons; for 32768 tokens 1 G of them.
Ties and determinism: keys are unique (gain, then lower index), so that every place is taken once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .step import ABSENT, finish_slots, gain_key, key_gain, pick_limit, ranked_score
from .tokens import COUNTS, log_weight, span

TOP_K_ROWS, TOP_K_CHUNK = 32, 256  # 64 comparisons a lane and step of 4 warps


@triton.jit(do_not_specialize=COUNTS)
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
    ratio_bits,
    min_gain,
    index_ptr,
    gain_ptr,
    samples,
    programs,
    STOPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    which = tl.program_id(0) % programs
    sample = tl.program_id(0) // programs
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    rows = which * ROWS + tl.arange(0, ROWS)
    mine, _ = _score_keys(score_ptr, visual_prior_ptr, inverse_ptr, start, rows, count, min_gain, STOPS)
    rank = tl.zeros((ROWS,), tl.int32)
    eligible = 0
    valid = 0
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        others, present = _score_keys(score_ptr, visual_prior_ptr, inverse_ptr, start, at, count, min_gain, STOPS)
        rank += tl.sum((others[None, :] > mine[:, None]).to(tl.int32), axis=1)
        eligible += tl.sum((others != ABSENT).to(tl.int32), axis=0)
        valid += tl.sum(present.to(tl.int32), axis=0)
    limit = tl.minimum(pick_limit(slots, valid, budget_ptr, ratio_bits, sample), eligible)
    picked = (mine != ABSENT) & (rank < limit)
    tl.store(index_ptr + slot + rank, rows.to(tl.int64), mask=picked)
    tl.store(gain_ptr + slot + rank, key_gain(mine), mask=picked)
    if which == 0:
        finish_slots(index_ptr, gain_ptr, slot, limit, slots, cu_keep_ptr, sample, samples, keep_total, longest_keep)


@triton.jit
def _score_keys(score_ptr, prior_ptr, inverse_ptr, start, at, count, min_gain, STOPS: tl.constexpr):
    """Keys of tokens, ABSENT for those that can't be picked; and which are valid."""
    mask = at < count
    inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
    valid = log_weight(prior_ptr, start + at, inverse, mask) > float("-inf")
    score = ranked_score(tl.load(score_ptr + start + at, mask=mask, other=0.0), valid)
    return gain_key(tl.where(score >= min_gain, score, float("nan")) if STOPS else score, at), valid
