"""How many placeholders an image gets, by which key it is cached, and what the model has to know about it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptUpdateDetails

from ...pruner import MIPruner
from ..instruction import ids_in, special_ids_of
from ..serving import cache_key, kept_count, mrope_positions
from ..turns import Turns
from .models import Architecture, image_token
from .options import NAME, Options, configured, is_within

COUNTS, KEEP, WORDS, KEY = (f"{NAME}_{field}" for field in ("counts", "keep", "words", "key"))  # of an image's inputs


@dataclass(frozen=True)
class ImageRequest:
    """How one image is to be pruned.

    Attributes:
        keep: the ratio of its tokens that stay.
        words: ids of the words that it is scored against; none: its own tokens.
        key: under which it is cached, pruned.
    """

    keep: float
    words: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Pruning:
    """How the images of a request are to be pruned; goes with vLLM's processor kwargs, and is no kwarg of a processor.

    Attributes:
        images: one for each image.
        hashes: what vLLM caches each item by, modality -> keys; pruned images by keys of their own.
    """

    images: list[ImageRequest]
    hashes: Mapping[str, list[str]]


@dataclass
class ShortenedDetails(PromptUpdateDetails):
    """What stands in the prompt for a pruned image.

    Attributes:
        counts: tokens before and after.
        extent: how far the text after it is from the image's start, in positions.
    """

    counts: tuple[int, int] = (0, 0)
    extent: int = 0


class PromptError(ValueError):
    """A prompt is refused when it is known where its images are, and how many tokens they had."""


class PrunedProcessor:
    """To be put before a BaseMultiModalProcessor of vLLM 0.32."""

    architecture: Architecture
    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """The inputs with pruned images. Nothing changes without the option, or where all tokens stay.

        Raises:
            ValueError: for what a request may not say, positions beyond the model's, and an image that ends the prompt.
        """
        theirs, said = _parted(inputs.hf_processor_mm_kwargs)
        if is_within(theirs):
            raise ValueError("mi_pruner: expected it in mm_processor_kwargs themselves, got it within a part of them")
        plain = replace(inputs, hf_processor_mm_kwargs=theirs)
        options = configured(self.info.get_hf_config())
        if options is not None and said is not None:
            options = options.of_request(said)
        elif said is not None:
            raise ValueError(
                f'mi_pruner: expected an engine that was started with --hf-overrides \'{{"{NAME}": {{"keep": 0.25}}}}\''
                ", got it in a request alone"
            )
        images = plain.mm_data_items.get_all_counts().get("image", 0)
        if options is None or options.keep == 1 or images == 0:
            return super().apply(plain, timing_ctx)  # type: ignore[misc]
        pruning = self._pruning(plain, options, images)
        try:
            return super().apply(replace(plain, hf_processor_mm_kwargs={**theirs, NAME: pruning}), timing_ctx)  # type: ignore[misc]
        except PromptError:
            if plain.cache is not None:  # the engine never gets what is remembered here as sent
                for key in itertools.chain.from_iterable(pruning.hashes.values()):
                    plain.cache.invalidate(key)
            raise

    def _pruning(self, plain: Any, options: Options, images: int) -> Pruning:
        words = self._words(plain.prompt, images) if options.text == "question" else [[]] * images
        hashes = dict(super()._get_mm_hashes(plain))  # type: ignore[misc]
        pruner = MIPruner(keep=options.keep)
        keys = [cache_key(key, pruner, own or None) for key, own in zip(hashes["image"], words, strict=True)]
        requests = [ImageRequest(options.keep, tuple(own), key) for own, key in zip(words, keys, strict=True)]
        return Pruning(requests, {**hashes, "image": keys})

    def _words(self, prompt: Sequence[int], images: int) -> list[list[int]]:
        known = max(len(self.info.get_tokenizer()), self.info.ctx.model_config.get_vocab_size())
        if unknown := [index for index in prompt if not 0 <= index < known]:
            raise ValueError(f"mi_pruner: expected a prompt of ids below {known}, got {unknown[0]}")
        placeholder = image_token(self.info.get_hf_config())
        places = [place for place, index in enumerate(prompt) if index == placeholder]
        if len(places) < images:  # an error, which vLLM reports
            return [[]] * images
        return self._turns.words(prompt, places[:images])  # as vLLM takes them; further ones are the user's text

    @cached_property
    def _turns(self) -> Turns:
        tokenizer, processor = self.info.get_tokenizer(), self.info.get_hf_processor()
        templated = processor if getattr(processor, "chat_template", None) else tokenizer
        return Turns.of(templated, tokenizer, ids_in(self.info.get_hf_config()) | special_ids_of(tokenizer))

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, which vLLM sizes its memory by, with a token behind the images: `apply` asks for one."""
        made = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        if configured(self.info.get_hf_config()) is None or not made.prompt:
            return made
        return replace(made, prompt=[*made.prompt, 0])

    # -- what vLLM caches an item by

    def _get_mm_hashes(self, inputs: Any) -> Any:
        _, pruning = _parted(inputs.hf_processor_mm_kwargs)
        return super()._get_mm_hashes(inputs) if pruning is None else pruning.hashes  # type: ignore[misc]

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]]) -> Any:
        theirs, pruning = _parted(inputs.hf_processor_mm_kwargs)
        plain = replace(inputs, hf_processor_mm_kwargs=theirs)
        kwargs = super()._get_cache_missing_processor_kwargs(plain, mm_is_cached)  # type: ignore[misc]
        if pruning is None:
            return kwargs
        images = [each for each, hit in zip(pruning.images, mm_is_cached["image"], strict=True) if not hit]
        return {**kwargs, NAME: replace(pruning, images=images)}

    # -- Hugging Face's processor does not know the option

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._apply_hf_processor_main(mm_items, _parted(hf_kwargs)[0])  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, _parted(hf_processor_mm_kwargs)[0])  # type: ignore[misc]

    # -- counts

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> dict[str, Any]:
        """The parent's, with fewer placeholders for each image; what stands between placeholders stays.

        Adds to the image's inputs what `PrunedModel` reads: counts before and after, the words' ids, the key.
        """
        theirs, pruning = _parted(hf_processor_mm_kwargs)
        updates = dict(super()._get_mm_prompt_updates(mm_items, theirs, out_mm_kwargs))  # type: ignore[misc]
        if pruning is None or not pruning.images:
            return updates
        shortened = []
        for number, (item, asked) in enumerate(zip(out_mm_kwargs["image"], pruning.images, strict=True)):
            structural = self._structural(mm_items, number)
            own = [self._shortened(update, asked.keep, structural, item) for update in updates["image"][number]]
            item.update(_fields(own[0].content.counts, asked))
            shortened.append(own)
        return {**updates, "image": shortened}

    def _structural(self, mm_items: Any, number: int) -> int:
        """How many rows of an image's features are line ends."""
        if not self.architecture.newlines:
            return 0
        images = mm_items.get_items("image", object)
        if not hasattr(images, "get_image_size"):
            raise ValueError("mi_pruner: expected pictures, got embeddings of images, of which line ends are not known")
        size = images.get_image_size(number)
        return _line_ends(self.info, size.width, size.height)

    def _shortened(self, update: Any, keep: float, structural: int, item: Mapping[str, Any]) -> Any:
        details = update.content
        marks = [True] * len(details.full) if details.is_embed is None else details.is_embed(details.full).tolist()
        tokens = sum(marks)
        left = kept = kept_count(tokens, keep, structural)
        full = []
        for token, is_embed in zip(details.full, marks, strict=True):
            if left or not is_embed:
                full.append(token)
                left -= is_embed
        extent = tokens
        if self.architecture.mrope:
            merge = self.info.get_hf_config().vision_config.spatial_merge_size
            grid = item["image_grid_thw"].data.tolist()
            _, extent = mrope_positions(grid, merge, 0, torch.tensor([0]))
        return replace(update, content=ShortenedDetails(full, details.is_embed, (tokens, kept), extent))

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        prompt, placeholders = super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]
        whole = len(prompt)
        for updates, place in zip(mm_res.prompt_updates.get("image", []), placeholders.get("image", []), strict=True):
            details = updates[0].content
            if not isinstance(details, ShortenedDetails):
                continue
            tokens, kept = details.counts
            whole += details.extent - kept
            if kept < tokens and place.start_idx + place.length == len(prompt):
                raise PromptError("mi_pruner: expected text after the last image, got a prompt that ends in an image")
        limit = last_position(self.info.ctx.model_config)
        if whole > limit:
            raise PromptError(
                f"mi_pruner: expected a prompt whose positions end below {limit}, where the model's context does, got "
                f"{whole}: tokens that are dropped leave their positions. Ask with fewer or smaller images"
            )
        return prompt, placeholders


def last_position(model_config: Any) -> int:
    """Where the positions of a prompt must end: the length of the model's context, or of what is served."""
    derived, _ = model_config.model_arch_config.derived_max_model_len_and_key
    return max(int(derived), model_config.max_model_len)


def _parted(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The processor's own, and ours; None where there is none."""
    theirs = dict(kwargs)
    return theirs, theirs.pop(NAME, None)


def _fields(counts: tuple[int, int], asked: ImageRequest) -> dict[str, Any]:
    """In vLLM's form: counts (2,) int64, keep (1,) float64, words (M,) int64, key (32,) uint8."""
    made = {
        COUNTS: torch.tensor(counts),
        KEEP: torch.tensor([asked.keep], dtype=torch.float64),
        WORDS: torch.tensor(asked.words, dtype=torch.int64),
        KEY: torch.frombuffer(bytearray.fromhex(asked.key), dtype=torch.uint8),
    }
    return {
        name: MultiModalFieldConfig.batched("image", keep_on_cpu=True).build_elems(name, value[None])[0]
        for name, value in made.items()
    }


def _line_ends(info: Any, width: int, height: int) -> int:
    """Of LLaVA-NeXT: one for each row of patches of the unpadded picture, as vLLM counts them."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    vision = info.get_vision_encoder_info()
    rows, columns = get_anyres_image_grid_shape(
        (height, width), info.get_hf_config().image_grid_pinpoints, vision.get_image_size()
    )
    _, line_ends = info._get_num_unpadded_features(
        original_height=height,
        original_width=width,
        npatches=vision.get_patch_grid_length(),
        num_patch_height=rows,
        num_patch_width=columns,
    )
    return line_ends
