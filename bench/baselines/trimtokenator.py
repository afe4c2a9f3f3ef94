"""TrimTokenator (arXiv 2509.00320): first the tokens aligned with the text, of these the most diverse ones.

Alignment, which the paper derives from a bound on the mutual information: minus the mean squared distance to the text
tokens. Of the tokens that pass, the one least similar to all others on average comes first, then always the one of
smallest mean cosine with what is picked.
"""

import torch
from torch import Tensor

from .cosines import accumulable, accumulator, product, row, rows, similarity

ALIGNED = 0.8  # share of the tokens that passes the first stage; at least `keep` do


def alignment(visual: Tensor, text: Tensor) -> Tensor:
    """-mean_j |v_i - t_j|^2 (B, N), from products: no (N, M, D) array."""
    visual, text = accumulable(visual), accumulable(text)
    words = text.mean(dim=1, keepdim=True)
    return 2 * product(visual, words).squeeze(2) - _squares(visual) - _squares(text).mean(dim=1, keepdim=True)


def _squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=2, dtype=accumulator(x)).square()


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """See the package."""
    count = visual.shape[1]
    aligned = alignment(visual, text).topk(max(keep, int(ALIGNED * count)), dim=1).indices
    cosines = similarity(rows(visual, aligned))
    total = cosines.mean(dim=2)
    picked = torch.zeros_like(total, dtype=torch.bool)
    picks = []
    for step in range(keep):
        pick = total.masked_fill(picked, torch.inf).argmin(dim=1)
        picks.append(pick)
        picked.scatter_(1, pick[:, None], True)
        chosen = row(cosines, pick)
        total = chosen if step == 0 else total + chosen  # |S| is the same for all: no need to divide
    return aligned.gather(1, torch.stack(picks, dim=1))
