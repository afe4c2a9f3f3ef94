"""CDPruner (arXiv 2506.10967): the visual tokens that a determinantal point process conditioned on the text makes most
probable.

Kernel L = diag(r) S diag(r): S the cosines of the visual tokens, r their relevance to the text, min-max normalised. The
greedy maximum of log det L_Y is found by the incremental Cholesky factor of Chen, Zhang and Zhou (NeurIPS 2018):
`added[i]` is what token i adds to the volume, and each pick subtracts its component from all others.
"""

import torch
from torch import Tensor

from .cosines import accumulable, inverse_norms, product, row

FLOOR = 1e-6  # keeps the relevance of the least relevant token above 0, as published


def relevance(visual: Tensor, text: Tensor, inverse: Tensor) -> Tensor:
    """r (B, N), given the inverse norms (B, N) of the visual tokens: minus the mean cosine with the
    text, min-max normalised.

    The sign is the published one (the paper found the cosines of CLIP's projections to fall with relevance), and so is
    the normalisation over the whole batch, not over each sample.
    """
    words = (text * inverse_norms(text)[:, :, None]).mean(dim=1, keepdim=True).to(text.dtype)
    raw = -product(visual, words).squeeze(2) * inverse
    return (raw - raw.min() + FLOOR) / (raw.max() - raw.min())


def kernel(visual: Tensor, text: Tensor) -> Tensor:
    """L (B, N, N)."""
    visual, text = accumulable(visual), accumulable(text)
    inverse = inverse_norms(visual)
    scale = relevance(visual, text, inverse) * inverse
    return product(visual, visual).mul_(scale[:, :, None]).mul_(scale[:, None, :])


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package. No guard against a volume of 0, as published: duplicates can end in NaN or repeated picks."""
    matrix = kernel(visual, text)
    batch, count, _ = matrix.shape
    added = matrix.diagonal(dim1=1, dim2=2).clone()
    factor = matrix.new_zeros(keep, batch, count)
    picks = []
    for step in range(keep):
        pick = added.argmax(dim=1)
        picks.append(pick)
        at_pick = factor[:step].gather(2, pick.expand(step, batch)[:, :, None]).squeeze(2)
        projected = row(matrix, pick) - torch.einsum("sb,sbn->bn", at_pick, factor[:step])
        factor[step] = projected / added.gather(1, pick[:, None]).sqrt()
        added -= factor[step].square()
        added.scatter_(1, pick[:, None], -torch.inf)
    return torch.stack(picks, dim=1)
