"""Tile sizes, one table per architecture, and which path a selection takes.

The tile of `similarity_kernel` fixes how moments and normalisers are grouped, so it must depend on nothing but the
dtype and the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """rows × columns of cosines a program, `depth` coordinates a step, over `warps` warps, `stages` loads in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# Up to so many tokens in the longest sample of a call: log K of all samples at once (`greedy_on_gram.py`); more: of one
# at a time (`greedy_in_chunks.py`). Not a matter of dtype, D or architecture: 4096 tokens are 8 a lane of 16 warps, in
# registers, and 64 MB of log K a sample. Both paths give the same bits.
GRAM_TOKENS = 4096

# 128 rows: 64 text columns are read from L2 half as often as 64 rows would. 8 warps: the squares of a step's features
# stay in registers beside the accumulators (32 + 32 + 16 a thread).
_HALF = {
    80: Tile(128, 64, 64, 8, 3),  # 48 KB of loads in flight, 176 registers: one program a multiprocessor
    90: Tile(128, 64, 64, 8, 4),  # 72 KB, 128 registers: two programs; 64 rows of A a warp group, as wgmma wants
    100: Tile(128, 64, 64, 8, 4),  # as sm_90; the accumulator is in tensor memory
}
# fp32 is three TF32 products: twice the bytes, so half the depth; wider rows would spill.
_FULL = {
    80: Tile(64, 64, 32, 8, 3),
    90: Tile(64, 64, 32, 8, 4),
    100: Tile(64, 64, 32, 4, 4),  # 64 rows fill tensor memory for one group of 4 warps
}


def tile(dtype: torch.dtype, architecture: int) -> Tile:
    """The tile for features of `dtype` on compute capability `architecture` (90: 9.0), or the nearest below."""
    table = _FULL if dtype == torch.float32 else _HALF
    return table[max((known for known in table if known <= architecture), default=min(table))]
