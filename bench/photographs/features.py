"""Visual and text tokens of photographs: kept features of a vision transformer, projected by random weights.

`features.npz` holds what `make` made: views of 16 x 16 patches, the tiles of photographs and the frames of a film.
Their features lie in the basis of their principal axes, which random weights can't tell from any other.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Source = Literal["photograph", "film"]

FILE = Path(__file__).with_name("features.npz")
WIDTH = 384  # of the vision transformer
VIEW = 256  # tokens of a view
TILES = 4  # along each side of a photograph
PHOTOGRAPH = (TILES**2 + 1) * VIEW  # tokens of a photograph: its tiles row by row, then the whole in one view
NEAR = 0.3  # noise of a text token near a patch, in standard deviations of the visual tokens


class Kept(NamedTuple):
    """Of one source: feature = coefficient * step."""

    coefficients: Tensor  # (WIDTH, pictures, views, VIEW) int8
    step: Tensor  # (WIDTH,) float32


@cache
def kept(source: Source) -> Kept:
    """What the file has of a source."""
    import numpy as np

    with np.load(FILE) as arrays:
        return Kept(torch.from_numpy(arrays[source]), torch.from_numpy(arrays["step"]).float())


def cut(source: Source, tokens: int, number: int) -> tuple[int, slice]:
    """Picture and views that sample `number` takes its tokens from.

    Samples take the pictures in turn, and with each turn begin a view later, until the views are over.

    Raises:
        ValueError: for more tokens than a picture of the source has.
    """
    _, pictures, views, _ = kept(source).coefficients.shape
    if not 0 < tokens <= views * VIEW:
        raise ValueError(f"tokens: expected 1 to {views * VIEW:,} of a {source}, got {tokens:,}; a film has the most")
    needed = math.ceil(tokens / VIEW)
    turn, picture = divmod(number, pictures)
    first = turn % (views - needed + 1)
    return picture, slice(first, first + needed)


def features(source: Source, tokens: int, number: int = 0) -> Tensor:
    """(N, WIDTH) float32: the first N tokens of the views of sample `number`.

    Raises:
        ValueError: for more tokens than a picture of the source has.
    """
    picture, views = cut(source, tokens, number)
    coefficients, step = kept(source)
    return coefficients[:, picture, views].flatten(1)[:, :tokens].T * step


def projector(width: int, generator: torch.Generator, device: str) -> Callable[[Tensor], Tensor]:
    """(N, WIDTH) features -> (N, D) visual tokens: two layers with a GELU between them, as LLaVA's."""
    first, second = (
        torch.randn(size, width, generator=generator).mul_(size**-0.5).to(device) for size in (WIDTH, width)
    )
    return lambda given: functional.gelu(given.to(device) @ first) @ second


def words(visual: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Text (M, D) for visual (N, D): every other token near a patch, the others anywhere."""
    rows = torch.randn(count, visual.shape[1], generator=generator).to(visual.device)
    subject = torch.randint(len(visual), (len(rows[::2]),), generator=generator).to(visual.device)
    rows *= visual.std()
    rows[::2] = visual[subject] + NEAR * rows[::2]
    return rows
