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
from typing import Any

import torch
from torch import Tensor

from ..pruner import MIPruner
from .instruction import Reader, tokenizer_of
from .model_inputs import FEATURES, KeptImage, ModelInputs, PrunedFeatures, PrunedInputs
from .packed_selection import PackedImages, Picks, Selector, by_information, select_images
from .prompt_columns import NO_LABEL, keep_columns
from .supported_model import family_of, unwrapped
from .video import REPEAT_COSINE, check_repeat_cosine, repeats_of_each
from .visual_tokens import VisualTokens

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_TEXTS = ("instruction", "image")
_SHARES = ("image", "sample", "frame")


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
    repeat_cosine: float | None = REPEAT_COSINE,
) -> PrunedInputs:
    """Keeps of every image and video in a batch the tokens that say most about the instruction.

    Args:
        model: a `...ForConditionalGeneration` of a supported family (`supported_model.SUPPORTED`), also inside peft,
            torch.compile or DistributedDataParallel.
        inputs: what the model's processor returned: `input_ids` (B, L), `attention_mask`, `pixel_values`, ...; or what
            `encode_inputs` made of it. With `labels` (B, L) what they mark (other than −100) is the answer.
        pruner: `pruner.keep` is the number or the ratio of tokens to keep of each image or video. Structural rows of
            the features (`image_newline`) are always kept and not counted. With `min_gain` at least one token stays.
        processor: the model's processor, or a tokenizer that has the chat template. It tells which tokens are special,
            and what the template puts after the user's words ("ASSISTANT:"): both are left out of the instruction.
            Without it only the special tokens in the model's configuration are, and `text_mask` or text="image" is
            needed. InternVL's and SmolVLM's videos are found by it; without it their frames are images.
        text: "instruction": score against the tokens after the sample's last visual token, without the answer. "image":
            against the image's own tokens, so that the selection does not depend on the question.
        text_mask: (B, L) bool, the tokens to score against, where the question comes before the image or is a part of
            the prompt. Special tokens and the template's ending are left out of these, too, where `processor` is given.
        per: "image": `keep` counts for each image or video. "sample": for all of a sample together, which share it by
            gain, at least one token each. "frame": as "image", and the frames of a video share it by how many of their
            tokens are new, at least one each; every frame is selected as an image of its own.
        repeat_cosine: tokens of a video whose cosine with what was last new at their place is as much or more are
            picked after all others (`video.repeats`). None: no token is a repeat.

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
        repeat_cosine=repeat_cosine,
    )


@torch.no_grad()
def encode_inputs(model: Any, inputs: Mapping[str, Any]) -> ModelInputs:
    """The inputs with the vision encoder's outputs (`mm_encoder_outputs`) in place of pixels.

    `prune_inputs` takes them, as often as needed: several budgets or questions for one run of the encoder.

    Raises:
        As `prune_inputs`.
    """
    _check_mapping(inputs)
    others = {name: inputs[name] for name in inputs if name not in _PIXELS.values()}
    return ModelInputs({**others, FEATURES: _encoded(unwrapped(model), inputs)})


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
    repeat_cosine: float | None = REPEAT_COSINE,
) -> PrunedInputs:
    """`prune_inputs` with any selector."""
    model = unwrapped(model)
    _check_inputs(inputs, text, text_mask, per)
    check_repeat_cosine(repeat_cosine)
    if processor is None and text_mask is None and text == "instruction":
        raise ValueError(
            "processor: expected the model's processor, which tells the question from what the chat template adds, got "
            "None: pass processor=..., or mark the question with text_mask (B, L) bool, or pass text='image'"
        )
    tokenizer = None if processor is None else tokenizer_of(processor)
    outputs = _encoded(model, inputs)
    attended = _attended(inputs)
    visual = VisualTokens.of(model, inputs, attended, outputs, tokenizer)
    units, videos = visual.by_frame() if per == "frame" else (visual, list(range(len(visual.lengths))))
    repeated = repeats_of_each(visual.features, visual.lengths, visual.frames, visual.movable, repeat_cosine)
    images = PackedImages(
        visual.features,
        *_texts(model, inputs, attended, units, processor, text, text_mask, video=max(visual.frames) > 1),
        visual.movable,
        units.samples,
        repeated,
    )
    kept, picks = select_images(images, keep, per, select, videos)
    columns = attended.clone()
    dropped = visual.places[(~kept).to(columns.device)]
    columns[dropped[:, 0], dropped[:, 1]] = False
    rewritten: dict[str, Any] = dict(keep_columns(model, inputs, attended, columns))
    rewritten[FEATURES] = PrunedFeatures(visual.pruned(kept))
    rewritten["use_cache"] = True
    return PrunedInputs(rewritten, _report(visual, kept, picks, repeated))


def _check_mapping(inputs: Any) -> None:
    if not isinstance(inputs, Mapping):
        raise TypeError(
            "inputs: expected what the model's processor returned, with input_ids and pixel_values, got "
            f"{type(inputs).__name__}: call processor(...) or processor.apply_chat_template(..., tokenize=True, "
            "return_dict=True, return_tensors='pt')"
        )
    if isinstance(inputs, PrunedInputs) or isinstance(inputs.get(FEATURES), PrunedFeatures):
        raise ValueError("inputs: expected the processor's output, got inputs that are pruned already")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise ValueError(
            f"inputs: expected input_ids (B, L) as a tensor, got {type(ids).__name__}: call the processor with "
            "return_tensors='pt' (and padding=True for several samples)"
        )
    for name in ("attention_mask", "labels"):
        value = inputs.get(name)
        if value is not None and (not isinstance(value, Tensor) or value.shape != ids.shape):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"inputs: expected {name} {tuple(ids.shape)}, as input_ids, as a tensor, got {got}")


def _check_inputs(inputs: Mapping[str, Any], text: str, text_mask: Tensor | None, per: str) -> None:
    _check_mapping(inputs)
    for name, value, choices in (("text", text, _TEXTS), ("per", per, _SHARES)):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    ids = inputs["input_ids"]
    if inputs.get("position_ids") is not None:
        raise ValueError("inputs: position_ids are computed here: leave them out")
    if text_mask is not None and not isinstance(text_mask, Tensor):
        raise TypeError(f"text_mask: expected {tuple(ids.shape)} bool as a tensor, got {type(text_mask).__name__}")
    if text_mask is not None and (text_mask.shape != ids.shape or text_mask.dtype != torch.bool):
        raise ValueError(
            f"text_mask: expected {tuple(ids.shape)} bool, as input_ids, got {tuple(text_mask.shape)} {text_mask.dtype}"
        )


def _attended(inputs: Mapping[str, Any]) -> Tensor:
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _encoded(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The vision encoder's outputs by modality: those in `inputs`, or made from the pixels there."""
    given = inputs.get(FEATURES)
    pixels = [name for name in _PIXELS.values() if inputs.get(name) is not None]
    if given and pixels:
        raise ValueError(f"inputs: expected pixels or {FEATURES}, got both: leave out {', '.join(pixels)}")
    if given:
        return dict(given)
    outputs = {}
    for modality, name in _PIXELS.items():
        if name in pixels:
            if modality not in family_of(model).modalities:
                raise ValueError(f"inputs: {name} given, but {type(model).__name__} takes no {modality}s")
            encode = getattr(model.base_model, f"get_{modality}_features")
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
    video: bool,
) -> tuple[Tensor, list[int], list[int]]:
    """The text of each image, packed (ΣM, D); the images' lengths; the texts' lengths. video: there is one."""
    if text == "image":
        if text_mask is not None:
            raise ValueError("text_mask: has no meaning with text='image': leave out one of them")
        return _own_tokens(visual)
    ids = inputs["input_ids"]
    places = torch.zeros_like(attended)
    places[visual.places[:, 0], visual.places[:, 1]] = True
    only_marked = text_mask is not None and processor is None  # the caller's mask is all that is known
    reader = Reader(set()) if only_marked else Reader.of(model, processor, video)
    marked = None if text_mask is None else text_mask.to(ids.device)
    mask = reader.instruction(ids, attended, places, inputs.get("labels"), marked)
    counts = mask.sum(1).tolist()
    for sample in visual.samples:
        if counts[sample] == 0:
            raise ValueError(_no_text(sample, inputs.get("labels") if text_mask is None else None))
    parts = model.get_input_embeddings()(ids[mask]).to(visual.features).split(counts)
    packed = torch.cat([parts[sample] for sample in visual.samples])
    return packed, visual.lengths, [counts[sample] for sample in visual.samples]


def _no_text(sample: int, labels: Tensor | None) -> str:
    if labels is not None and (labels[sample] != NO_LABEL).any():
        return (
            f"labels: expected {NO_LABEL} on the question of sample {sample}, got an answer wherever there is text "
            "after its last image: label the answer alone, or mark the question with text_mask (B, L) bool"
        )
    return (
        f"text_mask: no instruction after the last image of sample {sample}: if the question comes first, mark "
        "its tokens with text_mask (B, L) bool; without a question, pass text='image'"
    )


def _own_tokens(visual: VisualTokens) -> tuple[Tensor, list[int], list[int]]:
    if visual.movable is None:
        return visual.features, visual.lengths, visual.lengths
    counts = [int(part.sum()) for part in visual.movable.cpu().split(visual.lengths)]
    return visual.features[visual.movable], visual.lengths, counts


def _report(visual: VisualTokens, kept: Tensor, picks: Picks, repeated: Tensor | None) -> list[KeptImage]:
    again = torch.zeros_like(kept) if repeated is None else repeated
    parts = zip(
        ("video" if frames > 1 else own for own, frames in zip(visual.modalities, visual.frames, strict=True)),
        visual.samples,
        visual.lengths,
        visual.frames,
        kept.cpu().split(visual.lengths),
        picks.indices.cpu().split(picks.lengths),
        picks.gains.cpu().split(picks.lengths),
        picks.scores.cpu().split(visual.lengths),
        again.cpu().split(visual.lengths),
        strict=True,
    )
    return [
        KeptImage(
            modality, sample, tokens, rows.nonzero()[:, 0], order[order >= 0], gains[order >= 0], scores, frames, same
        )
        for modality, sample, tokens, frames, rows, order, gains, scores, same in parts
    ]
