"""The normalisers over the visual tokens, of every text token and of every visual one, and the bandwidth rule.

`normaliser_kernel`, a program for COLUMNS text tokens and CHUNK visual tokens of a sample, first combines the parts of
the bandwidth rule (in the order of the tiles), then runs over its rows once and leaves its part of Σ_i π_i K(v_i, t_j):
max and sum of exp. Further programs of the same launch combine the parts of the visual-visual normalisers.
Bytes: the cosines once (from L2, where they fit). Flops: an exponential a cosine. Bound by L2.
Determinism: chunks of fixed size in order; none depends on the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .similarity import log_kernel, normaliser_part
from .tokens import COUNTS, add_exp, first_gram_row, log_total, log_weight, span

PARTS = tl.constexpr(128)  # tiles' moments combined at a time
NORMALISER_COLUMNS = 8  # 32 bytes of a row of cosines: one sector of memory
NORMALISER_ROWS = 256
NORMALISER_CHUNK = 2048  # 8 steps a program; at most 16 parts of 32768 tokens for `score_kernel` to combine
_UNROLL = tl.constexpr(4)  # parts loaded at a time: the loads overlap, the sum stays in order; 8 would spill


@triton.jit
def _kappa(moment_ptr, sample, row_tiles, text_tiles, own_rows, own_columns):
    """1/h² by the rule, from the moments of the sample's own tiles."""
    at = tl.arange(0, PARTS)
    moment_ptr += 3 * sample.to(tl.int64) * row_tiles * text_tiles
    numbers = tl.zeros((PARTS,), tl.float32)
    sums = tl.zeros((PARTS,), tl.float32)
    for first in range(0, own_rows * own_columns, PARTS):
        k = first + at
        part = moment_ptr + 3 * (k // own_columns * text_tiles + k % own_columns)
        number = tl.load(part, mask=k < own_rows * own_columns, other=0.0)
        numbers += number
        sums += number * tl.load(part + 1, mask=k < own_rows * own_columns, other=0.0)
    pairs, cosines = tl.split(tl.sum(tl.join(numbers, sums), axis=0))  # one reduction
    total = tl.maximum(pairs, 1.0)
    mean = cosines / total
    squares = tl.zeros((PARTS,), tl.float32)
    for first in range(0, own_rows * own_columns, PARTS):
        k = first + at
        part = moment_ptr + 3 * (k // own_columns * text_tiles + k % own_columns)
        number = tl.load(part, mask=k < own_rows * own_columns, other=0.0)
        off = tl.load(part + 1, mask=k < own_rows * own_columns, other=0.0) - mean
        squares += tl.load(part + 2, mask=k < own_rows * own_columns, other=0.0) + number * off * off
    return 1 / tl.maximum(tl.sqrt(tl.sum(squares, axis=0) / total), 1e-4)


@triton.jit
def combined_parts(top_at, sum_at, stride, parts, mask):
    """log of a normaliser from its `parts` (max, sum of exp), which lie `stride` apart, in their order."""
    top = tl.where(mask, float("-inf"), float("-inf"))
    total = tl.where(mask, 0.0, 0.0)
    for first in range(0, parts, _UNROLL):
        for k in tl.static_range(_UNROLL):
            there = mask & (first + k < parts)
            part_top = tl.load(top_at + k * stride, mask=there, other=float("-inf"))
            part_sum = tl.load(sum_at + k * stride, mask=there, other=0.0)
            top, total = add_exp(top, total, part_top, part_sum)
        top_at += _UNROLL * stride
        sum_at += _UNROLL * stride
    return top + tl.log(tl.where(total > 0, total, 1.0))


@triton.jit
def _text_part(
    prior_ptr,
    inverse_ptr,
    start,
    first_row,
    end_row,
    cosine_ptr,
    cosine_stride,
    columns,
    column_mask,
    kappa,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """max and sum of exp over rows [first_row, end_row) of log p_i + log K(v_i, t_j); the prior p is not normalised."""
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(first_row, end_row, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = rows < end_row
        inverse = tl.load(inverse_ptr + start + rows, mask=mask, other=float("nan"))
        log_prior = log_weight(prior_ptr, start + rows, inverse, mask)
        at = cosine_ptr + (start + rows)[:, None] * cosine_stride + columns[None, :]
        cosines = tl.load(at, mask=mask[:, None] & column_mask[None, :], other=0.0)
        chunk_top, chunk_total = normaliser_part(log_kernel(cosines, kappa), log_prior)
        top, total = add_exp(top, total, chunk_top, chunk_total)
    return top, total


@triton.jit(do_not_specialize=COUNTS)
def normaliser_kernel(
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    cu_text_ptr,
    text_total,
    longest_text,
    visual_inverse_ptr,
    cosine_ptr,
    cosine_stride,
    moment_ptr,
    row_tiles,
    text_tiles,
    kappa,
    text_top_ptr,
    text_sum_ptr,
    kappa_ptr,
    log_total_ptr,
    part_top_ptr,
    part_sum_ptr,
    gram_rows,
    visual_log_z_ptr,
    first_sample,
    chunks,
    text_programs,
    visual_programs,
    RULE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    which = tl.program_id(0) % (text_programs + visual_programs)
    sample = first_sample + tl.program_id(0) // (text_programs + visual_programs)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    if which < text_programs:
        text_start, text_count = span(cu_text_ptr, sample, text_total, longest_text)
        if RULE:
            own_rows, own_columns = tl.cdiv(count, TILE_ROWS), tl.cdiv(text_count, TILE_COLUMNS)
            kappa = _kappa(moment_ptr, sample, row_tiles, text_tiles, own_rows, own_columns)
        columns = which // chunks * COLUMNS + tl.arange(0, COLUMNS)
        column_mask = columns < text_count
        first_row = which % chunks * CHUNK
        if first_row < count:
            top, total = _text_part(
                visual_prior_ptr,
                visual_inverse_ptr,
                start,
                first_row,
                tl.minimum(first_row + CHUNK, count),
                cosine_ptr,
                cosine_stride,
                columns,
                column_mask,
                kappa,
                ROWS,
                COLUMNS,
            )
            part = (which % chunks).to(tl.int64) * text_total + text_start + columns
            tl.store(text_top_ptr + part, top, mask=column_mask)
            tl.store(text_sum_ptr + part, total, mask=column_mask)
        if which == 0:
            tl.store(kappa_ptr + sample, kappa)
    prior_total = 0.0
    if (which == 0) | (which >= text_programs):
        prior_total, _ = log_total(visual_prior_ptr, visual_inverse_ptr, start, count)
    if which == 0:
        tl.store(log_total_ptr + sample, prior_total)
    if which >= text_programs:
        rows = (which - text_programs) * ROWS + tl.arange(0, ROWS)
        part = first_gram_row(start, visual_total, gram_rows) + rows
        log_z = combined_parts(
            part_top_ptr + part, part_sum_ptr + part, gram_rows, tl.cdiv(count, TILE_ROWS), rows < count
        )
        tl.store(visual_log_z_ptr + start + rows, log_z - prior_total, mask=rows < count)
