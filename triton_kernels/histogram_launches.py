"""The launches of the histogram estimator; see `launches.py`."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import histogram
from .launches import EXACT, Tokens, round_up


def _bins(tokens: Tokens, bins: int) -> tuple[Tensor, Tensor]:
    """1 / norm (total,) and the bins (total, D rounded up to whole tiles) of dense tokens."""
    dim = tokens.features.shape[-1]
    inverse = tokens.floats(tokens.total)
    found = tokens.ints(tokens.total, round_up(dim, histogram.TILE_DEPTH), dtype=torch.uint8)
    programs = triton.cdiv(tokens.longest, histogram.BIN_ROWS)
    histogram.bin_kernel[(tokens.samples * programs,)](
        tokens.rows,
        *tokens.strides(tokens.rows),
        tokens.longest,
        dim,
        bins,
        programs,
        inverse,
        found,
        found.stride(0),
        ROWS=histogram.BIN_ROWS,
        CHUNK=histogram.BIN_CHUNK,
        **EXACT,
    )
    return inverse, found


def histogram_scores(visual: Tokens, text: Tokens, bins: int) -> Tensor:
    """(B, N) of dense tokens."""
    out = visual.floats(*visual.features.shape[:-1])
    visual_inverse, visual_bins = _bins(visual, bins)
    text_inverse, text_bins = _bins(text, bins)
    size = max(16, triton.next_power_of_2(bins))  # fewer would make many small histograms of a tile, for no less work
    rows, columns = histogram.TILE_ROWS // size, histogram.TILE_COLUMNS // size
    programs = triton.cdiv(visual.longest, rows)
    histogram.histogram_kernel[(visual.samples * programs,)](
        visual_bins,
        visual.longest,
        visual.prior,
        visual_inverse,
        text_bins,
        text.longest,
        text.prior,
        text_inverse,
        visual_bins.stride(0),
        visual.features.shape[-1],
        programs,
        out,
        BINS=size,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=histogram.TILE_DEPTH,
        num_warps=4,
        **EXACT,
    )
    return out
