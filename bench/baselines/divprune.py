"""DivPrune (arXiv 2503.02175): the subset whose smallest pairwise cosine distance is largest, greedily.

The first pick is the token farthest from its nearest neighbour; each next one is farthest from its nearest *picked*
token. The published code takes that minimum over all picked rows anew in each step, O(K^2 N) in all; here the distance
to the nearest picked token is kept and updated, O(K N), with the same picks.
"""

import torch
from torch import Tensor

from .cosines import row, similarity


def select(visual: Tensor, text: Tensor | None, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package. Picked tokens are not masked, as published: where every distance is 0, one is picked again."""
    distance = similarity(visual)
    torch.sub(distance.new_ones(()), distance, out=distance)
    own = distance.diagonal(dim1=1, dim2=2)
    own.fill_(torch.inf)
    nearest = distance.amin(dim=2)
    own.zero_()
    picks = []
    for step in range(keep):
        pick = nearest.argmax(dim=1)
        picks.append(pick)
        chosen = row(distance, pick)
        nearest = chosen if step == 0 else torch.minimum(nearest, chosen)
    return torch.stack(picks, dim=1)
