"""What the user of a command gave, made fit: how many tokens to keep, which picture or video, where to write."""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_FRAMES_PER_SECOND = 2.0  # of frames that come without times: as _EXTRACT makes them, and Qwen-VL samples them
_EXTRACT = "mkdir frames && ffmpeg -i {file} -vf fps=2 frames/%04d.png"


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video: RGB pictures of one size, `fps` of them a second."""

    frames: list["Image"]
    fps: float


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


def open_clip(path: Path) -> Clip:
    """`--video`: a folder of pictures in the order of their names, numbers by value; or an animation."""
    if path.is_dir():
        clip = Clip([open_picture(file, "--video") for file in _frame_files(path)], _FRAMES_PER_SECOND)
    else:
        clip = _open_animation(path)
    if len(clip.frames) < 2:
        raise InputError(
            f"--video: expected at least two frames, got {len(clip.frames)} in {path}: a single picture goes to --image"
        )
    sizes = [frame.size for frame in clip.frames]
    other = next((number for number, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        first, found = (" × ".join(map(str, size)) for size in (sizes[0], sizes[other]))
        raise InputError(
            f"--video: expected frames of one size, {first} as the first, got {found} for "
            f"frame {other + 1} in {path}: resize them"
        )
    return clip


def _frame_files(folder: Path) -> list[Path]:
    """The folder's files, without hidden ones: frame2.png before frame10.png."""

    def key(file: Path) -> list[str | int]:
        parts = re.split(r"(\d+)", file.name)  # text and numbers by turns
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    try:
        return sorted((file for file in folder.iterdir() if not file.name.startswith(".")), key=key)
    except OSError as error:
        raise InputError(f"--video: cannot read {folder} ({error.strerror})") from error


def _open_animation(path: Path) -> Clip:
    from PIL import Image, ImageSequence

    frames = []
    seconds = 0.0
    try:
        with Image.open(path) as animation:
            for frame in ImageSequence.Iterator(animation):
                frames.append(frame.convert("RGB"))
                seconds += (frame.info.get("duration") or 0) / 1000
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as in `open_picture`
        if reason := getattr(error, "strerror", None):
            raise InputError(f"--video: cannot read {path} ({reason})") from error
        raise InputError(
            f"--video: {path} is no animation that can be read: give a folder of its frames "
            f"({_EXTRACT.format(file=shlex.quote(str(path)))}), or a GIF, WebP or PNG file"
        ) from error
    return Clip(frames, len(frames) / seconds if seconds else _FRAMES_PER_SECOND)
