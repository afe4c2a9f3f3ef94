"""Selectors to compare with on real checkpoints: each picks tokens of packed images, as mi_pruner's does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mi_pruner import MIPruner
from mi_pruner.integrations.packed_selection import PackedImages, Picks, Selector, by_information


def by_chance(seed: int) -> Selector:
    """Random tokens, the same for the same seed."""

    def select(images: PackedImages, counts: list[int]) -> Picks:
        generator = torch.Generator().manual_seed(seed)
        return _largest(images, counts, torch.rand(len(images.visual), generator=generator).to(images.visual.device))

    return select


def by_cosine(images: PackedImages, counts: list[int]) -> Picks:
    """The tokens of largest mean cosine with the question's tokens."""
    visual = normalize(images.visual.float(), dim=1).split(images.visual_lengths)
    text = normalize(images.text.float(), dim=1).split(images.text_lengths)
    scores = [(mine @ question.T).mean(1) for mine, question in zip(visual, text, strict=True)]
    return _largest(images, counts, torch.cat(scores))


def _largest(images: PackedImages, counts: list[int], scores: Tensor) -> Picks:
    """Of each image the tokens of largest score, without structural rows."""
    ranked = scores if images.movable is None else scores.where(images.movable, -torch.inf)
    parts = ranked.split(images.visual_lengths)
    order = [part.argsort(descending=True, stable=True)[:count] for part, count in zip(parts, counts, strict=True)]
    gains = [part[picked] for part, picked in zip(parts, order, strict=True)]
    return Picks(torch.cat(order), torch.cat(gains), counts, scores)


def selectors(keep: int | float, seed: int) -> dict[str, Selector]:
    """Name -> selector."""
    return {"mi_pruner": by_information(MIPruner(keep)), "cosine": by_cosine, "random": by_chance(seed)}
