"""Scores by the histogram estimator: the mutual information between the coordinates of two vectors.

Two kernels. `bin_kernel`, a program for BIN_ROWS tokens, reads their features twice: for extremes and squared norms,
then for the bin of each coordinate, a byte; ABSENT_BIN in absent tokens and in the padding of D. `histogram_kernel`, a
program for TILE_ROWS / BINS visual tokens of a sample, counts the cells of all their histograms with the text on the
tensor cores: a row of the one operand is 1 where the coordinates of a token fall into one bin, 0 elsewhere; a column of
the other likewise; their product over D is a tile of whole histograms, TILE_COLUMNS / BINS text tokens wide. fp16 holds
0 and 1, and fp32 every count up to 2²⁴, so that counts are exact. Marginals are sums over a histogram's rows and
columns. Where D coordinates fall nowhere (absent tokens) or into one bin (a constant vector), the information is 0.
Cost: 2·BINS²·D flops a pair; bytes: the features twice (the second time from L2), the bins once a tile of the other
operand, from L2. Bound by forming the operands, some 4 instructions an element: for D = 4096 and 16 bins about 1,000
cycles of a multiprocessor a pair, where the product takes 500. `tl.histogram` has no product, but votes over the lanes
for each bit of a cell, then for each cell: some 60 instructions for 32 coordinates of each pair, about 2,000 cycles.
Determinism: counts are integers; a pair's information is summed over its cells in an order that nothing changes, scores
over the text in the order of its tiles. Nothing depends on the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import COUNTS, first_row, inverse_norm, log_total, log_weight, span

BIN_ROWS, BIN_CHUNK = 4, 512  # 16 coordinates a lane
TILE_ROWS, TILE_COLUMNS = 64, 64  # 32 accumulators a lane of 4 warps, and as many p log p; 128 rows would spill
TILE_DEPTH = 64  # 16 KB of operands
_ABSENT_BIN = tl.constexpr(255)


@triton.jit(do_not_specialize=COUNTS)
def bin_kernel(
    feature_ptr,
    batch_stride,
    stride,
    longest,
    dim,
    bins,
    programs,
    inverse_ptr,
    bin_ptr,
    bin_stride,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """1 / norm (total,) and the bins (total, bin_stride) of dense tokens (B, longest, dim)."""
    sample = tl.program_id(0) // programs
    rows = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS)
    start, count = span(None, sample, 0, longest)
    row_at = first_row(feature_ptr, batch_stride, stride, None, sample, start) + rows.to(tl.int64)[:, None] * stride
    inside = (rows < count)[:, None]
    lane = tl.arange(0, CHUNK)[None, :]
    squares = tl.zeros((ROWS, CHUNK), tl.float32)
    low = tl.full((ROWS, CHUNK), float("inf"), tl.float32)
    high = tl.full((ROWS, CHUNK), float("-inf"), tl.float32)
    for d in range(0, dim, CHUNK):
        mask = inside & (d + lane < dim)
        x = tl.load(row_at + d + lane, mask=mask, other=0.0).to(tl.float32)
        squares += x * x
        low = tl.where(mask, tl.minimum(low, x), low)
        high = tl.where(mask, tl.maximum(high, x), high)
    inverse = inverse_norm(tl.sum(squares, axis=1))
    tl.store(inverse_ptr + start + rows, inverse, mask=rows < count)
    least = tl.min(low, axis=1)
    scale = tl.div_rn(tl.zeros((ROWS,), tl.float32) + bins, tl.max(high, axis=1) - least)
    scale = tl.where((scale > 0) & (scale < float("inf")), scale, 0.0)[:, None]
    finite = (inverse == inverse)[:, None]
    bin_at = bin_ptr + (start + rows)[:, None] * bin_stride
    for d in range(0, bin_stride, CHUNK):
        mask = inside & (d + lane < dim)
        x = tl.load(row_at + d + lane, mask=mask, other=0.0).to(tl.float32)
        place = tl.where(finite & mask & (scale > 0), (x - least[:, None]) * scale, 0.0).to(tl.int32)
        value = tl.where(finite & mask, tl.minimum(place, bins - 1), _ABSENT_BIN)
        tl.store(bin_at + d + lane, value.to(tl.uint8), mask=inside & (d + lane < bin_stride))


@triton.jit
def _p_log_p(counts, dim):
    """p log p of p = counts / dim; exactly 0 for none and for all."""
    p = tl.div_rn(counts, tl.zeros_like(counts) + dim)
    return p * tl.log(tl.where(counts > 0, p, 1.0))


@triton.jit
def _information(counts, dim, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BINS: tl.constexpr):
    """I (ROWS, COLUMNS) in nats of a tile of histograms (ROWS · BINS, COLUMNS · BINS)."""
    cells = tl.reshape(counts, (ROWS, BINS, COLUMNS, BINS))
    joint = tl.sum(tl.sum(_p_log_p(cells, dim), axis=3), axis=1)
    of_row = tl.sum(_p_log_p(tl.sum(cells, axis=3), dim), axis=1)
    of_column = tl.sum(_p_log_p(tl.sum(cells, axis=1), dim), axis=2)
    return tl.where((of_row == 0) | (of_column == 0), 0.0, joint - of_row - of_column)


@triton.jit(do_not_specialize=COUNTS)
def histogram_kernel(
    visual_bin_ptr,
    longest_visual,
    visual_prior_ptr,
    visual_inverse_ptr,
    text_bin_ptr,
    longest_text,
    text_prior_ptr,
    text_inverse_ptr,
    bin_stride,
    dim,
    programs,
    score_ptr,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    sample = tl.program_id(0) // programs
    first = tl.program_id(0) % programs * ROWS
    start, count = span(None, sample, 0, longest_visual)
    text_start, text_count = span(None, sample, 0, longest_text)
    depth = tl.arange(0, DEPTH)
    line, column = tl.arange(0, ROWS * BINS), tl.arange(0, COLUMNS * BINS)
    rows = first + tl.arange(0, ROWS)
    line_mask = (first + line // BINS < count)[:, None]
    line_at = visual_bin_ptr + (start + first + line // BINS)[:, None] * bin_stride + depth[None, :]
    weight_total, _ = log_total(text_prior_ptr, text_inverse_ptr, text_start, text_count)
    scores = tl.zeros((ROWS,), tl.float32)
    for first_text in range(0, text_count, COLUMNS):
        column_mask = (first_text + column // BINS < text_count)[None, :]
        column_at = text_bin_ptr + (text_start + first_text + column // BINS)[None, :] * bin_stride + depth[:, None]
        counts = tl.zeros((ROWS * BINS, COLUMNS * BINS), tl.float32)
        for d in range(0, bin_stride, DEPTH):
            a = tl.load(line_at + d, mask=line_mask, other=_ABSENT_BIN)
            b = tl.load(column_at + d, mask=column_mask, other=_ABSENT_BIN)
            of_line = (a == (line % BINS).to(tl.uint8)[:, None]).to(tl.float16)
            of_column = (b == (column % BINS).to(tl.uint8)[None, :]).to(tl.float16)
            counts = tl.dot(of_line, of_column, counts)
        words = first_text + tl.arange(0, COLUMNS)
        inverse = tl.load(text_inverse_ptr + text_start + words, mask=words < text_count, other=float("nan"))
        log_w = log_weight(text_prior_ptr, text_start + words, inverse, words < text_count)
        weight = tl.where(log_w > float("-inf"), tl.exp(log_w - weight_total), 0.0)
        scores += tl.sum(weight[None, :] * _information(counts, dim, ROWS, COLUMNS, BINS), axis=1)
    inverse = tl.load(visual_inverse_ptr + start + rows, mask=rows < count, other=float("nan"))
    valid = log_weight(visual_prior_ptr, start + rows, inverse, rows < count) > float("-inf")
    tl.store(score_ptr + start + rows, tl.where(valid, scores, 0.0), mask=rows < count)
