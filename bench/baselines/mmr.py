"""Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): relevance minus the nearest picked neighbour.

score(i) = LAMBDA max_j cos(v_i, t_j) - (1 - LAMBDA) max_{s in S} cos(v_i, v_s); the second term is 0 while S is empty.
"""

import torch
from torch import Tensor

from .cosines import accumulable, cosines, inverse_norms, row, similarity

LAMBDA = 0.5


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package."""
    visual, text = accumulable(visual), accumulable(text)
    inverse = inverse_norms(visual)
    relevance = cosines(visual, text, inverse).amax(dim=2).mul_(LAMBDA)
    pairs = similarity(visual, inverse)
    nearest: Tensor | None = None
    picks = []
    for _ in range(keep):
        score = relevance if nearest is None else relevance - (1 - LAMBDA) * nearest
        pick = score.argmax(dim=1)
        picks.append(pick)
        relevance = relevance.scatter(1, pick[:, None], -torch.inf)
        chosen = row(pairs, pick)
        nearest = chosen if nearest is None else torch.maximum(nearest, chosen)
    return torch.stack(picks, dim=1)
