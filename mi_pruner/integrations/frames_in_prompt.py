"""The frames of videos in the prompts of families that take a video as images: InternVL and SmolVLM.

Their processors write, for a video of two frames, `Frame1: <img>…</img>\\nFrame2: <img>…</img>` and `Frame from 00:00:
<fake_token_around_image><global-img>…<fake_token_around_image>\\nFrame from 00:01:…`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

_MARK = re.compile(
    r"""(?P<before>(?:\s*<[^<>]*>)*)\s*  # closes the image before
    Frame\s*(?:(?P<number>\d+)|from\s*\d+\s*:\s*\d+)\s*:\s*
    (?:<[^<>]*>\s*)*$  # opens the image
    """,
    re.VERBOSE,
)
_LONGEST = 64  # tokens of text before a frame that are read; a mark has about ten


def frames_begun(tokenizer: Any, input_ids: Tensor, runs: list[tuple[int, int, int]]) -> list[bool | None]:
    """Of each run of placeholders: True for the first frame of a video, False for a further one, None for no frame.

    Args:
        tokenizer: of the prompt.
        input_ids: (B, L) int64.
        runs: row, first column and length of each.
    """
    found: list[bool | None] = []
    end = (-1, 0)  # row, and column after the run before
    for row, start, length in runs:
        first = max(end[1] if end[0] == row else 0, start - _LONGEST)
        mark = _MARK.search(tokenizer.decode(input_ids[row, first:start].tolist()))
        follows = mark is not None and mark.start() == 0 and end == (row, first) and found[-1] is not None
        found.append(None if mark is None else not follows or mark["number"] == "1")
        end = (row, start + length)
    return found
