"""The visual tokens of a batch as a transformers model sees them: features, and their places in the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .frames_in_prompt import frames_begun
from .supported_model import family_of


@dataclass(frozen=True)
class VisualTokens:
    """All visual tokens of a batch, images before videos, each in the order of its placeholders.

    Attributes:
        features: (N, D) what the encoder made, after the projector.
        places: (N, 2) int64, row and column of each token's placeholder in `input_ids`.
        lengths, frames, samples: of each image or video: its tokens, the frames in which they come (1 of an image), its
            row of the batch.
        modalities: which encoder made it, "image" or "video".
        movable: (N,) bool, False on structural rows (`image_newline`); None where the family has none.
        outputs: the encoder's outputs by modality, the features in `pooler_output`.
    """

    features: Tensor
    places: Tensor
    lengths: list[int]
    frames: list[int]
    samples: list[int]
    modalities: list[str]
    movable: Tensor | None
    outputs: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: Any, inputs: Mapping[str, Any], attended: Tensor, outputs: Mapping[str, Any], tokenizer: Any | None
    ) -> VisualTokens:
        """Of the processor's inputs, attended (B, L) bool, and the encoder's outputs.

        tokenizer: to read where the frames of a video are, in families that take them as images; None: they are images.

        Raises:
            ValueError: if placeholders and features do not match.
        """
        features, places = [], []
        lengths: list[int] = []
        frames: list[int] = []
        samples: list[int] = []
        modalities: list[str] = []
        ids = inputs["input_ids"]
        for modality, output in outputs.items():
            flat = _flat(output.pooler_output)
            place = ((ids == getattr(model.config, f"{modality}_token_id")) & attended).nonzero()
            _check_counts(modality, len(place), len(flat))
            parts = _part_lengths(output.pooler_output)
            counts = [1] * len(parts) if modality == "image" else _frames_of_videos(model, inputs, parts)
            if family_of(model).tiles is not None:
                parts, counts = _from_runs(model, ids, place.tolist(), parts, tokenizer)
            features.append(flat)
            places.append(place)
            lengths += parts
            frames += counts
            samples += _samples(modality, parts, place[:, 0].tolist())
            modalities += [modality] * len(parts)
        whole = torch.cat(features)
        movable = (whole != model.base_model.image_newline.to(whole)).any(-1) if family_of(model).newlines else None
        return cls(whole, torch.cat(places), lengths, frames, samples, modalities, movable, outputs)

    def by_frame(self) -> tuple[VisualTokens, list[int]]:
        """Each frame as an image of its own, and the number of the image or video that it belongs to.

        Structural rows at the end of a video belong to its last frame.
        """
        lengths, videos = [], []
        for video, (length, frames) in enumerate(zip(self.lengths, self.frames, strict=True)):
            each = length // frames
            lengths += [each] * (frames - 1) + [length - each * (frames - 1)]
            videos += [video] * frames
        apart = replace(
            self,
            lengths=lengths,
            frames=[1] * len(lengths),
            samples=[self.samples[video] for video in videos],
            modalities=[self.modalities[video] for video in videos],
        )
        return apart, videos

    def pruned(self, kept: Tensor) -> dict[str, Any]:
        """The encoder's outputs with only the rows of kept (N,) bool, as the model takes them back."""
        pruned, start = {}, 0
        for modality, output in self.outputs.items():
            parts = _part_lengths(output.pooler_output)
            mine = kept[start : start + sum(parts)]
            counts = [int(part.sum()) for part in mine.cpu().split(parts)]
            fields: dict[str, Any] = {"pooler_output": list(_flat(output.pooler_output)[mine].split(counts))}
            if isinstance(output.pooler_output, Tensor):
                fields["pooler_output"] = self._block(torch.cat(fields["pooler_output"]), modality, kept)
            if getattr(output, "deepstack_features", None) is not None:
                fields["deepstack_features"] = [
                    list(_flat(layer)[mine].split(counts)) for layer in output.deepstack_features
                ]
            pruned[modality] = type(output)(**fields)
            start += sum(parts)
        return pruned

    def _block(self, rows: Tensor, modality: str, kept: Tensor) -> Tensor:
        """Rows (K, D) as (K / g, g, D): the models take one tensor, and beam search takes its parts apart by sample.

        g divides every sample's count, so that samples begin where parts do.
        """
        counts: dict[int, int] = {}
        for part, sample, own in zip(kept.cpu().split(self.lengths), self.samples, self.modalities, strict=True):
            if own == modality:
                counts[sample] = counts.get(sample, 0) + int(part.sum())
        return rows.view(-1, math.gcd(*counts.values()), rows.shape[-1])


def _flat(pooled: Any) -> Tensor:
    """(N, D), of a list of (n, D) or one (parts, n, D)."""
    return pooled.flatten(0, 1) if isinstance(pooled, Tensor) else torch.cat(list(pooled))


def _part_lengths(pooled: Any) -> list[int]:
    """Tokens of each part, without the empty parts of samples that have no image."""
    return [len(part) for part in pooled if len(part)]


def _frames_of_videos(model: Any, inputs: Mapping[str, Any], parts: list[int]) -> list[int]:
    """Frames of each video, of a family whose encoder takes videos."""
    if family_of(model).mrope:
        return [int(frames) for frames in inputs["video_grid_thw"][:, 0]]
    # LLaVA-OneVision: every frame is halved along both sides, and a line end closes all.
    vision = model.config.vision_config
    side = math.ceil(vision.image_size // vision.patch_size / 2)
    return [(part - 1) // side**2 for part in parts]


def _check_counts(modality: str, placeholders: int, features: int) -> None:
    if placeholders == 0:
        raise ValueError(
            f"input_ids: expected a placeholder for each of the {features} {modality} tokens, got none: build the "
            f"prompt with the processor's chat template, or put its {modality} token into the text"
        )
    if placeholders != features:
        raise ValueError(
            f"input_ids: expected {features} {modality} placeholders, as many as the encoder made features, got "
            f"{placeholders}: was the prompt truncated, or made by another model's processor?"
        )


def _from_runs(
    model: Any, input_ids: Tensor, places: list[list[int]], parts: list[int], tokenizer: Any | None
) -> tuple[list[int], list[int]]:
    """Lengths and frames of images and videos, from the runs of placeholders in a prompt.

    A video's frames are one. Of all else every run is an image, or, where each tile is a run, all that follow each
    other in a sample.
    """
    family = family_of(model)
    runs = _runs(places)
    begun: list[bool | None] = [None] * len(runs)
    if family.frame_mark is not None and tokenizer is not None and len(runs) > 1:
        tile = parts[0] if family.tiles == "one run" else None
        begun = frames_begun(family.frame_mark, tile, tokenizer, input_ids, runs)
    lengths: list[int] = []
    frames: list[int] = []
    for index, ((row, _, length), first) in enumerate(zip(runs, begun, strict=True)):
        if family.tiles == "one run" and length % parts[0]:
            raise ValueError(
                f"input_ids: expected a multiple of the {parts[0]} placeholders of a tile in a row, got {length} in "
                f"sample {row}: was the prompt truncated, or made by another model's processor?"
            )
        same_row = index > 0 and runs[index - 1][0] == row
        further_tile = first is None and family.tiles == "a run each" and same_row and begun[index - 1] is None
        if first is False or further_tile:
            frames[-1] += first is False
            lengths[-1] += length
        else:
            frames.append(1)
            lengths.append(length)
    return lengths, frames


def _runs(places: list[list[int]]) -> list[tuple[int, int, int]]:
    """Row, first column and length of each run of placeholders that follow each other without a gap."""
    runs: list[tuple[int, int, int]] = []
    for row, column in places:
        if runs and runs[-1][0] == row and sum(runs[-1][1:]) == column:
            runs[-1] = (row, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((row, column, 1))
    return runs


def _samples(modality: str, parts: list[int], rows: list[int]) -> list[int]:
    """The batch row of each part, from the batch row of each token."""
    samples, start = [], 0
    for part in parts:
        if rows[start] != rows[start + part - 1]:
            raise ValueError(
                f"input_ids: expected the placeholders of each {modality} in one sample, got one with {part} tokens "
                f"spread over samples {rows[start]} and {rows[start + part - 1]}: do the images belong to this prompt?"
            )
        samples.append(rows[start])
        start += part
    return samples
