"""What the user of the demo gave, made fit for the model: how many tokens, which picture, which scene."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .._errors import InputError
from .questions import questions_about
from .scenes import SIDE, Scene, make_scene
from .vocabulary import encode_question

_SEARCHED = 500  # scenes looked through, within a second, for one that fits the questions
_FIRST = 253  # seed of the scene tried first: a handsome one
_LIVELY = 4  # digits: the scenes with fewer are dull to look at


def read_keep(text: str, tokens: int) -> int | float:
    """`--keep` as `mi_pruner.prune` takes it: "20" a count of 1 .. tokens, "0.25" and "1.0" a ratio in (0, 1]."""
    expected = f"--keep: expected a ratio in (0, 1] such as 0.25, or a count of 1 to {tokens}, got {text!r}"
    try:
        count = int(text)
    except ValueError:
        return _ratio(text, expected)
    if not 1 <= count <= tokens:
        raise InputError(expected)
    return count


def _ratio(text: str, expected: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise InputError(expected)
    return ratio


def check_out(path: Path) -> None:
    """Refuses, before any work, a file that no PNG can be written to."""
    if path.suffix.lower() != ".png":
        raise InputError(f"--out: expected a file ending in .png, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"--out: no folder {path.parent} to write {path.name} to")


def read_picture(path: Path) -> np.ndarray:
    """A picture file, centre-cropped to a square and resized to (54, 54, 3) uint8."""
    try:
        with Image.open(path) as image:
            picture = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (SIDE, SIDE))
    except UnidentifiedImageError as error:
        raise InputError(f"--image: {path} is not a picture that can be read: give a PNG or JPEG file") from error
    # What Pillow raises for a broken file depends on its format: SyntaxError for a PNG, ValueError for a PPM.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--image: cannot read {path} ({reason}): give a PNG or JPEG file") from error
    return np.array(picture)


def chosen_scene(questions: list[str], seed: int | None) -> tuple[Scene, list[str]]:
    """A held-out scene and the questions about it; where there are none, two about different digits of the scene.

    Without a seed it is the first lively scene in which every question has an answer (or simply the first one).
    """
    if seed is not None and seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}")
    seeds = range(_FIRST, _FIRST + _SEARCHED) if seed is None else (seed,)
    scenes = (make_scene("test", one) for one in seeds)
    if seed is None:
        scenes = (scene for scene in scenes if len(scene.digits) >= _LIVELY)
    fits = (scene for scene in scenes if all(truth(scene, question) != UNKNOWN for question in questions))
    scene = next(fits, None) or make_scene("test", _FIRST if seed is None else seed)
    return scene, questions or _two_questions(scene)


def _two_questions(scene: Scene) -> list[str]:
    first, second = scene.digits[:2]
    return [f"what digit is {first.colour}", f"what colour is the {second.name}"]


UNKNOWN = "unknown, nothing in the scene answers this"


def truth(scene: Scene, question: str) -> str:
    """The right answer where the scene has one, else UNKNOWN."""
    ids = encode_question(question)
    answers = (known.answer for known in questions_about(scene) if encode_question(known.text) == ids)
    return next(answers, UNKNOWN)
