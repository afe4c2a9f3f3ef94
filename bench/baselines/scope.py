"""SCOPE (arXiv 2510.24214): saliency times coverage gain.

A set S covers token i by max_{s in S} cos(i, s), at least 0. The gain of a token is its saliency (an attention score
from the vision encoder, given) times what it would add to the coverage of all tokens. Each step passes over the whole
(B, N, N) matrix, as published.
"""

import torch
from torch import Tensor

from .cosines import row, similarity


def select(visual: Tensor, text: Tensor | None, saliency: Tensor, keep: int) -> Tensor:
    """See the package."""
    cosines = similarity(visual)
    covered = cosines.new_zeros(cosines.shape[:2])
    picked, union = torch.zeros_like(covered, dtype=torch.bool), torch.empty_like(cosines)
    picks = []
    for _ in range(keep):
        gain = torch.maximum(cosines, covered[:, :, None], out=union).sum(dim=1) - covered.sum(dim=1, keepdim=True)
        pick = (gain * saliency.to(gain.dtype)).masked_fill_(picked, -torch.inf).argmax(dim=1)
        picks.append(pick)
        picked.scatter_(1, pick[:, None], True)
        covered = torch.maximum(covered, row(cosines, pick))
    return torch.stack(picks, dim=1)
