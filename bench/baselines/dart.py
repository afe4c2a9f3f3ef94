"""DART (arXiv 2502.11494): pivots, and the tokens least similar to them.

Pivots are the tokens of largest L1 norm, 4 visual and 4 of the text. (The paper takes the norm of the keys of a decoder
layer, which don't exist before the model: the features' own norm stands in.) For each pivot in turn, the ceil(K / 8)
tokens of smallest cosine with it are kept, out of those that are left. One sample at a time, as published.
"""

import math

import torch
from torch import Tensor

from .cosines import unit

VISUAL_PIVOTS = 4
TEXT_PIVOTS = 4


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package. The visual pivots are kept on top of the others, as published: K + 4 where 8 divides K."""
    return torch.stack([_select_one(v, t, keep) for v, t in zip(visual, text, strict=True)])


def _select_one(visual: Tensor, text: Tensor, keep: int) -> Tensor:
    pivots = visual.float().norm(p=1, dim=1).topk(min(VISUAL_PIVOTS, len(visual))).indices
    words = text.float().norm(p=1, dim=1).topk(min(TEXT_PIVOTS, len(text))).indices
    tokens = unit(visual)
    cosines = torch.cat([tokens[pivots], unit(text[words])]) @ tokens.T
    cosines.index_fill_(1, pivots, torch.inf)
    share = math.ceil(keep / len(cosines))
    picks = [pivots]
    left = len(visual) - len(pivots)
    for pivot in range(len(cosines)):
        picks.append(cosines[pivot].topk(min(share, left), largest=False).indices)
        left -= len(picks[-1])
        cosines.index_fill_(1, picks[-1], torch.inf)
    return torch.cat(picks)
