"""What the user of a command gave, made fit: how many tokens to keep, which picture, where to write."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def read_keep(text: str, tokens: int | None = None) -> int | float:
    """`--keep` as `mi_pruner.prune` takes it: "20" a count of 1 .. tokens, "0.25" and "1.0" a ratio in (0, 1].

    tokens: how many there are, where that is known.
    """
    counts = "a count of at least 1" if tokens is None else f"a count of 1 to {tokens}"
    expected = f"--keep: expected a ratio in (0, 1] such as 0.25, or {counts}, got {text!r}"
    try:
        count = int(text)
    except ValueError:
        return _ratio(text, expected)
    if count < 1 or (tokens is not None and count > tokens):
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


def open_picture(path: Path, option: str = "--image") -> "Image":
    """A picture file, upright and in RGB; option: what named it."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{option}: {path} is not a picture that can be read: give a PNG or JPEG file") from error
    # What Pillow raises for a broken file depends on its format: SyntaxError for a PNG, ValueError for a PPM.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: cannot read {path} ({reason}): give a PNG or JPEG file") from error
