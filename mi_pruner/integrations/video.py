"""Videos: which tokens repeat what was seen at their place before, and how frames share a budget."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

REPEAT_COSINE = 0.9  # docs/quality.md, "Repeats in videos", has what was tried
_TIMES_NEARER = 4  # than two tokens of the video are on average
_ROUNDING = 1e-5  # of cosines in float32


def check_repeat_cosine(repeat_cosine: float | None) -> None:
    """TypeError, ValueError unless it is None or in (0, 1]."""
    if repeat_cosine is None:
        return
    if isinstance(repeat_cosine, bool) or not isinstance(repeat_cosine, (int, float)):
        raise TypeError(f"repeat_cosine: expected a number in (0, 1] or None, got {type(repeat_cosine).__name__}")
    if not 0 < repeat_cosine <= 1:
        raise ValueError(f"repeat_cosine: expected a number in (0, 1], or None for no repeats, got {repeat_cosine}")


def repeats(features: Tensor, frames: int, repeat_cosine: float = REPEAT_COSINE) -> Tensor:
    """Which tokens of a video repeat what was last new at their place.

    Token p of frame t is a repeat if 1 − ⟨v̂[t, p], v̂[s, p]⟩ ≤ min(1 − c, (1 − u)/4), with s < t the frame in which
    place p was last new; else it is new. u = |mean v̂|² is the mean cosine of all pairs of tokens: where all have much
    in common, a cosine of c says little, and a repeat has to be four times as near as two tokens are on average. (With
    the frame just before in place of s, nothing would ever be new in a scene that drifts slowly.)

    A selection gives repeats a score of −inf: they are picked last, and the count stays exact.

    Args:
        features: (T · P, D) floating point, frame after frame, after the projector; compared in float32 or float64.
        frames: T; each has P tokens.
        repeat_cosine: c, in (0, 1].

    Returns:
        (T · P,) bool. Equal rows are repeats at any c. Rows that are zero or not finite are none, nor does any repeat
        them.

    Raises:
        ValueError, TypeError: for a video that does not divide into its frames, or a cosine out of range.
    """
    check_repeat_cosine(repeat_cosine)
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(f"features: expected (T · P, D) floating point, got {tuple(features.shape)} {features.dtype}")
    if frames < 1 or len(features) % frames:
        raise ValueError(f"frames: expected a divisor of the {len(features)} tokens, got {frames}")
    shown = features.reshape(frames, -1, features.shape[1])  # converted frame by frame: a long video is large
    norms = row_norms(shown)
    exact = norms.dtype
    present = norms.isfinite() & (norms > 0)
    inverse = torch.where(present, 1 / norms, 0)
    total = torch.zeros_like(shown[0, 0], dtype=exact)
    for frame, scale, there in zip(shown, inverse, present, strict=True):
        total += scale @ torch.where(there[:, None], frame, 0).to(exact)
    common = (total / present.sum()).square().sum()
    least = (1 - (1 - common) / _TIMES_NEARER).clamp(min=repeat_cosine).clamp(max=1 - _ROUNDING)
    last_new = torch.zeros_like(shown[0], dtype=exact)
    found = []
    for frame, scale, there in zip(shown, inverse, present, strict=True):
        unit = frame.to(exact) * scale[:, None]
        repeated = torch.linalg.vecdot(unit, last_new) >= least  # never where NaN came from an absent row
        found.append(repeated)
        last_new = torch.where((repeated | ~there)[:, None], last_new, unit)
    return torch.stack(found).flatten()


def row_norms(features: Tensor) -> Tensor:
    """(..., D) floating point -> (...) float32, or float64: the rows' norms, not finite where a row is not."""
    return torch.linalg.vector_norm(features, dim=-1, dtype=torch.promote_types(features.dtype, torch.float32))


def repeats_of_each(
    features: Tensor, lengths: Sequence[int], frames: Sequence[int], movable: Tensor | None, repeat_cosine: float | None
) -> Tensor | None:
    """`repeats` of all videos of a batch: (ΣN,) bool, False on images and structural rows; None where there are none.

    Args:
        features: (ΣN, D), one image or video after another.
        lengths, frames: of each, its tokens, and the frames in which they come: 1 of an image.
        movable: (ΣN,) bool, False on structural rows, which a video has after its frames only. None: there are none.
        repeat_cosine: None: no token is a repeat.

    Raises:
        ValueError, TypeError: as `repeats`; for structural rows before the end of a video, or frames of another number.
    """
    check_repeat_cosine(repeat_cosine)
    if not isinstance(frames, Sequence) or any(isinstance(f, bool) or not isinstance(f, int) for f in frames):
        raise TypeError(f"frames: expected a list of ints, got {frames!r:.60}")
    if len(frames) != len(lengths) or any(count < 1 for count in frames):
        raise ValueError(
            f"frames: expected one number >= 1 for each of the {len(lengths)} images or videos, got {frames!r:.60}"
        )
    if repeat_cosine is None or max(frames) == 1:
        return None
    found = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    start = 0
    for length, count in zip(lengths, frames, strict=True):
        if count > 1:
            tokens = length if movable is None else int(movable[start : start + length].sum())
            shown = slice(start, start + tokens)
            if movable is not None and not movable[shown].all():
                raise ValueError("structural: expected those of a video after all of its frames, got some before")
            found[shown] = repeats(features[shown], count, repeat_cosine)
        start += length
    return found


def frames_in_turn(new: Sequence[int], tokens: Sequence[int], keep: int) -> list[int]:
    """Which frame gets the next token of a budget, `keep` times: every frame one, then by novelty.

    The rest goes by highest averages (D'Hondt's method): to the frame of largest new / (given + 1), of equals to the
    one that was given least, then to the first, as long as it has tokens. A larger budget only adds to a smaller one,
    and no frame gets more than it has new tokens before all new tokens of the video are given away.

    Args:
        new: how many tokens of each frame are new.
        tokens: how many each frame has. A frame without any gets none.
        keep: the budget of the video.

    Returns:
        `keep` numbers of frames, or as many as there are tokens.

    Raises:
        ValueError: if there is not a token for each frame.
    """
    turns = [frame for frame, count in enumerate(tokens) if count > 0]
    if keep < len(turns):
        raise ValueError(f"keep: expected at least one token for each of the video's {len(turns)} frames, got {keep}")
    waiting = [(-new[frame] / 2, 1, frame) for frame in turns if tokens[frame] > 1]
    heapq.heapify(waiting)
    while waiting and len(turns) < keep:
        _, given, frame = heapq.heappop(waiting)
        turns.append(frame)
        if given + 1 < tokens[frame]:
            heapq.heappush(waiting, (-new[frame] / (given + 2), given + 1, frame))
    return turns
