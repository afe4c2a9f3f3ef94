"""The frames of videos in the prompts of families that take a video as images: InternVL and SmolVLM.

Their processors write, for a video of two frames, `Frame1: <img>…</img>\\nFrame2: <img>…</img>` and `Frame from 00:00:
<fake_token_around_image><global-img>…<fake_token_around_image>\\nFrame from 00:01:…`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_CLOSING = r"(?:\s*<[^<>]*>)*\s*"  # of the frame before
_LONGEST = 64  # tokens of text before a frame that are read; a mark has about ten


def frames_begun(
    mark: str, tile: int | None, tokenizer: Any, input_ids: Tensor, runs: list[tuple[int, int, int]]
) -> list[bool | None]:
    """Of each run of placeholders: True for the first frame of a video, False for a further one, None for no frame.

    Args:
        mark: `Family.frame_mark`.
        tile: placeholders of a frame. None: every run is a tile.
        tokenizer: of the prompt.
        input_ids: (B, L) int64.
        runs: row, first column and length of each.
    """
    found: list[bool | None] = []
    end, before = (-1, 0), 0  # row, and column after the run before; its number
    for row, start, length in runs:
        first = max(end[1] if end[0] == row else 0, start - _LONGEST)
        text = tokenizer.decode(input_ids[row, first:start].tolist())
        shown = re.search(f"{mark}$", text) if length == (tile or length) else None
        number = 0 if shown is None else int(shown.groupdict().get("number") or 0)
        if shown is None:
            found.append(None)
        else:
            alone = end == (row, first) and re.fullmatch(_CLOSING + mark, text) is not None
            follows = alone and found[-1] is not None and number in (0, before + 1)
            found.append(not follows)
        end, before = (row, start + length), number
    return found
