"""MMTok (arXiv 2508.18264): the subset of visual tokens that best covers the text and all visual tokens.

Coverage C stacks softmax similarities over the visual tokens: rows of the text tokens (temperature 0.01, weight 1 / M)
and of the visual tokens (temperature 0.2, weight alpha / N). Greedy maximum of sum_rows max_{s in S} C[row, s], which
is monotone and submodular. Each step passes over the whole (M + N, N) matrix, one sample at a time, as published.
"""

import torch
from torch import Tensor

from .cosines import accumulable, inverse_norms, product

TEXT_TEMPERATURE = 0.01
VISUAL_TEMPERATURE = 0.2
ALPHA = 0.5  # weight of covering the visual tokens


def coverage(visual: Tensor, text: Tensor) -> Tensor:
    """One sample: visual (N, D), text (M, D) -> C (M + N, N)."""
    tokens, words = accumulable(visual)[None], accumulable(text)[None]
    columns, scale = inverse_norms(tokens)[:, None, :], inverse_norms(words)[:, :, None] / TEXT_TEMPERATURE
    of_text = product(words, tokens).mul_(columns).mul_(scale)
    of_visual = product(tokens, tokens).mul_(columns).mul_(columns.mT / VISUAL_TEMPERATURE)
    both = torch.cat([of_text, of_visual], dim=1)[0].softmax(dim=1)
    both[: len(text)] /= len(text)
    both[len(text) :] *= ALPHA / len(visual)
    return both


def select(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int, valid: Tensor | None = None) -> Tensor:
    """See the package. valid (B, N) bool: padding is not picked, but still covered and a part of the softmax, as
    published."""
    masks = [None] * len(visual) if valid is None else valid.unbind()
    return torch.stack([_select_one(v, t, keep, m) for v, t, m in zip(visual, text, masks, strict=True)])


def _select_one(visual: Tensor, text: Tensor, keep: int, valid: Tensor | None) -> Tensor:
    matrix = coverage(visual, text)
    covered, union = matrix.new_zeros(len(matrix), 1), torch.empty_like(matrix)
    blocked = matrix.new_zeros(matrix.shape[1])
    if valid is not None:
        blocked.masked_fill_(~valid, -torch.inf)
    picks = []
    for _ in range(keep):
        # What all cover together: the gain plus what is covered already, which is the same for every token.
        coverage_with = torch.maximum(matrix, covered, out=union).sum(dim=0) + blocked
        pick = coverage_with.argmax(dim=0, keepdim=True)
        picks.append(pick)
        covered = torch.maximum(covered, matrix.index_select(1, pick))
        blocked.index_fill_(0, pick, -torch.inf)
    return torch.cat(picks)
