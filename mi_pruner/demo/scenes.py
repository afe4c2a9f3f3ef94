"""Scenes: two to six coloured handwritten digits over a crop of a photograph, with the patches that each one covers."""

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from PIL import Image

from .sources import SPLITS, Split, digit_images, photographs
from .vocabulary import COLOURS, DIGITS, PLACES

PATCH = 6  # pixels
GRID = 9  # patches a side, unless said otherwise: 54 x 54 pixels
SIDE = GRID * PATCH
_CELLS = 3  # a side: a digit lives in one of 3 x 3 cells

_INK = 0.35  # opacity from which a pixel counts as part of a digit
_COVER = 0.12  # share of a patch's pixels from which the patch belongs to a digit: 5 of 36
_BACKGROUND = (0.35, 0.65)  # range of the background's strength: bright enough to know the photograph, dim to read on
_COLOURFULNESS = 0.6  # of the background: a fully coloured one hides digits of its own colour


@dataclass(frozen=True)
class Digit:
    """One digit of a scene: its value 0 .. 9, the name of its colour and its cell 0 .. 8, row by row."""

    value: int
    colour: str
    cell: int

    @property
    def name(self) -> str:
        """The digit as a word."""
        return DIGITS[self.value]

    @property
    def place(self) -> str:
        """Its cell as a word."""
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """A picture, (6 G, 6 G, 3) uint8, its digits, and the digit (index, or -1) that owns each of its (G, G) patches."""

    pixels: np.ndarray
    digits: tuple[Digit, ...]
    owner: np.ndarray


def make_scene(split: Split, seed: int, augment: bool = False, grid: int = GRID) -> Scene:
    """The scene of this split and seed, always the same; values and colours within a scene are all different.

    `augment` turns, scales and shears the digits at random: for training. grid: patches a side, a multiple of 3.
    """
    rng = np.random.default_rng((SPLITS.index(split), seed))
    canvas = _background(split, rng, grid * PATCH)
    count = int(rng.integers(2, 7))
    values = rng.permutation(10)[:count]
    colours = rng.permutation(list(COLOURS))[:count]
    cells = rng.permutation(9)[:count]
    digits = tuple(Digit(int(v), str(c), int(p)) for v, c, p in zip(values, colours, cells, strict=True))
    cover = np.zeros((count, grid, grid), np.float32)
    for index, digit in enumerate(digits):
        opacity = _opacity(digit, split, rng, augment, grid * PATCH)
        colour = np.array(COLOURS[digit.colour]) + rng.integers(-14, 15, 3)
        canvas = _paint(canvas, opacity, np.clip(colour, 0, 255).astype(np.float32))
        cover[index] = patches_of(opacity > _INK).mean(axis=(2, 3))
    owner = np.where(cover.max(axis=0) >= _COVER, cover.argmax(axis=0), -1)
    return Scene(canvas.astype(np.uint8), digits, owner)


def patches_of(plane: np.ndarray) -> np.ndarray:
    """(6 G, 6 G) -> (G, G, 6, 6): the patches of a plane, row by row."""
    grid = len(plane) // PATCH
    return plane.reshape(grid, PATCH, grid, PATCH).swapaxes(1, 2)


def _background(split: Split, rng: np.random.Generator, scene: int) -> np.ndarray:
    """(scene, scene, 3) float32: a random square of a photograph, dimmed and paled so that digits stay readable."""
    choices = photographs(split)
    photograph = choices[int(rng.integers(len(choices)))]
    largest = min(photograph.size)
    side = int(rng.integers(min(scene, largest), largest + 1))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    crop = photograph.resize((scene, scene), Image.Resampling.BOX, (left, top, left + side, top + side))
    canvas = np.asarray(crop, np.float32)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    grey = canvas.mean(axis=2, keepdims=True)
    return (grey + _COLOURFULNESS * (canvas - grey)) * rng.uniform(*_BACKGROUND)


def _opacity(digit: Digit, split: Split, rng: np.random.Generator, augment: bool, scene: int) -> np.ndarray:
    """(scene, scene) float32 in 0 .. 1: the ink of a random image of the digit, somewhere in its cell."""
    choices = digit_images(split)[digit.value]
    image = Image.fromarray(choices[int(rng.integers(len(choices)))])
    cell = scene // _CELLS
    size = int(rng.integers(5 * cell // 6, cell + 1))
    if augment:
        ink = image.transform((size, size), Image.Transform.AFFINE, _distortion(rng, size), Image.Resampling.BICUBIC)
    else:
        ink = image.resize((size, size), Image.Resampling.BICUBIC)
    row, column = divmod(digit.cell, _CELLS)
    top = row * cell + int(rng.integers(cell - size + 1))
    left = column * cell + int(rng.integers(cell - size + 1))
    opacity = np.zeros((scene, scene), np.float32)
    opacity[top : top + size, left : left + size] = np.asarray(ink, np.float32) / 255
    return np.clip(1.6 * opacity - 0.1, 0, 1)  # firmer strokes, no grey fringe


def _distortion(rng: np.random.Generator, size: int) -> tuple[float, ...]:
    """Coefficients from output to input pixels: up to 12 degrees, 8 % of scale either way and some shear."""
    angle = radians(rng.uniform(-12, 12))
    across, down = 8 / size * rng.uniform(0.92, 1.08, 2)
    shear = rng.uniform(-0.12, 0.12)
    a, b = across * cos(angle), across * (sin(angle) + shear)
    d, e = -down * sin(angle), down * cos(angle)
    middle = size / 2
    return a, b, 4 - (a + b) * middle, d, e, 4 - (d + e) * middle


def _paint(canvas: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lays a colour on the canvas, with a soft shadow a pixel around it."""
    shadow = opacity.copy()
    for axis in (0, 1):
        shadow = np.maximum(shadow, np.maximum(np.roll(shadow, 1, axis), np.roll(shadow, -1, axis)))
    canvas = canvas * (1 - 0.6 * shadow[..., None])
    return canvas + opacity[..., None] * (colour - canvas)
