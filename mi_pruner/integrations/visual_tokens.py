"""The visual tokens of a batch as a transformers model sees them: features, and their places in the prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Families that see an image as tiles. InternVL's encoder returns them one by one, and the prompt shows them as one run;
# in a prompt of the others every tile is a run of its own, and where an image ends can't be told: a sample is one.
TILES_IN_ONE_RUN = ("internvl",)
TILES_OF_A_SAMPLE = ("smolvlm", "idefics3")


@dataclass(frozen=True)
class VisualTokens:
    """All visual tokens of a batch, images before videos, each in the order of its placeholders.

    Attributes:
        features: (N, D) what the encoder made, after the projector.
        places: (N, 2) int64, row and column of each token's placeholder in `input_ids`.
        lengths, samples, modalities: of each image or video: its tokens, its row of the batch, "image" or "video".
        movable: (N,) bool, False on structural rows (`image_newline`); None where the family has none.
        outputs: the encoder's outputs by modality, the features in `pooler_output`.
    """

    features: Tensor
    places: Tensor
    lengths: list[int]
    samples: list[int]
    modalities: list[str]
    movable: Tensor | None
    outputs: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any, input_ids: Tensor, attended: Tensor, outputs: Mapping[str, Any]) -> VisualTokens:
        """Of input_ids (B, L) int64, attended (B, L) bool.

        Raises:
            ValueError: if placeholders and features do not match.
        """
        features, places = [], []
        lengths: list[int] = []
        samples: list[int] = []
        modalities: list[str] = []
        for modality, output in outputs.items():
            flat = _flat(output.pooler_output)
            place = ((input_ids == getattr(model.config, f"{modality}_token_id")) & attended).nonzero()
            _check_counts(modality, len(place), len(flat))
            parts = _part_lengths(output.pooler_output)
            if model.config.model_type in TILES_IN_ONE_RUN:
                parts = list(_merge_runs(parts, place.tolist()))
            elif model.config.model_type in TILES_OF_A_SAMPLE:
                parts = place[:, 0].unique_consecutive(return_counts=True)[1].tolist()
            features.append(flat)
            places.append(place)
            lengths += parts
            samples += _samples(modality, parts, place[:, 0].tolist())
            modalities += [modality] * len(parts)
        whole = torch.cat(features)
        newline = getattr(model.base_model, "image_newline", None)
        movable = None if newline is None else (whole != newline.to(whole)).any(-1)
        return cls(whole, torch.cat(places), lengths, samples, modalities, movable, outputs)

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


def _merge_runs(parts: list[int], places: list[list[int]]) -> Iterator[int]:
    """Lengths of parts, those joined whose placeholders follow each other without a gap."""
    length, start = 0, 0
    for part in parts:
        row, column = places[start]
        if length and [row, column - 1] != places[start - 1]:
            yield length
            length = 0
        length += part
        start += part
    yield length


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
