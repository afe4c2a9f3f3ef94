"""Selectors to compare with on real checkpoints: each picks tokens of packed images, as mi_pruner's does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.baselines import cdpruner, dart, divprune, mmr, mmtok, ranking, trimtokenator
from mi_pruner import MIPruner
from mi_pruner.integrations.packed_selection import PackedImages, Picks, Selector, by_information

# Those of bench/baselines that need nothing but the tokens and the text.
BASELINES = {
    "cosine": ranking.by_cosine,
    "divprune": divprune.select,
    "cdpruner": cdpruner.select,
    "mmtok": mmtok.select,
    "trimtokenator": trimtokenator.select,
    "dart": dart.select,
    "mmr": mmr.select,
}


def by_chance(seed: int) -> Selector:
    """Random tokens, the same for the same seed."""

    def choose(visual: Tensor, text: Tensor, saliency: None, keep: int) -> Tensor:
        order = torch.randperm(visual.shape[1], generator=generator)[:keep]
        return order[None].to(visual.device)

    def select(images: PackedImages, counts: list[int]) -> Picks:
        generator.manual_seed(seed)
        return by_baseline(choose)(images, counts)

    generator = torch.Generator()
    return select


def by_baseline(choose: Callable[[Tensor, Tensor, None, int], Tensor]) -> Selector:
    """A function of bench/baselines, run image by image, without structural rows.

    Gains and scores are of no meaning: the order of selection, falling.
    """

    def select(images: PackedImages, counts: list[int]) -> Picks:
        movable = torch.ones(len(images.visual), dtype=torch.bool) if images.movable is None else images.movable.cpu()
        indices = []
        for visual, text, may, count in zip(
            images.visual.split(images.visual_lengths),
            images.text.split(images.text_lengths),
            movable.split(images.visual_lengths),
            counts,
            strict=True,
        ):
            places = may.nonzero()[:, 0].to(visual.device)
            picked = choose(visual[places][None], text[None], None, count)[0]
            distinct = list(dict.fromkeys(picked.tolist()))[:count]  # some return duplicates, some more than K
            unused = places.new_full((count - len(distinct),), -1)
            indices.append(torch.cat([places[distinct], unused]))
        order = torch.cat(indices)
        gains = -torch.arange(len(order), dtype=torch.float32, device=order.device)
        return Picks(order, gains.where(order >= 0, -torch.inf), counts, images.visual.new_zeros(len(images.visual)))

    return select


def selectors(keep: int | float, seed: int) -> dict[str, Selector]:
    """Name -> selector."""
    rivals = {name: by_baseline(choose) for name, choose in BASELINES.items()}
    return {"mi_pruner": by_information(MIPruner(keep)), **rivals, "random": by_chance(seed)}
