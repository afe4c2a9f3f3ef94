"""The last kernel of the row path: the steps that the planned rounds of `greedy_on_rows.py` left, and all unused slots.

Mapping: program = sample; it computes rows by itself, tile after tile, into the last block of slots, again and again.
Cost: that of `greedy_on_rows.py`, on one multiprocessor a sample; nothing where no step is left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .greedy_on_rows import advance, choose
from .rows import BLOCKS, LIMIT, STATE, STEP, candidate_tile, store_log_z
from .step import finish_slots
from .tokens import COUNTS, first_row, span


@triton.jit(do_not_specialize=COUNTS)
def finish_kernel(
    visual_ptr,
    visual_batch_stride,
    visual_stride,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    dim,
    kappa,
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
    samples,
    REDUNDANCY: tl.constexpr,
    STOPS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sample = tl.program_id(0)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    visual_ptr = first_row(visual_ptr, visual_batch_stride, visual_stride, cu_visual_ptr, sample, start)
    own = sample.to(tl.int64) * row_stride
    rank_ptr += own
    rho_ptr += own
    log2_prior_ptr += own
    row_slot_ptr += own
    candidate_ptr += sample * BLOCK
    row_ptr += own * row_slots
    row_log_z_ptr += sample.to(tl.int64) * row_slots
    part_top_ptr += sample.to(tl.int64) * row_tiles * BLOCK
    part_sum_ptr += sample.to(tl.int64) * row_tiles * BLOCK
    prior_total = tl.load(log_total_ptr + sample)
    state_ptr += sample * STATE
    step, limit = tl.load(state_ptr + STEP), tl.load(state_ptr + LIMIT)
    block = tl.load(state_ptr + BLOCKS)  # of the candidates that wait for their normalisers
    waiting = step < limit
    while waiting:
        store_log_z(
            part_top_ptr,
            part_sum_ptr,
            candidate_ptr,
            prior_total,
            row_log_z_ptr + block * BLOCK,
            tl.cdiv(count, ROWS),
            BLOCK,
        )
        step, limit, missing = advance(
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
            index_ptr + slot,
            gain_ptr + slot,
            step,
            limit,
            REDUNDANCY,
            STOPS,
            CHUNK,
        )
        waiting = missing > 0
        if waiting:
            scratch = row_slots // BLOCK - 1
            if block == scratch:  # the rows there are overwritten
                tokens = tl.load(candidate_ptr + tl.arange(0, BLOCK))
                tl.store(row_slot_ptr + tokens, tl.full((BLOCK,), -1, tl.int32), mask=tokens >= 0)
                tl.debug_barrier()
            block = scratch
            choose(
                rank_ptr,
                rho_ptr,
                row_slot_ptr,
                count,
                group_ptr + sample * GROUPS,
                candidate_ptr,
                block * BLOCK,
                weight,
                step,
                REDUNDANCY,
                BLOCK,
                GROUPS,
                CHUNK,
            )
            tl.debug_barrier()
            for tile in range(tl.cdiv(count, ROWS) * (BLOCK // COLUMNS)):
                candidate_tile(
                    visual_ptr,
                    visual_stride,
                    start,
                    count,
                    visual_prior_ptr,
                    candidate_ptr,
                    row_ptr + block.to(tl.int64) * BLOCK * row_stride,
                    row_stride,
                    part_top_ptr,
                    part_sum_ptr,
                    tile // (BLOCK // COLUMNS),
                    tile % (BLOCK // COLUMNS),
                    dim,
                    kappa,
                    BLOCK,
                    ROWS,
                    COLUMNS,
                    DEPTH,
                    WIDEN,
                    PRECISION,
                )
            tl.debug_barrier()
    finish_slots(index_ptr, gain_ptr, slot, step, slots, cu_keep_ptr, sample, samples, keep_total, longest_keep)
