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

_KEY_VERSION = 2  # part of every cache key: to be raised when a selection changes for the same options


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
) -> list[Tensor]:
    """The order in which each image's tokens are selected, all images in one packed call.

    Select once at the largest budget, slice any smaller one: the first k of an order are the selection for k.

    Args:
        features: one (N, D) for each image, after the projector.
        pruner: `pruner.keep` is the largest budget that will be asked for.
        texts: one (M, D) for each image, the question's embeddings. None: each image's own tokens, so that nothing
            depends on the question.
        structural: one (N,) bool for each image, True on rows that always stay: they are not in the orders.

    Returns:
        One (K,) int64 for each image, K = `kept_count(N − s, pruner.keep)` for s structural rows: exactly, whatever
        the features hold. Rows that are not finite come last.

    Raises:
        ValueError: if `pruner.min_gain` is set: then the count would depend on the features.
    """
    if pruner.min_gain is not None:
        raise ValueError(
            "pruner: expected min_gain=None, since an engine must know the count from shapes, got a number"
        )
    if not features:
        return []
    fixed = structural or [torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for rows in features]
    own = [rows[~mask] for rows, mask in zip(features, fixed, strict=True)]
    read = own if texts is None else texts
    images = PackedImages(
        torch.cat(list(features)),
        torch.cat(list(read)),
        [len(rows) for rows in features],
        [len(text) for text in read],
        ~torch.cat(list(fixed)),
        list(range(len(features))),
    )
    counts = [kept_count(len(rows), pruner.keep) for rows in own]
    picks = by_information(pruner)(images, counts)
    parts = picks.indices.split(counts)
    return [_complete(part, mask) for part, mask in zip(parts, fixed, strict=True)]


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
    grid_thw: Sequence[int], merge_size: int, start: int, rows: Tensor, time_interval: float = 1.0
) -> tuple[Tensor, int]:
    """mRoPE positions (3, K) (time, height, width) of the rows that stay, and the position of the text that follows.

    Args:
        grid_thw: frames, height and width in patches, as the Qwen processors give them.
        merge_size: patches that are merged along each side.
        start: the position of the image's first token.
        rows: (K,) int64.
        time_interval: between two frames; of Qwen2.5-VL's videos: tokens_per_second · second_per_grid_t. (Qwen3-VL
            writes every frame of a video as an image of its own, with a timestamp before it.)
    """
    _, height, width = grid_thw
    lines, columns = height // merge_size, width // merge_size
    frame = rows // (lines * columns)
    within = rows % (lines * columns)
    positions = torch.stack([(frame * time_interval).long(), within // columns, within % columns]) + start
    return positions, start + max(lines, columns)


def cache_key(image_key: str, pruner: MIPruner, question_ids: Sequence[int] | None = None) -> str:
    """Under which a pruned image may be cached: a SHA-256 of the image's own key and of all that decides the selection.

    image_key: the engine's hash of the picture and of how it was processed. question_ids: the instruction's token ids
    where the selection reads them; None for a selection that does not.
    """
    question = None if question_ids is None else [int(index) for index in question_ids]
    said = json.dumps([_KEY_VERSION, image_key, pruner.extra_repr(), question])  # extra_repr: every option
    return hashlib.sha256(said.encode()).hexdigest()
