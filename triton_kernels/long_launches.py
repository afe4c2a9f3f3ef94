"""The launches of a selection among more tokens than `greedy_kernel` holds: log K of all pairs of one sample at a time.

Three for each sample. Nothing waits for the device: where a packed sample lies only the kernels know.
"""

from __future__ import annotations

from torch import Tensor

from . import greedy_in_chunks
from .launches import EXACT, Selection, Slots, Tokens, empty_slots, normalisers, round_up, similarities


def long_picks(visual: Tokens, ranks: Tensor, slots: Slots, how: Selection) -> tuple[Tensor, Tensor]:
    """Indices and gains in the order of the picks."""
    indices, gains = empty_slots(visual, slots)
    for sample in range(visual.samples):
        _pick(visual, sample, ranks, slots, how, indices, gains)
    return indices, gains


def _pick(
    visual: Tokens, sample: int, ranks: Tensor, slots: Slots, how: Selection, indices: Tensor, gains: Tensor
) -> None:
    """Leaves the picks of one sample. Its tables are free on return, for the next one's: PyTorch's allocator knows the
    order of the stream."""
    found = similarities(visual, None, visual.longest, how.kappa, range(sample, sample + 1))
    left = normalisers(visual, None, found, None)
    greedy_in_chunks.chunked_greedy_kernel[(1,)](
        ranks,
        *visual.place,
        visual.prior,
        found.visual_inverse,
        found.gram,
        found.gram.shape[0],
        found.gram.stride(0),
        left.visual_log_z,
        left.log_total,
        how.redundancy_weight,
        *slots.place,
        how.budget,
        how.ratio_bits,
        how.threshold,
        *visual.floats(3, round_up(visual.longest, 16)),
        indices,
        gains,
        sample,
        visual.samples,
        REDUNDANCY=how.redundancy,
        STOPS=how.min_gain is not None,
        CHUNK=greedy_in_chunks.STEP_CHUNK,
        num_warps=16,
        **EXACT,
    )
