"""DART (arXiv 2502.11494): pivots, and the tokens least similar to them.

Pivots are the tokens of largest L1 norm, 4 visual and 4 of the text. (The paper takes the norm of the keys of a decoder
layer, which don't exist before the model: the features' own norm stands in.) For each pivot in turn, the floor(K / 8)
tokens of smallest cosine with it are kept, out of those that are left (the published code takes the ceiling of a floor
division). One sample at a time, as published.
"""

import torch
from torch import Tensor

from .cosines import accumulable, accumulator, inverse_norms, product

VISUAL_PIVOTS = 4
TEXT_PIVOTS = 4


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package. The visual pivots come on top of the others, as published: 4 + 8 floor(K / 8) tokens in all."""
    return torch.stack([_select_one(v, t, keep) for v, t in zip(visual, text, strict=True)])


def _select_one(visual: Tensor, text: Tensor, keep: int) -> Tensor:
    visual, text = accumulable(visual), accumulable(text)
    pivots = _norms(visual).topk(min(VISUAL_PIVOTS, len(visual))).indices
    words = _norms(text).topk(min(TEXT_PIVOTS, len(text))).indices
    ends = torch.cat([visual[pivots], text[words]])[None]
    # Up to the pivot's norm: within a row it changes no order.
    cosines = product(ends, visual[None]).mul_(inverse_norms(visual[None])[:, None, :])[0]
    cosines.index_fill_(1, pivots, torch.inf)
    share = keep // len(cosines)
    picks = [pivots]
    left = len(visual) - len(pivots)
    for pivot in range(len(cosines)):
        picks.append(cosines[pivot].topk(min(share, left), largest=False).indices)
        left -= len(picks[-1])
        cosines.index_fill_(1, picks[-1], torch.inf)
    return torch.cat(picks)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, ord=1, dim=1, dtype=accumulator(x))
