"""The launches of the row path: rounds of steps and rows, planned without waiting for the device, and the last one."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import finish, greedy_on_rows, rows
from .launches import EXACT, Selection, Similarities, Slots, Tokens, empty_slots, round_up, tile_options

# Of rows of log K, in all: up to there, rounds are planned for as many rows as picks among photographs need.
ROW_BYTES = 768 << 20


def row_rounds(samples: int, tokens: int, picks: int) -> int:
    """How many blocks of rows are planned before `finish_kernel`: for six rows a pick if ROW_BYTES are enough, for 1.5
    at the least, and two more; at most for all."""
    room = ROW_BYTES // (4 * samples * tokens * rows.BLOCK)
    least, wanted = (triton.cdiv(halves * picks, 2 * rows.BLOCK) + 2 for halves in (3, 12))
    return min(max(least, min(wanted, room)), triton.cdiv(tokens, rows.BLOCK))


def row_picks(
    visual: Tokens, ranks: Tensor, found: Similarities, slots: Slots, how: Selection
) -> tuple[Tensor, Tensor]:
    """Indices and gains in the order of the picks, from rows of log K of the best candidates."""
    indices, gains = empty_slots(visual, slots)
    samples, longest = visual.samples, visual.longest
    rounds = row_rounds(samples, longest, slots.longest)
    row_slots = (rounds + 1) * rows.BLOCK  # the last block is `finish_kernel`'s
    group = greedy_on_rows.GROUP.value
    groups = max(greedy_on_rows.STEP_CHUNK // group, triton.next_power_of_2(triton.cdiv(longest, group)))
    stride = round_up(longest, 16)
    rank, rho, log2_prior = visual.floats(3, samples, stride)
    row_slot, log_total = visual.ints(samples, stride), visual.floats(samples)
    state, candidates = visual.ints(samples, rows.STATE.value), visual.ints(samples, rows.BLOCK)
    table = (visual.floats(samples * row_slots, stride), stride)
    parts = visual.floats(2, samples, found.row_tiles, rows.BLOCK)
    tile = tile_options(found.tile, visual.features.dtype)
    memory = (rank, rho, log2_prior, row_slot, log_total, state)
    greedy_on_rows.start_kernel[(samples,)](
        ranks,
        *visual.place,
        visual.prior,
        found.visual_inverse,
        *slots.place,
        how.budget,
        how.ratio_bits,
        *memory,
        stride,
        CHUNK=greedy_on_rows.STEP_CHUNK // 2,  # 16 tokens a lane of 4 warps
        **EXACT,
    )
    block = (candidates, *table, row_slots, *parts, found.row_tiles)
    steps = (
        *memory,
        visual.ints(samples, groups, dtype=torch.int64),
        candidates,
        *table,
        visual.floats(samples, row_slots),
        row_slots,
        *parts,
        found.row_tiles,
        how.redundancy_weight,
        how.threshold,
        indices,
        gains,
    )
    options = {
        "REDUNDANCY": how.redundancy,
        "STOPS": how.min_gain is not None,
        "BLOCK": rows.BLOCK,
        "GROUPS": groups,
        "CHUNK": greedy_on_rows.STEP_CHUNK,
    }
    features = (
        visual.rows,
        *visual.strides(visual.rows),
        *visual.place,
        visual.prior,
        visual.rows.shape[-1],
        how.kappa,
    )
    for _ in range(rounds):
        greedy_on_rows.advance_kernel[(samples,)](
            *visual.place, *slots.place, *steps, **options, TILE_ROWS=found.tile.rows, num_warps=16, **EXACT
        )
        rows.rows_kernel[(samples * found.row_tiles * (rows.BLOCK // found.tile.columns),)](
            *features, state, *block, BLOCK=rows.BLOCK, **tile
        )
    options["CHUNK"] //= 4  # half the warps, and registers full of a tile
    finish.finish_kernel[(samples,)](*features, *slots.place, *steps, samples, **options, **tile)
    return indices, gains
