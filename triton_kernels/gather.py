"""The kept tokens in ascending order of their indices: order and copy in one launch.

Algorithm: a pick's place is the number of picks of lower index; a program finds the places of PICKS picks by counting
and copies their rows, features in chunks. Unused slots (-1) come last, with zero tokens.
Bytes: 2 × the kept tokens, and K indices a program (from L2). Bound by memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tokens import COUNTS, fill_unowned, first_row, span

GATHER_CHUNK = 256  # picks compared at a time


@triton.jit(do_not_specialize=COUNTS)
def gather_kernel(
    visual_ptr,
    visual_batch_stride,
    visual_stride,
    cu_visual_ptr,
    visual_total,
    longest_visual,
    cu_keep_ptr,
    keep_total,
    longest_keep,
    index_ptr,
    gain_ptr,
    dim,
    token_ptr,
    index_out_ptr,
    gain_out_ptr,
    samples,
    programs,
    PICKS: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
):
    which = tl.program_id(0) % programs
    sample = tl.program_id(0) // programs
    start, count = span(cu_visual_ptr, sample, visual_total, longest_visual)
    slot, slots = span(cu_keep_ptr, sample, keep_total, longest_keep)
    visual_ptr = first_row(visual_ptr, visual_batch_stride, visual_stride, cu_visual_ptr, sample, start)
    mine = which * PICKS + tl.arange(0, PICKS)
    mask = mine < slots
    index = tl.load(index_ptr + slot + mine, mask=mask, other=-1)
    order = tl.where(index < 0, count + mine, index)
    place = tl.zeros((PICKS,), tl.int32)
    for first in range(0, slots, CHUNK):
        at = first + tl.arange(0, CHUNK)
        other = tl.load(index_ptr + slot + at, mask=at < slots, other=-1)
        other_order = tl.where(other < 0, count + at, other)
        place += tl.sum(((other_order[None, :] < order[:, None]) & (at < slots)[None, :]).to(tl.int32), axis=1)
    tl.store(index_out_ptr + slot + place, index, mask=mask)
    tl.store(gain_out_ptr + slot + place, tl.load(gain_ptr + slot + mine, mask=mask, other=0.0), mask=mask)
    row_at = visual_ptr + index[:, None] * visual_stride
    token_at = token_ptr + (slot + place)[:, None] * dim
    for d in range(0, dim, DEPTH):
        depth = d + tl.arange(0, DEPTH)
        inside = (depth < dim)[None, :]
        row = tl.load(row_at + depth[None, :], mask=inside & (index >= 0)[:, None], other=0.0)
        tl.store(token_at + depth[None, :], row, mask=inside & mask[:, None])
    if which == 0:
        fill_unowned(token_ptr, 0.0, dim, cu_keep_ptr, sample, samples, keep_total, longest_keep)
        fill_unowned(index_out_ptr, -1, 1, cu_keep_ptr, sample, samples, keep_total, longest_keep)
        fill_unowned(gain_out_ptr, float("-inf"), 1, cu_keep_ptr, sample, samples, keep_total, longest_keep)
