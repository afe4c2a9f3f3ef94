"""Which tokens of an image stay, and where they belong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...pruner import MIPruner
from ..serving import kept_rows, mrope_positions, selection_orders
from .models import Architecture, image_token
from .options import configured
from .orders import Orders
from .positions import of_prompt, put_right, with_positions, without_positions
from .processor import COUNTS, KEEP, KEY, WORDS, last_position


@dataclass(frozen=True)
class _Asked:
    """What `PrunedProcessor` told about an image: tokens before and after, the ratio, ids of words (M,), its key."""

    tokens: int
    kept: int
    keep: float
    words: Tensor
    key: bytes


def _taken_from(kwargs: dict[str, Any]) -> list[_Asked] | None:
    """Of each image, out of the encoder's kwargs; None where all tokens stay."""
    counts, keeps, words, keys = (kwargs.pop(name, None) for name in (COUNTS, KEEP, WORDS, KEY))
    if counts is None:
        return None
    return [
        _Asked(int(count[0]), int(count[1]), float(keep), ids, bytes(key.tolist()))
        for count, keep, ids, key in zip(counts, keeps, words, keys, strict=True)
    ]


class PrunedModel:
    """To be put before a model class of vLLM 0.32: prunes what its encoder returns. Does nothing without the option."""

    architecture: Architecture
    config: Any
    get_language_model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        config = vllm_config.model_config
        self._pruned_by = configured(config.hf_config)
        if self._pruned_by is not None:
            # On this instance only. Both model runners ask it, after the model was built, whether to call
            # recompute_mrope_positions; Qwen3-VL, while it is built, whether positions may go beyond the context.
            object.__setattr__(config.multimodal_config, "is_multimodal_pruning_enabled", lambda: True)
            self.supports_multimodal_pruning = self.supports_mrope = True  # not of the class: its parent may not
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._orders = Orders()
        self._encoded_at_once = vllm_config.scheduler_config.max_num_encoder_input_tokens
        if self._pruned_by is not None:
            self.is_multimodal_pruning_enabled = False  # of the parent's own steps, for videos
            _check_rope_table(self, last_position(config) + config.max_model_len)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """The parent's features of images or videos, (K, D) each of those that stay, with columns for their positions.

        All images are selected in one packed call, as long as their encoder's work is what vLLM takes for one step: it
        counts tokens that are left, and may send more.
        """
        asked = _taken_from(kwargs)
        if self._pruned_by is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if asked is not None:
            parts = _parts(kwargs, asked, self._encoded_at_once)
            return [item for part, own in parts for item in self._pruned(part, own)]
        items = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if any("video" in name for name in kwargs):
            return [without_positions(item) for item in items]
        return [
            self._placed(item, torch.arange(len(item), device=item.device), len(item), grid)
            for item, grid in zip(items, _grids(kwargs, len(items)), strict=True)
        ]

    def _pruned(self, kwargs: dict[str, Any], asked: Sequence[_Asked]) -> list[Tensor]:
        items = list(super().embed_multimodal(**kwargs))  # type: ignore[misc]
        rows = self._rows(items, asked)
        return [
            self._placed(item[row], row, each.tokens, grid)
            for item, row, each, grid in zip(items, rows, asked, _grids(kwargs, len(items)), strict=True)
        ]

    def _rows(self, items: Sequence[Tensor], asked: Sequence[_Asked]) -> list[Tensor]:
        """Of each image the rows that stay: as before, where it was seen before."""
        for item, each in zip(items, asked, strict=True):
            if len(item) != each.tokens:
                raise ValueError(
                    f"mi_pruner: expected {each.tokens} features of an image, as its shape says, got {len(item)}"
                )
        # A client that names its images may use a name again, for another shape.
        keys = [(each.key, each.tokens, each.kept) for each in asked]
        rows = [self._orders.get(key) for key in keys]
        new = [number for number, row in enumerate(rows) if row is None]
        if new:
            selected = self._selected([items[number] for number in new], [asked[number] for number in new])
            for number, row in zip(new, selected, strict=True):
                rows[number] = row
                self._orders.put(keys[number], row)
        return [row for row in rows if row is not None]

    def _selected(self, items: Sequence[Tensor], asked: Sequence[_Asked]) -> list[Tensor]:
        width = self.config.get_text_config().hidden_size  # what follows are Qwen3-VL's deepstack features
        features = [item[:, :width] for item in items]
        fixed = [self._line_ends(each) for each in features]
        embed = self.get_language_model().embed_input_ids
        texts = [
            embed(each.words.to(own.device)).to(own) if len(each.words) else own[~mask]
            for own, mask, each in zip(features, fixed, asked, strict=True)
        ]
        # The first of an order are the selection of a smaller ratio.
        largest = MIPruner(keep=max(each.keep for each in asked))
        orders = selection_orders(features, largest, texts=texts, structural=fixed)
        return [kept_rows(order, each.kept, mask) for order, each, mask in zip(orders, asked, fixed, strict=True)]

    def _line_ends(self, features: Tensor) -> Tensor:
        """(N,) bool: rows that are `image_newline`."""
        if not self.architecture.newlines:
            return torch.zeros(len(features), dtype=torch.bool, device=features.device)
        return (features == self.image_newline.to(features)).all(-1)  # type: ignore[attr-defined]

    # -- positions

    def _placed(self, kept: Tensor, rows: Tensor, tokens: int, grid: Sequence[int] | None) -> Tensor:
        if grid is None:
            return with_positions(kept, rows.expand(2, -1), tokens)
        positions, extent = mrope_positions(grid, self.config.vision_config.spatial_merge_size, 0, rows)
        return with_positions(kept, positions[1:], extent)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """(3, L) as in a prompt with all tokens, without those that are dropped; by how much what follows differs."""
        if self._pruned_by is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        whole: list[int] = []
        images, moved, done = [], [], 0
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            place = feature.mm_position
            tokens = self._tokens(feature)
            whole += input_tokens[done : place.offset]
            moved.append(replace(feature, mm_position=replace(place, offset=len(whole), length=tokens)))
            done = place.offset + place.length
            whole += input_tokens[place.offset : done] + [input_tokens[done - 1]] * (tokens - place.length)
            if feature.modality == "image":
                images.append((place.offset, place.length, tokens))
        whole += input_tokens[done:]
        if self.architecture.mrope:
            positions, larger = super().get_mrope_input_positions(whole, moved)  # type: ignore[misc]
            after = larger + len(whole)
        else:
            positions, after = torch.arange(len(whole)).expand(3, -1), len(whole)
        return of_prompt(positions, images, not self.architecture.mrope), after - len(input_tokens)

    def _tokens(self, feature: Any) -> int:
        """How many tokens an image or video had."""
        if feature.data is not None and COUNTS in feature.data:
            return int(feature.data[COUNTS].data[0])
        return feature.mm_position.length

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """vLLM's hook of each step: `positions.put_right`; without the option the parent's, of pruned videos."""
        if self._pruned_by is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        image = image_token(self.config)
        return put_right(input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens, image)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The parent's; where positions are 1-D, with the row of the three that has them."""
        if positions.dim() == 2 and not self.architecture.mrope:
            positions = positions[1]
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]

    def get_encoder_cudagraph_config(self) -> Any:
        """The parent's; with the option for no modality, since such graphs pass over `embed_multimodal`."""
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return config if self._pruned_by is None else replace(config, modalities=[])


def _check_rope_table(model: Any, positions: int) -> None:
    """ValueError if a prompt and its answer may have positions that the model has no rotation for."""
    words = model.get_language_model().modules()
    shortest = min((len(each.cos_sin_cache) for each in words if hasattr(each, "cos_sin_cache")), default=positions)
    if shortest < positions:
        raise ValueError(
            f"mi_pruner: expected a rope table of {positions} positions, for a prompt as long as the context and an "
            f"answer as long as max_model_len, got {shortest}: use a smaller --max-model-len"
        )


def _grids(kwargs: Mapping[str, Any], count: int) -> list[Sequence[int] | None]:
    """Frames, height and width of each image in patches; None for models of 1-D positions."""
    grids = kwargs.get("image_grid_thw")
    return [None] * count if grids is None else [grid.tolist() for grid in grids]


def _parts(
    kwargs: Mapping[str, Any], asked: Sequence[_Asked], limit: int
) -> Iterator[tuple[dict[str, Any], Sequence[_Asked]]]:
    """The images in parts of at most `limit` tokens before pruning, or one image."""
    grids = kwargs.get("image_grid_thw")
    sizes = (
        {} if grids is None else {"pixel_values": grids.prod(-1).tolist(), "image_embeds": [a.tokens for a in asked]}
    )
    begins = {name: [0, *itertools.accumulate(own)] for name, own in sizes.items()}  # of what is not one for each image
    start = 0
    while start < len(asked):
        stop, tokens = start + 1, asked[start].tokens
        while stop < len(asked) and tokens + asked[stop].tokens <= limit:
            tokens += asked[stop].tokens
            stop += 1
        part = {}
        for name, value in kwargs.items():
            begin = begins.get(name, range(len(asked) + 1))
            part[name] = value[begin[start] : begin[stop]]
        yield part, asked[start:stop]
        start = stop
