"""Takes columns out of a prompt: ids, masks and positions, the positions of what stays unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .supported_model import family_of

NO_LABEL = -100  # what `labels` have where no answer is: transformers' losses leave it out
_PADDING = {"labels": NO_LABEL}  # of what is shaped like input_ids; 0 for all others
_ROPE_ARGUMENTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def original_positions(model: Any, inputs: Mapping[str, Any], attended: Tensor) -> Tensor:
    """Positions of the unpruned prompt: (B, L), or (3, B, L) where the model has mRoPE; attended: (B, L) bool."""
    ids, base = inputs["input_ids"], model.base_model
    if not family_of(model).mrope:
        return (attended.long().cumsum(-1) - 1).clamp(min=0)
    types = inputs.get("mm_token_type_ids")
    if types is None:
        types = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    grids = {name: inputs[name] for name in _ROPE_ARGUMENTS if inputs.get(name) is not None}
    return base.get_rope_index(ids, mm_token_type_ids=types, attention_mask=attended.long(), **grids)[0]


def keep_columns(model: Any, inputs: Mapping[str, Any], attended: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """What is shaped like `input_ids` (B, L), and `position_ids`, with only the columns (B, L) bool that stay.

    Rows are left-padded to the longest. mRoPE models get positions (4, B, K): row 0, which only the attention mask is
    built from, counts the columns; rows 1 to 3 are the original ones. Their `rope_deltas`, from which they continue a
    cache without positions, are set on the model, as their own forward does.
    """
    ids = inputs["input_ids"]
    ends = attended.long().cumsum(1).argmax(1, keepdim=True)  # the last attended column of each row
    if not columns.gather(1, ends).all():
        raise ValueError("input_ids: expected text after the last image of each sample, got one that ends in an image")
    width = int(columns.sum(1).max())
    order = columns.int().argsort(dim=1, stable=True)[:, -width:]
    valid = columns.gather(1, order)
    taken = {
        name: value.gather(1, order).masked_fill(~valid, _PADDING.get(name, 0))
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == ids.shape
    }
    taken["input_ids"] = ids.gather(1, order).masked_fill(~valid, _padding_id(model))
    taken["attention_mask"] = valid.long()
    positions = original_positions(model, inputs, attended)
    gathered = positions.gather(-1, order.expand(*positions.shape[:-1], -1)).masked_fill(~valid, 0)
    if positions.dim() == 3:
        places = (valid.long().cumsum(-1) - 1).clamp(min=0)
        model.base_model.rope_deltas = gathered.amax((0, 2))[:, None] + 1 - valid.sum(1, keepdim=True)
        gathered = torch.cat([places[None], gathered])
    taken["position_ids"] = gathered
    return taken


def _padding_id(model: Any) -> int:
    """An id for padding that is no placeholder."""
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        padding = getattr(config, "pad_token_id", None)
        if padding is not None and padding not in _placeholders(model):
            return padding
    return next(index for index in range(3) if index not in _placeholders(model))


def _placeholders(model: Any) -> tuple[int | None, int | None]:
    return getattr(model.config, "image_token_id", None), getattr(model.config, "video_token_id", None)
