"""Prunes the visual tokens of a transformers model's inputs: processor output in, inputs for the same model out.

    pruned = prune_inputs(model, processor(...), MIPruner(keep=0.25), processor=processor)
    model.generate(**pruned)

The vision encoder runs once; the columns of the dropped placeholders leave `input_ids` and all that is shaped like it;
the survivors keep their original positions (1-D or mRoPE) and enter as `mm_encoder_outputs`. No module is changed.
docs/transformers.md is the how-to.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pruner import MIPruner
from .instruction import ending_ids, instruction_mask, special_ids
from .packed_selection import PackedImages, Picks, Selector, by_information, select_images
from .prompt_columns import keep_columns
from .visual_tokens import VisualTokens

MINIMUM_VERSION = (5, 18)  # the first that takes `mm_encoder_outputs` and keeps the caller's positions in generate()
SUPPORTED = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_TEXTS = ("instruction", "image")
_SHARES = ("image", "sample")


@dataclass(frozen=True)
class KeptImage:
    """What was kept of one image or video, on the CPU.

    Attributes:
        modality: "image" or "video".
        sample: row of the batch.
        tokens: N, how many tokens it had.
        rows: (K,) int64, ascending: the rows of its N features that were kept, structural rows among them.
        order: int64, the rows selected, in order of selection (without structural rows).
        gains: their gains when picked, in nats.
        scores: (N,) each token's share of the mutual information with the text, in nats.
    """

    modality: str
    sample: int
    tokens: int
    rows: Tensor
    order: Tensor
    gains: Tensor
    scores: Tensor


class PrunedInputs(dict[str, Any]):
    """Keyword arguments for `model(...)` and `model.generate(...)`; `images` says what was kept of each image."""

    def __init__(self, values: Mapping[str, Any], images: list[KeptImage]) -> None:
        super().__init__(values)
        self.images = images


@torch.no_grad()
def prune_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    pruner: MIPruner,
    *,
    processor: Any | None = None,
    text: str = "instruction",
    text_mask: Tensor | None = None,
    per: str = "image",
) -> PrunedInputs:
    """Keeps of every image and video in a batch the tokens that say most about the instruction.

    Args:
        model: a `...ForConditionalGeneration` of a supported family (`SUPPORTED`).
        inputs: what the model's processor returned: `input_ids` (B, L), `attention_mask`, `pixel_values`, ...; or what
            `encode_inputs` made of it.
        pruner: `pruner.keep` is the number or the ratio of tokens to keep of each image. Structural rows of the
            features (`image_newline`) are always kept and not counted.
        processor: the model's processor or tokenizer. It tells which tokens are special, and what the chat template
            puts after the user's words ("ASSISTANT:"): both are left out of the instruction. Without it only the
            special tokens in the model's configuration are, and `text_mask` or text="image" is needed.
        text: "instruction": score against the tokens after the sample's last visual token. "image": against the
            image's own tokens, so that the selection does not depend on the question.
        text_mask: (B, L) bool, the tokens to score against, where the question comes before the image or is a part of
            the prompt. What `processor` leaves out is left out of these, too.
        per: "image": `keep` counts for each image. "sample": for all images of a sample together, which share it by
            gain, at least one token each.

    Returns:
        Inputs for the same model: rows left-padded to the longest, original positions, pruned features, and
        `use_cache=True`, since a generation without cache would misread positions with gaps.

    Raises:
        ImportError: if transformers is older than 5.18. ValueError, TypeError: naming the argument.
    """
    if not isinstance(pruner, MIPruner):
        raise TypeError(f"pruner: expected an MIPruner, such as MIPruner(keep=0.25), got {type(pruner).__name__}")
    return rewrite_inputs(
        model,
        inputs,
        pruner.keep,
        by_information(pruner),
        processor=processor,
        text=text,
        text_mask=text_mask,
        per=per,
    )


@torch.no_grad()
def encode_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with the vision encoder's outputs (`mm_encoder_outputs`) in place of pixels.

    `prune_inputs` takes them, as often as needed: several budgets or questions for one run of the encoder.
    """
    check_model(model)
    others = {name: inputs[name] for name in inputs if name not in _PIXELS.values()}
    return {**others, "mm_encoder_outputs": _encoded(model, inputs)}


def check_version() -> None:
    """ImportError if transformers is too old."""
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < MINIMUM_VERSION:
        raise ImportError(
            f"transformers >= 5.18 is needed to feed pruned visual tokens, found {transformers.__version__}: "
            "pip install 'mi_pruner[transformers]'"
        )


def check_family(family: str) -> None:
    """ValueError if the family (`config.model_type`) is not supported."""
    if family not in SUPPORTED:
        raise ValueError(f"model: expected one of {', '.join(SUPPORTED)}, got {family!r}")


def check_model(model: Any) -> None:
    """ImportError if transformers is too old, ValueError if the model is of no supported family."""
    check_version()
    check_family(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if not hasattr(model, "generate"):
        raise ValueError(f"model: expected a ...ForConditionalGeneration with generate(), got {type(model).__name__}")


@torch.no_grad()
def rewrite_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    keep: int | float,
    select: Selector,
    *,
    processor: Any | None = None,
    text: str = "instruction",
    text_mask: Tensor | None = None,
    per: str = "image",
) -> PrunedInputs:
    """`prune_inputs` with any selector."""
    check_model(model)
    _check_inputs(inputs, text, text_mask, per)
    if processor is None and text_mask is None and text == "instruction":
        raise ValueError(
            "processor: expected the model's processor, which tells the question from what the chat template adds, got "
            "None: pass processor=..., or mark the question with text_mask (B, L) bool, or pass text='image'"
        )
    outputs = _encoded(model, inputs)
    ids = inputs["input_ids"]
    attended = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones_like(ids, dtype=torch.bool)
    visual = VisualTokens.of(model, ids, attended, outputs)
    images = PackedImages(
        visual.features,
        *_texts(model, inputs, attended, visual, processor, text, text_mask),
        visual.movable,
        visual.samples,
    )
    kept, picks = select_images(images, keep, per, select)
    columns = attended.clone()
    dropped = visual.places[(~kept).to(ids.device)]
    columns[dropped[:, 0], dropped[:, 1]] = False
    rewritten: dict[str, Any] = dict(keep_columns(model, inputs, attended, columns))
    rewritten["mm_encoder_outputs"] = visual.pruned(kept)
    rewritten["use_cache"] = True
    return PrunedInputs(rewritten, _report(visual, kept, picks))


def _check_inputs(inputs: Mapping[str, Any], text: str, text_mask: Tensor | None, per: str) -> None:
    if isinstance(inputs, PrunedInputs):
        raise ValueError("inputs: expected the processor's output, got inputs that are pruned already")
    for name, value, choices in (("text", text, _TEXTS), ("per", per, _SHARES)):
        if value not in choices:
            raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"inputs: expected input_ids (B, L) as a tensor, got {type(ids).__name__}: call the processor with "
            "return_tensors='pt' (and padding=True for several samples)"
        )
    if inputs.get("position_ids") is not None:
        raise ValueError("inputs: position_ids are computed here: leave them out")
    if text_mask is not None and not isinstance(text_mask, Tensor):
        raise TypeError(f"text_mask: expected {tuple(ids.shape)} bool as a tensor, got {type(text_mask).__name__}")
    if text_mask is not None and (text_mask.shape != ids.shape or text_mask.dtype != torch.bool):
        raise ValueError(
            f"text_mask: expected {tuple(ids.shape)} bool, as input_ids, got {tuple(text_mask.shape)} {text_mask.dtype}"
        )


def _encoded(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The vision encoder's outputs by modality: those in `inputs`, or made from the pixels there."""
    given = inputs.get("mm_encoder_outputs")
    pixels = [name for name in _PIXELS.values() if inputs.get(name) is not None]
    if given and pixels:
        raise ValueError(f"inputs: expected pixels or mm_encoder_outputs, got both: leave out {', '.join(pixels)}")
    if given:
        return dict(given)
    outputs = {}
    for modality, name in _PIXELS.items():
        if name in pixels:
            encode = getattr(model.base_model, f"get_{modality}_features", None)
            if encode is None:
                raise ValueError(f"inputs: {name} given, but {type(model).__name__} takes no {modality}s")
            wanted = inspect.signature(encode).parameters
            arguments = {key: value for key, value in inputs.items() if key in wanted and value is not None}
            outputs[modality] = encode(**arguments, return_dict=True)
    if not outputs:
        raise ValueError(
            f"inputs: expected {' or '.join(_PIXELS.values())}, got {', '.join(inputs)}: no image to prune; "
            "call model.generate(**inputs) directly"
        )
    return outputs


def _texts(
    model: Any,
    inputs: Mapping[str, Any],
    attended: Tensor,
    visual: VisualTokens,
    processor: Any | None,
    text: str,
    text_mask: Tensor | None,
) -> tuple[Tensor, list[int], list[int]]:
    """The text of each image, packed (ΣM, D); the images' lengths; the texts' lengths."""
    if text == "image":
        if text_mask is not None:
            raise ValueError("text_mask: has no meaning with text='image': leave out one of them")
        return _own_tokens(visual)
    ids = inputs["input_ids"]
    places = torch.zeros_like(attended)
    places[visual.places[:, 0], visual.places[:, 1]] = True
    ignored, ending = special_ids(model, processor), ending_ids(processor)
    marked = None if text_mask is None else text_mask.to(ids.device)
    if marked is not None and processor is None:
        ignored = set()  # the caller's mask is all that is known
    mask = instruction_mask(ids, attended, places, ignored, ending, marked)
    counts = mask.sum(1).tolist()
    for sample in visual.samples:
        if counts[sample] == 0:
            raise ValueError(
                f"text_mask: no instruction after the last image of sample {sample}: if the question comes first, mark "
                "its tokens with text_mask (B, L) bool; without a question, pass text='image'"
            )
    parts = model.get_input_embeddings()(ids[mask]).to(visual.features).split(counts)
    packed = torch.cat([parts[sample] for sample in visual.samples])
    return packed, visual.lengths, [counts[sample] for sample in visual.samples]


def _own_tokens(visual: VisualTokens) -> tuple[Tensor, list[int], list[int]]:
    if visual.movable is None:
        return visual.features, visual.lengths, visual.lengths
    counts = [int(part.sum()) for part in visual.movable.cpu().split(visual.lengths)]
    return visual.features[visual.movable], visual.lengths, counts


def _report(visual: VisualTokens, kept: Tensor, picks: Picks) -> list[KeptImage]:
    parts = zip(
        visual.modalities,
        visual.samples,
        visual.lengths,
        kept.cpu().split(visual.lengths),
        picks.indices.cpu().split(picks.lengths),
        picks.gains.cpu().split(picks.lengths),
        picks.scores.cpu().split(visual.lengths),
        strict=True,
    )
    return [
        KeptImage(modality, sample, tokens, rows.nonzero()[:, 0], order[order >= 0], gains[order >= 0], scores)
        for modality, sample, tokens, rows, order, gains, scores in parts
    ]
