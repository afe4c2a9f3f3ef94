"""Norms and cosines in one pass: visual tokens against the text, and against one another.

Algorithm: a tile of ROWS visual tokens times COLUMNS tokens of either kind, summed over D on the tensor cores; squared
norms are summed beside it, and the epilogue divides by them, so that no normalised feature is ever written. A tile of
text columns leaves cosines (total N, M) and its share of the bandwidth rule: the count, mean and sum of squared
deviations of its valid pairs. A tile of visual columns leaves log K transposed (a token's row contiguous) and, for each
column, the tile's part of its normaliser: max and sum of exp over the rows. A launch is for all samples or, where log K
of all would take too much memory, for one.
Mapping: one program a tile; column tiles next to one another share their rows in L2.
Cost: 2·D flops a cosine. Bytes: `visual` once a column tile (from memory once: then L2), its COLUMNS' features once a
row tile, the cosines once. Bound by memory for few text tokens, by the tensor cores for visual columns.
Determinism: an element's sum over D has one order whatever its tile, the batch or N; parts are kept apart, not added
by atomics. fp32 features are multiplied as three TF32 products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import COUNTS, first_gram_row, first_row, inverse_norm, log_weight, span


@triton.jit
def cosine_tile(
    row_ptr,
    row_stride,
    rows,
    row_count,
    column_ptr,
    column_stride,
    columns,
    column_mask,
    dim,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Cosines (ROWS, COLUMNS), inverse norms (ROWS,) and (COLUMNS,). NaN where a row or column is not finite.

    Row i of the tile is token `rows[i]` (absent from `row_count` on), column j token `columns[j]`.
    """
    depth = tl.arange(0, DEPTH)
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    row_squares = tl.zeros((ROWS, DEPTH), tl.float32)
    column_squares = tl.zeros((DEPTH, COLUMNS), tl.float32)
    row_at = row_ptr + rows.to(tl.int64)[:, None] * row_stride + depth[None, :]
    column_at = column_ptr + columns.to(tl.int64)[None, :] * column_stride + depth[:, None]
    for d in range(0, dim, DEPTH):
        inside = d + depth < dim
        a = tl.load(row_at + d, mask=(rows < row_count)[:, None] & inside[None, :], other=0.0)
        b = tl.load(column_at + d, mask=column_mask[None, :] & inside[:, None], other=0.0)
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        row_squares += wide_a * wide_a
        column_squares += wide_b * wide_b
        if WIDEN:  # the interpreter multiplies no bfloat16
            a, b = wide_a, wide_b
        step = tl.dot(a, b, input_precision=PRECISION)
        # Not `+=`, which Triton takes for an accumulator of the tensor cores: they cut off where float32 rounds, and on
        # sm_90 the next features would overwrite those that a product in flight still reads.
        product = tl.fma(step, 1.0, product)
    row_inverse = inverse_norm(tl.sum(row_squares, axis=1))
    column_inverse = inverse_norm(tl.sum(column_squares, axis=0))
    return product * row_inverse[:, None] * column_inverse[None, :], row_inverse, column_inverse


@triton.jit
def log_kernel(cosines, kappa):
    return (cosines - 1) * kappa


@triton.jit
def normaliser_part(log_kernels, log_prior):
    """max and sum of exp, over a tile's rows, of log prior + log K."""
    exponent = tl.where((log_prior > float("-inf"))[:, None], log_prior[:, None] + log_kernels, float("-inf"))
    top = tl.max(exponent, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(tl.exp(exponent - shift[None, :]), axis=0)


@triton.jit(do_not_specialize=COUNTS)
def similarity_kernel(
    visual_ptr,
    visual_batch_stride,
    visual_stride,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    text_ptr,
    text_batch_stride,
    text_stride,
    cu_text_ptr,
    text_total,
    longest_text,
    text_prior_ptr,
    dim,
    kappa,
    visual_inverse_ptr,
    text_inverse_ptr,
    cosine_ptr,
    cosine_stride,
    moment_ptr,
    gram_ptr,
    gram_rows,
    gram_stride,
    part_top_ptr,
    part_sum_ptr,
    first_sample,
    row_tiles,
    text_tiles,
    visual_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0) % (text_tiles + visual_tiles)
    row_tile = tl.program_id(0) // (text_tiles + visual_tiles) % row_tiles
    sample = first_sample + tl.program_id(0) // (text_tiles + visual_tiles) // row_tiles
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    visual_ptr = first_row(visual_ptr, visual_batch_stride, visual_stride, cu_visual_ptr, sample, start)
    rows = row_tile * ROWS + tl.arange(0, ROWS)
    row_mask = rows < count
    is_text = tile < text_tiles
    column_ptr = visual_ptr
    column_stride = visual_stride
    column_count = count
    column_start = start
    if is_text:
        column_start, column_count = span(cu_text_ptr, sample, text_total, longest_text)
        column_ptr = first_row(text_ptr, text_batch_stride, text_stride, cu_text_ptr, sample, column_start)
        column_stride = text_stride
    columns = tl.where(is_text, tile, tile - text_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = columns < column_count
    first_column = tl.where(is_text, tile, tile - text_tiles) * COLUMNS
    # A sample without text still needs the norms of its visual tokens: tile 0 always runs.
    if row_tile * ROWS < count and (first_column < column_count or tile == 0):
        cosines, row_inverse, column_inverse = cosine_tile(
            visual_ptr,
            visual_stride,
            rows,
            count,
            column_ptr,
            column_stride,
            columns,
            column_mask,
            dim,
            ROWS,
            COLUMNS,
            DEPTH,
            WIDEN,
            PRECISION,
        )
        log_prior = log_weight(visual_prior_ptr, start + rows, row_inverse, row_mask)
        if tile == 0:
            tl.store(visual_inverse_ptr + start + rows, row_inverse, mask=row_mask)
        if is_text:
            if row_tile == 0:
                tl.store(text_inverse_ptr + column_start + columns, column_inverse, mask=column_mask)
            text_weight = log_weight(text_prior_ptr, column_start + columns, column_inverse, column_mask)
            pairs = (log_prior > float("-inf"))[:, None] & (text_weight > float("-inf"))[None, :]
            at = cosine_ptr + (start + rows)[:, None] * cosine_stride + columns[None, :]
            tl.store(at, cosines, mask=row_mask[:, None] & column_mask[None, :])
            number = tl.sum(pairs.to(tl.float32))
            mean = tl.sum(tl.where(pairs, cosines, 0.0)) / tl.maximum(number, 1.0)
            deviation = tl.where(pairs, cosines - mean, 0.0)
            moment_ptr += 3 * ((sample * row_tiles + row_tile).to(tl.int64) * text_tiles + tile)
            tl.store(moment_ptr, number)
            tl.store(moment_ptr + 1, mean)
            tl.store(moment_ptr + 2, tl.sum(deviation * deviation))
        else:
            gram_row = first_gram_row(start, visual_total, gram_rows) + columns
            at = gram_ptr + gram_row[None, :] * gram_stride + rows[:, None]
            log_kernels = log_kernel(cosines, kappa)
            tl.store(at, log_kernels, mask=row_mask[:, None] & column_mask[None, :])
            top, total = normaliser_part(log_kernels, log_prior)
            part = row_tile.to(tl.int64) * gram_rows + gram_row
            tl.store(part_top_ptr + part, top, mask=column_mask)
            tl.store(part_sum_ptr + part, total, mask=column_mask)
