"""The real material of the scenes: photographs and handwritten digits, each with its train, dev and test part.

A split shares neither a digit image nor a photograph region with another one.
"""

from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from PIL import Image

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# file -> (package that brings it, region as left, top, right, bottom); None: the whole photograph.
# dev and test need scikit-learn only, so the demo does too; training takes scikit-image's photographs besides.
_Region = tuple[int, int, int, int] | None
_PHOTOGRAPHS: dict[Split, tuple[tuple[str, str, _Region], ...]] = {
    "train": (
        ("skimage", "data/astronaut.png", None),
        ("skimage", "data/coffee.png", None),
        ("skimage", "data/chelsea.png", None),
        ("skimage", "data/rocket.jpg", None),
        ("sklearn", "datasets/images/china.jpg", (370, 0, 640, 427)),
        ("sklearn", "datasets/images/flower.jpg", (0, 0, 165, 427)),
    ),
    "dev": (
        ("sklearn", "datasets/images/flower.jpg", (450, 0, 640, 427)),
        ("sklearn", "datasets/images/china.jpg", (0, 120, 62, 427)),
    ),
    "test": (
        ("sklearn", "datasets/images/china.jpg", (65, 20, 365, 427)),
        ("sklearn", "datasets/images/flower.jpg", (168, 75, 447, 427)),
    ),
}


@cache
def photographs(split: Split) -> tuple[Image.Image, ...]:
    """The RGB photographs, or parts of photographs, that are the backgrounds of a split."""
    return tuple(_photograph(package, file, region) for package, file, region in _PHOTOGRAPHS[split])


def _photograph(package: str, file: str, region: _Region) -> Image.Image:
    with (files(package) / file).open("rb") as stream, Image.open(stream) as image:
        photograph = image.convert("RGB")
    return photograph.crop(region) if region else photograph


@cache
def digit_images(split: Split) -> tuple[tuple[np.ndarray, ...], ...]:
    """Ten tuples, one for each digit: its handwritten images, (8, 8) uint8, 0 = paper and 255 = ink."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(digits.images * 16, 0, 255).astype(np.uint8)  # ink comes as 0 .. 16
    belongs = [_split_of_digit(index) for index in range(len(images))]
    return tuple(
        tuple(images[i] for i in range(len(images)) if belongs[i] == split and digits.target[i] == value)
        for value in range(10)
    )


def _split_of_digit(index: int) -> Split:
    """Every seventh image to dev and every seventh to test: 7 shares no factor with the ten-cycle of the labels."""
    held_out: dict[int, Split] = {0: "dev", 1: "test"}
    return held_out.get(index % 7, "train")
