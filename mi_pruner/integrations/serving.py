"""For serving engines: how many tokens stay is known from shapes alone, which ones and where is told afterwards.

An engine reserves placeholders before it encodes an image, often before it knows the question, and it caches what it
has encoded. So: counts from shapes, an order of selection that does not need a question and serves every budget,
positions of the rows that stay, and keys under which a pruned image may be cached. Needs torch only; docs/serving.md
shows where vLLM and SGLang call these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from ..pruner import MIPruner
from .packed_selection import PackedImages, by_information, count_to_keep
from .video import REPEAT_COSINE, repeats_of_each

_KEY_VERSION = 3  # part of every cache key: to be raised when a selection changes for the same options


def kept_count(tokens: int, keep: int | float, structural: int = 0) -> int:
    """How many of an image's `tokens` stay: `keep` (a ratio in (0, 1] or a count) of those that are not structural,
    and all structural ones (the `image_newline` rows of LLaVA-NeXT and LLaVA-OneVision).

    Raises:
        ValueError, TypeError: for a keep out of range, or more structural rows than tokens.
    """
    _checks.check_keep(keep)
    if not 0 <= structural <= tokens:
        raise ValueError(f"structural: expected 0 <= structural <= tokens = {tokens}, got {structural}")
    return structural + count_to_keep(keep, tokens - structural)


def grid_tokens(grid_thw: Sequence[int], merge_size: int) -> int:
    """Tokens of a Qwen image or video of (frames, height, width) patches: one for merge_size² patches."""
    frames, height, width = grid_thw
    return frames * (height // merge_size) * (width // merge_size)


def selection_orders(
    features: Sequence[Tensor],
    pruner: MIPruner,
    *,
    texts: Sequence[Tensor] | None = None,
    structural: Sequence[Tensor] | None = None,
    frames: Sequence[int] | None = None,
    repeat_cosine: float | None = REPEAT_COSINE,
) -> list[Tensor]:
    """The order in which each image's tokens are selected, all images in one packed call.

    Select once at the largest budget, slice any smaller one: the first k of an order are the selection for k.

    Args:
        features: one (N, D) for each image or video, after the projector; or (U, N, D).
        pruner: `pruner.keep` is the largest budget that will be asked for.
        texts: one (M, D) for each image, the question's embeddings. None: each image's own tokens, so that nothing
            depends on the question.
        structural: one (N,) bool for each image, True on rows that always stay: they are not in the orders.
        frames: one number for each, 1 of an image; the features of a video come frame after frame, structural rows
            after all. None: all are images.
        repeat_cosine: tokens of a video that repeat what was last new at their place come after all that are new
            (`video.repeats`). None: no token is a repeat.

    Returns:
        One (K,) int64 for each image, K = `kept_count(N − s, pruner.keep)` for s structural rows: exactly, whatever
        the features hold. Rows that are not finite come last.

    Raises:
        ValueError: if `pruner.min_gain` is set: then the count would depend on the features. ValueError, TypeError: for
            arguments of another form or number.
    """
    if pruner.min_gain is not None:
        raise ValueError(
            "pruner: expected min_gain=None, since an engine must know the count from shapes, got a number"
        )
    visual = _one_for_each("features", features)
    if not visual:
        return []
    count = len(visual)
    if structural is None:
        fixed = [torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for rows in visual]
    else:
        fixed = _one_for_each("structural", structural, count, mask=True)
    own = [rows[~mask] for rows, mask in zip(visual, fixed, strict=True)]
    read = own if texts is None else _one_for_each("texts", texts, count)
    if any(len(text) == 0 for text in read):
        raise ValueError("texts: expected at least one token for each image, got none for one of them")
    whole, movable, lengths = torch.cat(visual), ~torch.cat(fixed), [len(rows) for rows in visual]
    images = PackedImages(
        whole,
        torch.cat(read),
        lengths,
        [len(text) for text in read],
        movable,
        list(range(count)),
        None if frames is None else repeats_of_each(whole, lengths, frames, movable, repeat_cosine),
    )
    counts = [kept_count(len(rows), pruner.keep) for rows in own]
    picks = by_information(pruner)(images, counts)
    parts = picks.indices.split(counts)
    return [_complete(part, mask) for part, mask in zip(parts, fixed, strict=True)]


def _one_for_each(
    name: str, given: Sequence[Tensor] | Tensor, count: int | None = None, *, mask: bool = False
) -> list[Tensor]:
    """A list or a stack of (N, D) features, or of (N,) masks, as a list of `count`."""
    form, rank = ("(N,) bool", 1) if mask else ("(N, D) floating point", 2)
    if not isinstance(given, (Sequence, Tensor)) or (isinstance(given, Tensor) and given.dim() <= rank):
        got = str(tuple(given.shape)) if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name}: expected a list of one {form} for each image, or a stack, got {got}")
    each = list(given)
    for part in each:
        right = isinstance(part, Tensor) and (part.dtype == torch.bool if mask else part.is_floating_point())
        if not right or part.dim() != rank:
            got = f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"{name}: expected one {form} for each image, got {got} among them")
    if count is not None and len(each) != count:
        raise ValueError(f"{name}: expected one for each of the {count} images, got {len(each)}")
    return each


def _complete(order: Tensor, structural: Tensor) -> Tensor:
    """The order with the lowest rows that are left in its unused slots (−1), which come last."""
    left = ~structural
    left[order[order >= 0]] = False
    used = int((order >= 0).sum())
    return torch.cat([order[:used], left.nonzero()[: len(order) - used, 0]])


def kept_rows(order: Tensor, keep: int, structural: Tensor | None = None) -> Tensor:
    """Rows that stay, (keep,) int64 ascending: the structural rows ((N,) bool), and the first of an order.

    keep: how many rows in all, as `kept_count` counts them: structural rows among them.

    Raises:
        ValueError: if `keep` is less than the structural rows, or more than these and the order.
    """
    fixed = order[:0] if structural is None else structural.nonzero()[:, 0]
    if not len(fixed) <= keep <= len(fixed) + len(order):
        raise ValueError(
            f"keep: expected {len(fixed)} to {len(fixed) + len(order)} rows ({len(fixed)} structural, the order has "
            f"{len(order)}), got {keep}"
        )
    return torch.cat([order[: keep - len(fixed)], fixed]).sort().values


def linear_positions(start: int, tokens: int, rows: Tensor) -> tuple[Tensor, int]:
    """1-D positions (K,) of the rows of an image of `tokens` tokens that begins at position `start`; the next one."""
    return start + rows, start + tokens


def mrope_positions(
    grid_thw: Sequence[int],
    merge_size: int,
    start: int,
    rows: Tensor,
    time_interval: float = 1.0,
    text_after: str = "all",
) -> tuple[Tensor, int]:
    """mRoPE positions (3, K) (time, height, width) of the rows that stay, and the position of the text that follows.

    Args:
        grid_thw: frames, height and width in patches, as the Qwen processors give them.
        merge_size: patches that are merged along each side.
        start: the position of the image's first token.
        rows: (K,) int64.
        time_interval: between two frames; of Qwen2.5-VL's videos: tokens_per_second · second_per_grid_t. (Qwen3-VL
            writes every frame of a video as an image of its own, with a timestamp before it.)
        text_after: where the text goes on. "all": after the largest position of all rows, in time, height and width, as
            in vLLM and transformers 4. "sides": `start` + the longer side, as in transformers 5 (5.24.0), and so after
            `prune_inputs`: in a video that lasts longer than it is wide the text lies before the last frames' time.

    Raises:
        ValueError: for another `text_after`.
    """
    if text_after not in ("all", "sides"):
        raise ValueError(f"text_after: expected 'all' or 'sides', got {text_after!r}")
    frames, height, width = grid_thw
    lines, columns = height // merge_size, width // merge_size
    frame = rows // (lines * columns)
    within = rows % (lines * columns)
    positions = torch.stack([(frame * time_interval).long(), within // columns, within % columns]) + start
    longest = max(lines, columns)
    if text_after == "all":
        longest = max(longest, int((frames - 1) * time_interval) + 1)
    return positions, start + longest


def cache_key(
    image_key: str,
    pruner: MIPruner,
    question_ids: Sequence[int] | Tensor | None = None,
    *,
    repeat_cosine: float | None = REPEAT_COSINE,
) -> str:
    """Under which a pruned image may be cached: a SHA-256 of the image's own key and of all that decides the selection.

    Args:
        image_key: the engine's hash of the picture or video and of how it was processed.
        pruner, repeat_cosine: as given to `selection_orders`.
        question_ids: the instruction's token ids, (M,) or (1, M), where the selection reads them; None for a selection
            that does not.

    Raises:
        ValueError: for the ids of several questions, or what are no ids.
    """
    question = None if question_ids is None else _ids(question_ids)
    options = [pruner.extra_repr(), repeat_cosine]  # extra_repr: every option
    said = json.dumps([_KEY_VERSION, image_key, options, question])
    return hashlib.sha256(said.encode()).hexdigest()


def _ids(question_ids: Sequence[int] | Tensor) -> list[int]:
    try:
        ids = torch.as_tensor(question_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"question_ids: expected (M,) or (1, M) integers, got {question_ids!r:.60}") from error
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise ValueError(f"question_ids: expected (M,) or (1, M) integers, got {ids.dtype}")
    if ids.dim() != 1 and ids.shape[:-1] != (1,):
        raise ValueError(f"question_ids: expected (M,) or (1, M), of one question, got {tuple(ids.shape)}")
    return [int(index) for index in ids.flatten().tolist()]
