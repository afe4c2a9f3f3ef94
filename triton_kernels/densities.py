"""From cosines to scores: normalisers over the visual tokens, then both marginals and the sum over the text.

Two kernels. `normaliser_kernel`, a program for COLUMNS text tokens of a sample, first combines the parts of the
bandwidth rule (in the order of the tiles), then runs over the sample's rows once: log Σ_i π_i K(v_i, t_j). Further
programs of the same launch combine the parts of the visual-visual normalisers. `score_kernel`, a program for ROWS
visual tokens, runs over the text twice: for the largest ℓ, then for the sums relative to it.
Bytes: the cosines three times (from L2, where they fit). Flops: two exponentials a cosine. Bound by L2.
Determinism: chunks of fixed size in order; none depends on the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .similarity import normaliser_part
from .tokens import add_exp, log_total, log_weight, span

PARTS = tl.constexpr(128)  # tiles' moments combined at a time
NORMALISER_COLUMNS = 8  # 32 bytes of a row of cosines: one sector of memory
NORMALISER_ROWS = 256
SCORE_ROWS, SCORE_COLUMNS = 32, 64


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
    total = tl.maximum(tl.sum(numbers, axis=0), 1.0)
    mean = tl.sum(sums, axis=0) / total
    squares = tl.zeros((PARTS,), tl.float32)
    for first in range(0, own_rows * own_columns, PARTS):
        k = first + at
        part = moment_ptr + 3 * (k // own_columns * text_tiles + k % own_columns)
        number = tl.load(part, mask=k < own_rows * own_columns, other=0.0)
        off = tl.load(part + 1, mask=k < own_rows * own_columns, other=0.0) - mean
        squares += tl.load(part + 2, mask=k < own_rows * own_columns, other=0.0) + number * off * off
    return 1 / tl.maximum(tl.sqrt(tl.sum(squares, axis=0) / total), 1e-4)


@triton.jit
def _text_log_z(
    prior_ptr,
    inverse_ptr,
    start,
    count,
    cosine_ptr,
    cosine_stride,
    columns,
    column_mask,
    kappa,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """log Σ_i p_i K(v_i, t_j) for text columns j, by a pass over the rows; the prior p is not normalised."""
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, count, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = rows < count
        inverse = tl.load(inverse_ptr + start + rows, mask=mask, other=float("nan"))
        log_prior = log_weight(prior_ptr, start + rows, inverse, mask)
        at = cosine_ptr + (start + rows)[:, None] * cosine_stride + columns[None, :]
        cosines = tl.load(at, mask=mask[:, None] & column_mask[None, :], other=0.0)
        chunk_top, chunk_total = normaliser_part(cosines, log_prior, kappa)
        top, total = add_exp(top, total, chunk_top, chunk_total)
    return top + tl.log(tl.where(total > 0, total, 1.0))


@triton.jit
def _combined_log_z(
    part_top_ptr, part_sum_ptr, start, count, columns, visual_total, TILE_ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The same for visual columns, from the parts that `similarity_kernel` left."""
    top = tl.full((COLUMNS,), float("-inf"), tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    part = start + columns
    for _ in range(tl.cdiv(count, TILE_ROWS)):
        part_top = tl.load(part_top_ptr + part, mask=columns < count, other=float("-inf"))
        part_sum = tl.load(part_sum_ptr + part, mask=columns < count, other=0.0)
        top, total = add_exp(top, total, part_top, part_sum)
        part += visual_total
    return top + tl.log(tl.where(total > 0, total, 1.0))


@triton.jit
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
    log_z_ptr,
    kappa_ptr,
    log_total_ptr,
    part_top_ptr,
    part_sum_ptr,
    visual_log_z_ptr,
    text_programs,
    visual_programs,
    SAMPLES: tl.constexpr,
    RULE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    which = tl.program_id(0) % (text_programs + visual_programs)
    sample = tl.program_id(0) // (text_programs + visual_programs)
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual, SAMPLES)
    prior_total, _ = log_total(visual_prior_ptr, visual_inverse_ptr, start, count)
    if which == 0:
        tl.store(log_total_ptr + sample, prior_total)
    if which < text_programs:
        text_start, text_count = span(cu_text_ptr, sample, text_total, longest_text, SAMPLES)
        if RULE:
            own_rows, own_columns = tl.cdiv(count, TILE_ROWS), tl.cdiv(text_count, TILE_COLUMNS)
            kappa = _kappa(moment_ptr, sample, row_tiles, text_tiles, own_rows, own_columns)
        if which == 0:
            tl.store(kappa_ptr + sample, kappa)
        columns = which * COLUMNS + tl.arange(0, COLUMNS)
        log_z = _text_log_z(
            visual_prior_ptr,
            visual_inverse_ptr,
            start,
            count,
            cosine_ptr,
            cosine_stride,
            columns,
            columns < text_count,
            kappa,
            ROWS,
            COLUMNS,
        )
        tl.store(log_z_ptr + text_start + columns, log_z - prior_total, mask=columns < text_count)
    else:
        rows = (which - text_programs) * ROWS + tl.arange(0, ROWS)
        visual_log_z = _combined_log_z(part_top_ptr, part_sum_ptr, start, count, rows, visual_total, TILE_ROWS, ROWS)
        tl.store(visual_log_z_ptr + start + rows, visual_log_z - prior_total, mask=rows < count)


@triton.jit
def score_kernel(
    cu_visual_ptr,
    visual_total,
    longest_visual,
    visual_prior_ptr,
    cu_text_ptr,
    text_total,
    longest_text,
    text_prior_ptr,
    visual_inverse_ptr,
    text_inverse_ptr,
    cosine_ptr,
    cosine_stride,
    log_z_ptr,
    kappa_ptr,
    log_total_ptr,
    score_ptr,
    row_programs,
    SAMPLES: tl.constexpr,
    JOINT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    which = tl.program_id(0) % row_programs
    sample = tl.program_id(0) // row_programs
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual, SAMPLES)
    text_start, text_count = span(cu_text_ptr, sample, text_total, longest_text, SAMPLES)
    rows = which * ROWS + tl.arange(0, ROWS)
    row_mask = rows < count
    if which * ROWS < count:
        kappa = tl.load(kappa_ptr + sample)
        text_weight_total, text_valid = log_total(text_prior_ptr, text_inverse_ptr, text_start, text_count)
        inverse = tl.load(visual_inverse_ptr + start + rows, mask=row_mask, other=float("nan"))
        log_prior = log_weight(visual_prior_ptr, start + rows, inverse, row_mask) - tl.load(log_total_ptr + sample)
        valid = (log_prior > float("-inf")) & (text_valid > 0)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        for first in range(0, text_count, COLUMNS):
            log_r, weight = _log_r(
                first,
                text_start,
                text_count,
                text_prior_ptr,
                text_inverse_ptr,
                cosine_ptr + (start + rows) * cosine_stride,
                log_z_ptr,
                kappa,
                text_weight_total,
                valid,
                COLUMNS,
            )
            top = tl.maximum(top, tl.max(log_r, axis=1))
        shift = tl.where(valid, top, 0.0)
        mass = tl.zeros((ROWS,), tl.float32)  # Σ w r / exp(top)
        moment = tl.zeros((ROWS,), tl.float32)  # Σ w r (ℓ - top) / exp(top)
        for first in range(0, text_count, COLUMNS):
            log_r, weight = _log_r(
                first,
                text_start,
                text_count,
                text_prior_ptr,
                text_inverse_ptr,
                cosine_ptr + (start + rows) * cosine_stride,
                log_z_ptr,
                kappa,
                text_weight_total,
                valid,
                COLUMNS,
            )
            present = log_r > float("-inf")
            below = tl.where(present, log_r - shift[:, None], 0.0)
            density = tl.where(present, weight[None, :] * tl.exp(below), 0.0)
            mass += tl.sum(density, axis=1)
            moment += tl.sum(density * below, axis=1)
        bracket = moment + (-mass * tl.log(tl.where(mass > 0, mass, 1.0)) if JOINT else mass * shift)
        score = tl.exp(log_prior + shift) * bracket
        tl.store(score_ptr + start + rows, tl.where(valid, score, 0.0), mask=row_mask)


@triton.jit
def _log_r(
    first,
    text_start,
    text_count,
    text_prior_ptr,
    text_inverse_ptr,
    row_at,
    log_z_ptr,
    kappa,
    text_weight_total,
    valid,
    COLUMNS: tl.constexpr,
):
    """ℓ (ROWS, COLUMNS) of the text tokens from `first` on, -inf for absent pairs, and their weights (COLUMNS,)."""
    columns = first + tl.arange(0, COLUMNS)
    mask = columns < text_count
    inverse = tl.load(text_inverse_ptr + text_start + columns, mask=mask, other=float("nan"))
    log_w = log_weight(text_prior_ptr, text_start + columns, inverse, mask)
    present = log_w > float("-inf")
    log_z = tl.load(log_z_ptr + text_start + columns, mask=mask, other=0.0)
    pairs = valid[:, None] & present[None, :]
    cosines = tl.load(row_at[:, None] + columns[None, :], mask=pairs, other=0.0)
    log_r = tl.where(pairs, (cosines - 1) * kappa - log_z[None, :], float("-inf"))
    return log_r, tl.where(present, tl.exp(log_w - text_weight_total), 0.0)
