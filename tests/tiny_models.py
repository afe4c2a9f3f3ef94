"""Tiny random models of every supported family, and batches for them as their processors would make them.

The weights are sharper than a fresh initialisation's, so that a wrong position, mask or feature moves the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

from bench.serving.vllm_checkpoints import sharp_model
from mi_pruner.integrations import transformers as integration
from mi_pruner.integrations.model_inputs import PrunedInputs

VOCABULARY = 100
PAD, BOS, EOS, IMAGE, VIDEO, START, END = 0, 1, 2, 95, 96, 97, 98
WIDTH, TILE = 32, 24  # of the language model; pixels of a square tile
FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "gemma3",
    "smolvlm",
    "idefics3",
)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TOLERANCE = 1e-5  # of logits
NEW_TOKENS = 5

# A tokenizer without template and special tokens.
PLAIN = SimpleNamespace(all_special_ids=[], added_tokens_decoder={}, decode=lambda ids: " ".join(map(str, ids)))

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": 4,
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
_QWEN_VISION = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
_PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}


def config(family: str, vocabulary: int = VOCABULARY, image: int = IMAGE, video: int = VIDEO) -> Any:
    """The tiny configuration of a family; image, video: the ids of the placeholders."""
    t = transformers
    text = {**_TEXT, "vocab_size": vocabulary}
    ids = {**_TOKENS, "image_token_id": image, "video_token_id": video}
    llama, qwen2 = {"model_type": "llama", **text}, {"model_type": "qwen2", **text}
    clip, siglip = {"model_type": "clip_vision_model", **_VISION}, {"model_type": "siglip_vision_model", **_VISION}
    untied = {"tie_word_embeddings": False}  # a tied model repeats its last token
    builders = {
        "llava": lambda: t.LlavaConfig(vision_config=clip, text_config=llama, image_token_index=image),
        "llava_next": lambda: t.LlavaNextConfig(
            vision_config=clip, text_config=llama, image_token_index=image, image_grid_pinpoints=_PINPOINTS
        ),
        "llava_onevision": lambda: t.LlavaOnevisionConfig(
            vision_config={**siglip, "vision_use_head": False},
            text_config=qwen2,
            image_token_index=image,
            video_token_index=video,
            image_grid_pinpoints=_PINPOINTS,
        ),
        "qwen2_vl": lambda: t.Qwen2VLConfig(
            text_config={**text, "rope_parameters": _MROPE},
            vision_config={**_QWEN_VISION, "embed_dim": 32, "hidden_size": WIDTH},
            **ids,
        ),
        "qwen2_5_vl": lambda: t.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": _MROPE},
            vision_config={
                **_QWEN_VISION,
                "hidden_size": 32,
                "intermediate_size": 32,
                "out_hidden_size": WIDTH,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            **ids,
        ),
        "qwen3_vl": lambda: t.Qwen3VLConfig(
            text_config={**text, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
            vision_config={
                **_QWEN_VISION,
                "hidden_size": 32,
                "intermediate_size": 32,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            **ids,
        ),
        "internvl": lambda: t.InternVLConfig(
            vision_config={**_VISION, "image_size": [TILE, TILE], "patch_size": [4, 4]},
            text_config=qwen2,
            image_token_id=image,
            **untied,
        ),
        "gemma3": lambda: t.Gemma3Config(
            text_config={
                "model_type": "gemma3_text",
                **text,
                "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            },
            vision_config={**siglip, "vision_use_head": False},
            mm_tokens_per_image=9,
            image_token_index=image,
            boi_token_index=START,
            eoi_token_index=END,
            **untied,
        ),
        "smolvlm": lambda: t.SmolVLMConfig(
            vision_config=_VISION, text_config=llama, image_token_id=image, scale_factor=2, **untied
        ),
        "idefics3": lambda: t.Idefics3Config(
            vision_config=_VISION, text_config=llama, image_token_id=image, scale_factor=2, **untied
        ),
    }
    return builders[family]()


@cache
def model(family: str) -> Any:
    """The model of a family, the same in every run."""
    return build(config(family))


def build(configuration: Any) -> Any:
    """A model with sharp random weights.

    In float64: what is compared in the tests then differs by mistakes, not by a processor's rounding.
    """
    built = sharp_model(configuration)
    built.generation_config.update(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None, suppress_tokens=[IMAGE, VIDEO, START, END]
    )
    return built.double()


def prune_inputs(model: Any, inputs: Any, pruner: Any, **options: Any) -> PrunedInputs:
    """The integration's, with a processor that has nothing to say."""
    return integration.prune_inputs(model, inputs, pruner, **{"processor": PLAIN, **options})


def logits_of(family: str, inputs: Mapping[str, Any]) -> Tensor:
    """Of one call of the model."""
    with torch.no_grad():
        return model(family)(**inputs).logits


def answer(family: str, inputs: Mapping[str, Any], **options: Any) -> Tensor:
    """(B, NEW_TOKENS) ids, or those of the best beam."""
    made = model(family).generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return made[:, inputs["input_ids"].shape[1] :]


@dataclass
class Batch:
    """Processor-like inputs, and the truth about them."""

    inputs: dict[str, Tensor]
    images: list[int] = field(default_factory=list)  # tokens of each image, in order
    structural: list[int] = field(default_factory=list)  # of these, image_newline rows


def batch(family: str, images: list[int], *, video: bool = False, seed: int = 0) -> Batch:
    """A left-padded batch: `images[b]` images (or videos) in sample b, with questions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    pixels = _videos(family, sum(images), generator) if video else _pixels(family, images, generator)
    encode = model(family).base_model.get_video_features if video else model(family).base_model.get_image_features
    with torch.no_grad():
        pooled = encode(**pixels, return_dict=True).pooler_output
    parts = [len(part) for part in pooled]
    newline = getattr(model(family).base_model, "image_newline", None)
    structural = [0 if newline is None else int((part == newline).all(-1).sum()) for part in pooled]
    tiles = _tiles(family, images)
    runs = _runs(family, parts, images, tiles, pixels, video)
    rows = [
        _prompt(sample_runs, number, VIDEO if video else IMAGE, generator) for number, sample_runs in enumerate(runs)
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **pixels}
    if family == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if family in QWEN:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if family == "internvl":
        parts = [sum(parts[sum(tiles[:n]) : sum(tiles[: n + 1])]) for n in range(len(tiles))]
        structural = [0] * len(parts)
    if family in ("smolvlm", "idefics3"):  # a sample's images are one
        parts = [9 * sum(tiles[sum(images[:n]) : sum(images[: n + 1])]) for n in range(len(images))]
        structural = [0] * len(parts)
    occupied = [n for n, part in enumerate(parts) if part]
    return Batch(inputs, [parts[n] for n in occupied], [structural[n] for n in occupied])


def _prompt(runs: list[list[int]], number: int, token: int, generator: torch.Generator) -> list[int]:
    """BOS, some words, the images with words between them, a question of 5 + 2 * number words."""
    ids = [BOS, *_words(2 + number, generator)]
    for image in runs:
        for run in image:
            ids += [START, *[token] * run, END]
        ids += _words(2, generator)
    return [*ids, *_words(5 + 2 * number, generator)]


def _words(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(10, 90, (count,), generator=generator).tolist()


def _tiles(family: str, images: list[int]) -> list[int]:
    """Tiles of each image, for the families that cut images into tiles."""
    return [2 + number % 2 for number in range(sum(images))] if family in ("internvl", "smolvlm", "idefics3") else []


def _sizes(count: int) -> list[list[int]]:
    """Heights and widths of the originals, for the families with tiles that fit."""
    return [[(20, 46), (46, 25), (40, 44)][number % 3] for number in range(count)]


def _pixels(family: str, images: list[int], generator: torch.Generator) -> dict[str, Any]:
    count, tiles = sum(images), _tiles(family, images)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if family in QWEN:
        grids = torch.tensor([[(1, 8, 6), (1, 6, 12), (1, 8, 8)][number % 3] for number in range(count)])
        return {"pixel_values": noise(int(grids.prod(1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grids}
    if family in ("llava", "gemma3"):
        return {"pixel_values": noise(count, 3, TILE, TILE)}
    if family == "internvl":
        return {"pixel_values": noise(sum(tiles), 3, TILE, TILE)}
    if family in ("smolvlm", "idefics3"):
        per_sample = [sum(tiles[sum(images[:n]) : sum(images[: n + 1])]) for n in range(len(images))]
        pixels = torch.zeros(len(images), max(per_sample), 3, TILE, TILE)
        for sample, used in enumerate(per_sample):
            pixels[sample, :used] = noise(used, 3, TILE, TILE)
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(*pixels.shape[:2], TILE, TILE).bool()}
    sizes = torch.tensor(_sizes(count))
    inputs = {"pixel_values": noise(count, 5, 3, TILE, TILE), "image_sizes": sizes}
    if family == "llava_onevision":
        inputs["batch_num_images"] = torch.tensor(images)
    return inputs


def _videos(family: str, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    if family == "llava_onevision":
        return {"pixel_values_videos": torch.randn(count, 2, 3, TILE, TILE, generator=generator)}
    grids = torch.tensor([[(2, 6, 8), (3, 4, 6)][number % 2] for number in range(count)])
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4 * 4, generator=generator)
    return {"pixel_values_videos": pixels, "video_grid_thw": grids}


def _runs(
    family: str, parts: list[int], images: list[int], tiles: list[int], pixels: dict, video: bool
) -> list[list[list[int]]]:
    """For each sample, for each image, the lengths of its runs of placeholders."""
    if family in ("smolvlm", "idefics3"):
        each = [[9] * count for count in tiles]
    elif family == "internvl":
        each = [[9 * count] for count in tiles]
    elif family == "qwen3_vl" and video:
        frames = [int(grid[0]) for grid in pixels["video_grid_thw"]]
        each = [[part // count] * count for part, count in zip(parts, frames, strict=True)]
    else:
        each = [[part] for part in parts]
    starts = [sum(images[:number]) for number in range(len(images))]
    return [each[start : start + count] for start, count in zip(starts, images, strict=True)]
