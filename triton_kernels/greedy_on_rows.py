"""Greedy selection among many tokens: exact, on rows of log K computed for the best candidates only.

Algorithm: only log K with the *picked* tokens is needed, and what will be picked is nearly known in advance. A round
is two launches. `advance_kernel` takes greedy steps until the best token has no row of log K yet, then lists that
token and the next best without a row: BLOCK candidates. `rows_kernel` (rows.py) computes their rows on all
multiprocessors, and their parts of log Z. The host launches as many rounds as candidates that are picked one time in
six would need (two in three, where memory is short), so it never waits for the device; `finish_kernel` (finish.py)
takes the steps that are left, if any, and computes rows itself: slowly (one multiprocessor), but exactly, whatever the
data. No launch per token, no barrier between programs.
Mapping: `start_`, `advance_` and `finish_kernel`: program = sample, all tokens in chunks a step; `rows_kernel`: program
= tile of ROWS tokens × COLUMNS candidates.
Cost: a step reads 4 and writes 1 floats a token: 20 N bytes through one multiprocessor. A round reads `visual` once:
2 · N · BLOCK · D flops, N · D · itemsize bytes. Bound by the steps (one multiprocessor's share of L2) for small D, by
memory for large D.
Memory: (rounds + 1) · BLOCK · N floats of log K, rounds · BLOCK ≈ 1.5 K to 6 K, and at most N.
Bits: log K, a normaliser and a gain have the bits of `similarity.py` and `greedy_on_gram.py`: a packed sample may
run here that alone would run there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import BLOCKS, LIMIT, STATE, STEP, WAITING, store_log_z
from .step import (
    ABSENT,
    LOG2_E,
    added_redundancy,
    best_keys,
    gain_key,
    gain_of,
    key_gain,
    key_index,
    pick_limit,
    ranked_score,
)
from .tokens import COUNTS, in_fours, log_total, log_weight, span

STEP_CHUNK = 4096  # 8 tokens a lane of 16 warps; a quarter of it, in `finish_kernel`, is a multiple of GROUP
GROUP = tl.constexpr(256)  # tokens that a candidate's successor is looked for among


@triton.jit(do_not_specialize=COUNTS)
def start_kernel(
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
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    row_slot_ptr,
    log_total_ptr,
    state_ptr,
    row_stride,
    CHUNK: tl.constexpr,
):
    """The state before the first pick. `rank`: scores, NaN where a token can't be picked (any more)."""
    sample = tl.program_id(0)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    _, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    total, valid = log_total(visual_prior_ptr, inverse_ptr, start, count)
    limit = pick_limit(slots, valid, budget_ptr, ratio_bits, sample)
    own = sample.to(tl.int64) * row_stride
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        mask = at < count
        inverse = tl.load(inverse_ptr + start + at, mask=mask, other=float("nan"))
        weight = log_weight(visual_prior_ptr, start + at, inverse, mask)
        score = tl.load(score_ptr + start + at, mask=mask, other=0.0)
        available = weight > float("-inf")
        log_prior = tl.where(available, weight - total, float("-inf"))
        mask = in_fours(at, count)
        tl.store(rank_ptr + own + at, ranked_score(score, available), mask=mask)
        tl.store(rho_ptr + own + at, tl.zeros((CHUNK,), tl.float32), mask=mask)
        tl.store(log2_prior_ptr + own + at, log_prior * LOG2_E, mask=mask)
        tl.store(row_slot_ptr + own + at, tl.full((CHUNK,), -1, tl.int32), mask=mask)
    tl.store(log_total_ptr + sample, total)
    at = tl.arange(0, STATE)
    tl.store(state_ptr + sample * STATE + at, tl.where(at == LIMIT, limit, 0))


@triton.jit
def _scan(
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    count,
    row_at,
    log_z,
    pick,
    weight,
    step,
    REDUNDANCY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Adds the redundancy with `pick` (none if negative) and returns the best key."""
    best = tl.full((CHUNK // 128,), ABSENT, tl.int64)
    new = pick >= 0
    pick_log2_prior = 0.0
    if REDUNDANCY == "chain":
        pick_log2_prior = tl.load(log2_prior_ptr + pick, mask=new, other=0.0)
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        mask = in_fours(at, count)
        rank = tl.load(rank_ptr + at, mask=mask, other=float("nan"))
        rho = tl.load(rho_ptr + at, mask=mask, other=0.0)
        log2_prior = tl.load(log2_prior_ptr + at, mask=mask & new, other=float("-inf"))
        row = tl.load(row_at + at, mask=mask & new, other=0.0)
        added = added_redundancy(rho, row, log_z, log2_prior, pick_log2_prior, step, REDUNDANCY)
        rho = tl.where(new, added, rho)
        rank = tl.where(at == pick, float("nan"), rank)
        tl.store(rho_ptr + at, rho, mask=mask & new)
        best = tl.maximum(best, best_keys(gain_of(rank, rho, weight, step, REDUNDANCY), at, CHUNK))
    tl.store(rank_ptr + pick, float("nan"), mask=new)
    tl.debug_barrier()  # the next scan's lanes may read what others stored
    return tl.max(best, axis=0)


@triton.jit
def advance(
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    row_slot_ptr,
    count,
    row_ptr,
    row_stride,
    row_log_z_ptr,
    weight,
    min_gain,
    index_ptr,
    gain_ptr,
    step,
    limit,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Takes steps until the picks are complete or the best token has no row: step, limit, whether a row is missing."""
    missing = 0
    pick = -1
    row_at = row_ptr
    log_z = 0.0
    going = step < limit
    while going:
        best = _scan(rank_ptr, rho_ptr, log2_prior_ptr, count, row_at, log_z, pick, weight, step, REDUNDANCY, CHUNK)
        pick = key_index(best)
        gain = key_gain(best)
        row_slot = tl.load(row_slot_ptr + pick)
        if STOPS and gain < min_gain:
            limit = step
            going = False
        else:
            last = step + 1 == limit
            if (row_slot < 0) & (not last):
                missing = 1
                going = False
            else:
                tl.store(index_ptr + step, pick.to(tl.int64))
                tl.store(gain_ptr + step, gain)
                step += 1
                row_at = row_ptr + tl.maximum(row_slot, 0).to(tl.int64) * row_stride
                log_z = tl.load(row_log_z_ptr + row_slot, mask=row_slot >= 0, other=0.0)  # the last pick may have none
                going = step < limit
    return step, limit, missing


@triton.jit
def _missing_keys(rank_ptr, rho_ptr, row_slot_ptr, at, count, weight, step, REDUNDANCY: tl.constexpr):
    """Keys of the tokens that can be picked and have no row; ABSENT for the others."""
    mask = in_fours(at, count)
    rank = tl.load(rank_ptr + at, mask=mask, other=float("nan"))
    rho = tl.load(rho_ptr + at, mask=mask, other=0.0)
    row_slot = tl.load(row_slot_ptr + at, mask=mask, other=0)
    return gain_key(tl.where(row_slot < 0, gain_of(rank, rho, weight, step, REDUNDANCY), float("nan")), at)


@triton.jit
def choose(
    rank_ptr,
    rho_ptr,
    row_slot_ptr,
    count,
    group_ptr,
    candidate_ptr,
    first_slot,
    weight,
    step,
    REDUNDANCY: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Lists the BLOCK best tokens without a row (-1: there are fewer) and gives them slots for their rows.

    Each group's best key is known; the best of all is taken, and its group searched for the next.
    """
    per_chunk: tl.constexpr = CHUNK // GROUP
    tl.debug_barrier()  # other lanes read here what was stored before: ranks and ρ, and below their groups' keys
    for first in range(0, count, CHUNK):
        at = first + tl.arange(0, CHUNK)
        keys = _missing_keys(rank_ptr, rho_ptr, row_slot_ptr, at, count, weight, step, REDUNDANCY)
        tl.store(
            group_ptr + first // GROUP + tl.arange(0, per_chunk), tl.max(tl.reshape(keys, (per_chunk, GROUP)), axis=1)
        )
    tl.debug_barrier()
    group = tl.arange(0, GROUPS)
    best = tl.load(group_ptr + group, mask=group < tl.cdiv(count, GROUP), other=ABSENT)
    for j in range(BLOCK):
        top = tl.max(best, axis=0)
        token = tl.where(top > ABSENT, key_index(top), -1)
        tl.store(candidate_ptr + j, token)
        taken = tl.maximum(token, 0) // GROUP
        at = taken * GROUP + tl.arange(0, GROUP)
        keys = _missing_keys(rank_ptr, rho_ptr, row_slot_ptr, at, count, weight, step, REDUNDANCY)
        best = tl.where(group == taken, tl.max(tl.where(keys < top, keys, ABSENT), axis=0), best)
    tl.debug_barrier()
    slots = tl.arange(0, BLOCK)
    tokens = tl.load(candidate_ptr + slots)
    tl.store(row_slot_ptr + tokens, first_slot + slots, mask=tokens >= 0)


@triton.jit(do_not_specialize=COUNTS)
def advance_kernel(
    cu_visual_ptr,
    visual_total,
    longest_visual,
    cu_keep_ptr,
    keep_total,
    longest_keep,
    rank_ptr,
    rho_ptr,
    log2_prior_ptr,
    row_slot_ptr,
    log_total_ptr,
    state_ptr,
    group_ptr,
    candidate_ptr,
    row_ptr,
    row_stride,
    row_log_z_ptr,
    row_slots,
    part_top_ptr,
    part_sum_ptr,
    row_tiles,
    weight,
    min_gain,
    index_ptr,
    gain_ptr,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    sample = tl.program_id(0)
    _, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, _ = span(cu_keep_ptr, sample, keep_total, longest_keep)
    state_ptr += sample * STATE
    candidate_ptr += sample * BLOCK
    row_log_z_ptr += sample.to(tl.int64) * row_slots
    own = sample.to(tl.int64) * row_stride
    step, limit = tl.load(state_ptr + STEP), tl.load(state_ptr + LIMIT)
    blocks = tl.load(state_ptr + BLOCKS)
    if step < limit:
        if tl.load(state_ptr + WAITING) > 0:
            store_log_z(
                part_top_ptr + sample.to(tl.int64) * row_tiles * BLOCK,
                part_sum_ptr + sample.to(tl.int64) * row_tiles * BLOCK,
                candidate_ptr,
                tl.load(log_total_ptr + sample),
                row_log_z_ptr + blocks * BLOCK,
                tl.cdiv(count, TILE_ROWS),
                BLOCK,
            )
            blocks += 1
        step, limit, missing = advance(
            rank_ptr + own,
            rho_ptr + own,
            log2_prior_ptr + own,
            row_slot_ptr + own,
            count,
            row_ptr + own * row_slots,
            row_stride,
            row_log_z_ptr,
            weight,
            min_gain,
            index_ptr + slot,
            gain_ptr + slot,
            step,
            limit,
            REDUNDANCY,
            STOPS,
            CHUNK,
        )
        if missing > 0:
            choose(
                rank_ptr + own,
                rho_ptr + own,
                row_slot_ptr + own,
                count,
                group_ptr + sample * GROUPS,
                candidate_ptr,
                blocks * BLOCK,
                weight,
                step,
                REDUNDANCY,
                BLOCK,
                GROUPS,
                CHUNK,
            )
        tl.store(state_ptr + STEP, step)
        tl.store(state_ptr + LIMIT, limit)
        tl.store(state_ptr + WAITING, missing)
        tl.store(state_ptr + BLOCKS, blocks)
