"""Rows of log K for the candidates of `greedy_on_rows.py`, and their normalisers; the state that its kernels share.

Mapping: program = tile of ROWS tokens × COLUMNS candidates. Cost: see there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .normaliser import combined_parts
from .similarity import cosine_tile, log_kernel, normaliser_part
from .tokens import COUNTS, first_row, log_weight, span

# 128: a round's steps outweigh its fixed cost, and `visual` is read once for two tiles of columns.
BLOCK = 128
# A sample's state: picks made, picks allowed, candidates that wait for rows, blocks of rows computed.
STEP, LIMIT, WAITING, BLOCKS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
STATE = tl.constexpr(4)


@triton.jit
def store_log_z(part_top_ptr, part_sum_ptr, candidate_ptr, prior_total, log_z_ptr, parts, BLOCK: tl.constexpr):
    """log Z of a block's candidates, from the parts that their tiles left."""
    column = tl.arange(0, BLOCK)
    mask = tl.load(candidate_ptr + column) >= 0
    log_z = combined_parts(part_top_ptr + column, part_sum_ptr + column, BLOCK, parts, mask)
    tl.store(log_z_ptr + column, log_z - prior_total, mask=mask)
    tl.debug_barrier()  # any lane reads them next


@triton.jit
def candidate_tile(
    visual_ptr,
    visual_stride,
    start,
    count,
    visual_prior_ptr,
    candidate_ptr,
    row_ptr,
    row_stride,
    part_top_ptr,
    part_sum_ptr,
    row_tile,
    column_tile,
    dim,
    kappa,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """log K of a tile of tokens with a tile of candidates, and its parts of their normalisers."""
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    columns = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    tokens = tl.load(candidate_ptr + columns)
    mask = tokens >= 0
    cosines, row_inverse, _ = cosine_tile(
        visual_ptr,
        visual_stride,
        rows,
        count,
        visual_ptr,
        visual_stride,
        tokens,
        mask,
        dim,
        ROWS,
        COLUMNS,
        DEPTH,
        WIDEN,
        PRECISION,
    )
    log_prior = log_weight(visual_prior_ptr, start + rows, row_inverse, rows < count)
    at = row_ptr + columns[None, :].to(tl.int64) * row_stride + rows[:, None]
    log_kernels = log_kernel(cosines, kappa)
    tl.store(at, log_kernels, mask=(rows < count)[:, None] & mask[None, :])
    top, total = normaliser_part(log_kernels, log_prior)
    tl.store(part_top_ptr + row_tile * BLOCK + columns, top, mask=mask)
    tl.store(part_sum_ptr + row_tile * BLOCK + columns, total, mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def rows_kernel(
    visual_ptr,
    visual_batch_stride,
    visual_stride,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    dim,
    kappa,
    state_ptr,
    candidate_ptr,
    row_ptr,
    row_stride,
    row_slots,
    part_top_ptr,
    part_sum_ptr,
    row_tiles,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    column_tile = tl.program_id(0) % (BLOCK // COLUMNS)
    row_tile = tl.program_id(0) // (BLOCK // COLUMNS) % row_tiles
    sample = tl.program_id(0) // (BLOCK // COLUMNS) // row_tiles
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    state_ptr += sample * STATE
    if (tl.load(state_ptr + WAITING) > 0) & (row_tile * ROWS < count):
        visual_ptr = first_row(visual_ptr, visual_batch_stride, visual_stride, cu_visual_ptr, sample, start)
        first_slot = sample.to(tl.int64) * row_slots + tl.load(state_ptr + BLOCKS) * BLOCK
        candidate_tile(
            visual_ptr,
            visual_stride,
            start,
            count,
            visual_prior_ptr,
            candidate_ptr + sample * BLOCK,
            row_ptr + first_slot * row_stride,
            row_stride,
            part_top_ptr + sample.to(tl.int64) * row_tiles * BLOCK,
            part_sum_ptr + sample.to(tl.int64) * row_tiles * BLOCK,
            row_tile,
            column_tile,
            dim,
            kappa,
            BLOCK,
            ROWS,
            COLUMNS,
            DEPTH,
            WIDEN,
            PRECISION,
        )
