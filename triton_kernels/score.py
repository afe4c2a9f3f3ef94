"""From cosines to scores: both marginals and the sum over the text.

`score_kernel`, a program for ROWS visual tokens, combines the parts of the text's normalisers as it runs over the text
twice: for the largest ℓ, then for the sums relative to it. The null word of the joint marginal, with ℓ = 0, joins both.
Bytes: the cosines twice (from L2, where they fit). Flops: two exponentials a cosine. Bound by L2.
Determinism: the text in the order of its tokens; nothing depends on the batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .normaliser import combined_parts
from .similarity import log_kernel
from .tokens import COUNTS, fill_unowned, log_total, log_weight, span

SCORE_ROWS, SCORE_COLUMNS = 32, 32  # 8 cosines a lane; 64 columns would spill


@triton.jit(do_not_specialize=COUNTS)
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
    text_top_ptr,
    text_sum_ptr,
    kappa_ptr,
    log_total_ptr,
    score_ptr,
    samples,
    row_programs,
    JOINT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    which = tl.program_id(0) % row_programs
    sample = tl.program_id(0) // row_programs
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    text_start, text_count = span(cu_text_ptr, sample, text_total, longest_text)
    rows = which * ROWS + tl.arange(0, ROWS)
    row_mask = rows < count
    if which == 0:
        fill_unowned(score_ptr, 0.0, 1, cu_visual_ptr, sample, samples, visual_total, longest_visual)
    if which * ROWS < count:
        kappa, prior_total = tl.load(kappa_ptr + sample), tl.load(log_total_ptr + sample)
        text_weight_total, text_valid = log_total(text_prior_ptr, text_inverse_ptr, text_start, text_count)
        inverse = tl.load(visual_inverse_ptr + start + rows, mask=row_mask, other=float("nan"))
        log_prior = log_weight(visual_prior_ptr, start + rows, inverse, row_mask) - prior_total
        valid = (log_prior > float("-inf")) & (text_valid > 0)
        row_at = cosine_ptr + (start + rows) * cosine_stride
        top = tl.full((ROWS,), 0.0 if JOINT else float("-inf"), tl.float32)  # the null word's log r is 0
        for first in range(0, text_count, COLUMNS):
            log_r, weight = _log_r(
                first,
                text_prior_ptr,
                text_inverse_ptr,
                text_top_ptr,
                text_sum_ptr,
                text_total,
                text_start,
                text_count,
                text_weight_total,
                tl.cdiv(count, CHUNK),
                row_at,
                valid,
                kappa,
                prior_total,
                COLUMNS,
            )
            top = tl.maximum(top, tl.max(log_r, axis=1))
        shift = tl.where(valid, top, 0.0)
        mass = tl.zeros((ROWS,), tl.float32)  # Σ w r / exp(top)
        moment = tl.zeros((ROWS,), tl.float32)  # Σ w r (ℓ - top) / exp(top)
        for first in range(0, text_count, COLUMNS):
            log_r, weight = _log_r(
                first,
                text_prior_ptr,
                text_inverse_ptr,
                text_top_ptr,
                text_sum_ptr,
                text_total,
                text_start,
                text_count,
                text_weight_total,
                tl.cdiv(count, CHUNK),
                row_at,
                valid,
                kappa,
                prior_total,
                COLUMNS,
            )
            present = log_r > float("-inf")
            below = tl.where(present, log_r - shift[:, None], 0.0)
            density = tl.where(present, weight[None, :] * tl.exp(below), 0.0)
            mass += tl.sum(density, axis=1)
            moment += tl.sum(density * below, axis=1)
        if JOINT:
            null_weight = 1.0 / (text_valid + 1)
            mixture = mass + null_weight * (tl.exp(-shift) - mass)
            bracket = (1 - null_weight) * (moment - mass * tl.log(tl.where(mass > 0, mixture, 1.0)))
        else:
            bracket = moment + mass * shift
        score = tl.exp(log_prior + shift) * bracket
        tl.store(score_ptr + start + rows, tl.where(valid, score, 0.0), mask=row_mask)


@triton.jit
def _log_r(
    first,
    prior_ptr,
    inverse_ptr,
    top_ptr,
    sum_ptr,
    total,
    start,
    count,
    weight_total,
    chunks,
    row_at,
    valid,
    kappa,
    prior_total,
    COLUMNS: tl.constexpr,
):
    """ℓ (ROWS, COLUMNS) of the text tokens from `first` on, -inf for absent pairs, and their weights (COLUMNS,)."""
    columns = first + tl.arange(0, COLUMNS)
    mask = columns < count
    inverse = tl.load(inverse_ptr + start + columns, mask=mask, other=float("nan"))
    log_w = log_weight(prior_ptr, start + columns, inverse, mask)
    present = log_w > float("-inf")
    log_z = combined_parts(top_ptr + start + columns, sum_ptr + start + columns, total, chunks, present) - prior_total
    pairs = valid[:, None] & present[None, :]
    cosines = tl.load(row_at[:, None] + columns[None, :], mask=pairs, other=0.0)
    log_r = tl.where(pairs, log_kernel(cosines, kappa) - log_z[None, :], float("-inf"))
    return log_r, tl.where(present, tl.exp(log_w - weight_total), 0.0)
