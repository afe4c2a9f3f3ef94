"""The original positions of an image's tokens, carried beside its features until the model runner asks for them.

vLLM tells positions when a request arrives, before its images are encoded. So an image's rows begin with a base, the
position where the image starts, in row 0 of the three: there mRoPE has the time, which is one for all tokens of an
image, and 1-D positions need one row only, row 1. Rows 1 and 2 are put right when the features are there. Text is right
from the start, whatever is kept, and also behind an image whose blocks come from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGITS = 2  # of base 256: bfloat16 has integers up to 256 only; positions fit below 65,536 of an image's start
COLUMNS = 2 * _DIGITS  # offsets in rows 1 and 2, larger by 1: zero is not ours


def with_positions(features: Tensor, offsets: Tensor, extent: int) -> Tensor:
    """Features of an image with columns that tell where they belong.

    Args:
        features: (K, D).
        offsets: (2, K) int64, from the image's start: height and width, or twice the 1-D position.
        extent: how far the text after the image is from its start: more than any offset.

    Returns:
        (K, D + COLUMNS) of the features' dtype.

    Raises:
        ValueError: for an extent that does not fit the digits.
    """
    if extent >= 256**_DIGITS:
        raise ValueError(f"mi_pruner: expected fewer than {256**_DIGITS} positions of an image, got {extent}")
    told = offsets.T + 1
    digits = torch.stack([told // 256, told % 256], -1).flatten(1)
    return torch.cat([features, digits.to(features)], 1)


def without_positions(features: Tensor) -> Tensor:
    """Features that are not ours, with as many columns: (K, D) -> (K, D + COLUMNS)."""
    return torch.nn.functional.pad(features, (0, COLUMNS))


def of_prompt(whole: Tensor, images: Sequence[tuple[int, int, int]], linear: bool) -> Tensor:
    """The positions that a request starts with.

    Args:
        whole: (3, L) int64, positions as if no token were dropped.
        images: of each image, in order, where it is in the prompt that is left, its tokens there, and before.
        linear: positions are 1-D.

    Returns:
        (3, L − dropped) int64: an image's rows are its first ones, with the base in row 0.
    """
    columns: list[Tensor] = []
    done = dropped = 0
    positions = whole.clone()
    for start, kept, tokens in images:
        first = start + dropped
        if linear:
            positions[0, first : first + tokens] = whole[0, first]
        columns.append(torch.arange(done, first + kept))
        done = first + tokens
        dropped += tokens - kept
    columns.append(torch.arange(done, whole.shape[1]))
    return positions[:, torch.cat(columns)]


def put_right(
    ids: Sequence[int] | Tensor, items: Sequence[Tensor], positions: Tensor, computed: int, image_token: int
) -> tuple[list[Tensor], Tensor, int]:
    """The positions of the images whose features are there. Called in every step, also where there are none.

    Args:
        ids: (L,) of the prompt, which ends in text, or in an image or video of which nothing was dropped.
        items: of each image or video that the step reads, the rows that it reads, with their columns.
        positions: (3, L) as they are.
        computed: how many tokens were computed before the step.
        image_token: the id of an image's placeholder.

    Returns:
        The items without their columns; (3, L); how much larger than its place the position of what follows is.
    """
    if items:
        positions = positions.clone()
        there = torch.as_tensor(ids, device=positions.device)[computed:] == image_token
        waiting, used = there.nonzero()[:, 0] + computed, 0
        for item in items:
            digits = item[:, -COLUMNS:].to(positions.device, torch.int64).unflatten(1, (2, _DIGITS))
            told = digits[..., 0] * 256 + digits[..., 1]
            if not told[0, 0]:
                continue
            places = waiting[used : used + len(told)]
            used += len(told)
            positions[1:, places] = positions[0, places] + told.T - 1
    after = max(positions[:, -1].tolist()) + 1
    return [item[:, :-COLUMNS] for item in items], positions, after - len(ids)
