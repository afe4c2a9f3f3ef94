"""Selectors that rank the tokens one by one: no token knows of another."""

import torch
from torch import Tensor

from .cosines import accumulable, cosines, inverse_norms


def text_cosine(visual: Tensor, text: Tensor) -> Tensor:
    """Each visual token's largest cosine with a text token (B, N)."""
    visual, text = accumulable(visual), accumulable(text)
    return cosines(visual, text, inverse_norms(visual)).amax(dim=2)


def by_cosine(visual: Tensor, text: Tensor, saliency: Tensor | None, keep: int) -> Tensor:
    """The tokens nearest to a text token."""
    return text_cosine(visual, text).topk(keep, dim=1).indices


def by_attention(visual: Tensor, text: Tensor | None, saliency: Tensor, keep: int) -> Tensor:
    """The tokens that the vision encoder attends to most: what FasterVLM (arXiv 2412.01818) keeps, and VisionZip (arXiv
    2412.04467) before it merges the rest. The attention is given: making it is not part of the selection."""
    return saliency.topk(keep, dim=1).indices


def by_chance(visual: Tensor, text: Tensor | None, saliency: Tensor | None, keep: int) -> Tensor:
    """Random tokens: the floor in cost, and what every method has to beat in quality."""
    batch, count, _ = visual.shape
    return torch.rand(batch, count, device=visual.device).topk(keep, dim=1).indices
