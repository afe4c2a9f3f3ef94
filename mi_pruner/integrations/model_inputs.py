"""Inputs for a transformers model whose images are encoded already, and what was kept of these images."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

FEATURES = "mm_encoder_outputs"
CACHES = ("cache", "past_key_values")  # the name of the newer versions of transformers first
_LENGTH = "_cache_length"  # attribute of a model's output: of its cache when something followed it first


@dataclass(frozen=True)
class KeptImage:
    """What was kept of one image or video, on the CPU.

    Attributes:
        modality: "image" or "video".
        sample: row of the batch.
        tokens: N, how many tokens it had.
        rows: (K,) int64, ascending: the rows of its N features that were kept, structural rows among them.
        order: int64, the rows selected, in order of selection (without structural rows).
        gains: their gains when picked, in nats; −inf for repeats.
        scores: (N,) each token's share of the mutual information with the text, in nats.
        frames: T of a video, whose features come frame after frame; 1 for an image.
        repeats: (N,) bool, the tokens of a video that repeat what was last new at their place.
    """

    modality: str
    sample: int
    tokens: int
    rows: Tensor
    order: Tensor
    gains: Tensor
    scores: Tensor
    frames: int
    repeats: Tensor


class ModelInputs(UserDict[str, Any]):
    """Keyword arguments for `model(...)` and `model.generate(...)`, to be unpacked as often as one likes. (Those of
    `next_turn` are for `generate()` alone.)

    `inputs.input_ids` is `inputs["input_ids"]`. The features in `inputs["mm_encoder_outputs"]` are a copy for each who
    reads them (their tensors are not copied): transformers repeats them in place for beams and for several answers.
    """

    def __getitem__(self, name: str) -> Any:
        value = self.data[name]
        return _copied(value) if name == FEATURES else value

    def __getattr__(self, name: str) -> Any:
        if name != "data" and name in self.data:
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Moves all tensors in place, and converts floating-point ones: `to(device)`, `to(dtype)`, as `Tensor.to`.

        A cache stays where it is. Returns the inputs themselves, as the outputs of transformers' processors do.
        """

        def moved(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [moved(part) for part in value]
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return value.to(*args, **kwargs)
            return value.to(torch.empty(0, device=value.device).to(*args, **kwargs).device)

        for name, value in self.data.items():
            self.data[name] = _copied(value, moved) if name == FEATURES else moved(value)
        return self


class PrunedFeatures(dict[str, Any]):
    """The encoder's outputs by modality, pruned: what tells pruned inputs from others, also in a copy of them."""


class PrunedInputs(ModelInputs):
    """Inputs whose images and videos are pruned; `images` says what was kept of each."""

    def __init__(self, values: Mapping[str, Any], images: Iterable[KeptImage] = ()) -> None:
        super().__init__(values)
        self.images = list(images)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name in CACHES and (held := value.get_seq_length()) >= self["input_ids"].shape[1]:
            raise ValueError(
                f"{name}: expected the cache of the turn before, got one that has gone on since ({held} tokens): "
                "copy.deepcopy() the inputs of a turn before using them twice"
            )
        return value

    def following(self, output: Any, input_ids: Tensor) -> dict[str, Any]:
        """Inputs for the next call of the model in a decoding loop of one's own, with the cache of the call before.

            output = model(**pruned)
            while ...:
                output = model(**pruned.following(output, output.logits[:, -1:].argmax(-1)))

        Without these `position_ids` models with 1-D positions count from the cache's length, in which dropped tokens
        are missing, and answer as if the prompt were another.

        Args:
            output: what the model returned for these inputs, or for those that came from here since.
            input_ids: (B, T) int64, the next tokens of each sample.

        Returns:
            `input_ids`, `attention_mask` (B, L + t + T) for t tokens since the prompt, `position_ids` (B, T) or
            (4, B, T), and the cache.

        Raises:
            ValueError: if `output` has no cache, or one of fewer tokens than the prompt, or one that has gone on since
                it was here before; for ids of another shape. TypeError: for ids that are no tensor.
        """
        name = cache_name(output)
        if name is None:
            raise ValueError(
                f"output: expected what the model returned, with its cache, got {type(output).__name__} without one"
            )
        check_next_ids(input_ids, len(self["input_ids"]))
        held = getattr(output, name)
        prompt, positions = self["attention_mask"], self["position_ids"]
        length = int(held.get_seq_length())
        since = length - prompt.shape[1]
        if since < 0:
            raise ValueError(
                f"output: expected a cache of at least the prompt's {prompt.shape[1]} tokens, got one of {length}: is "
                "it of these inputs?"
            )
        before = getattr(output, _LENGTH, length)
        if before != length:
            raise ValueError(
                f"output: expected its cache of {before} tokens, got one that has gone on since ({length} tokens): "
                "copy.deepcopy() the output before two answers go on from it"
            )
        setattr(output, _LENGTH, length)
        count = since + input_ids.shape[1]
        steps = torch.arange(since + 1, count + 1, device=positions.device)
        return {
            "input_ids": input_ids,
            "attention_mask": torch.nn.functional.pad(prompt, (0, count), value=1),
            "position_ids": positions[..., -1:] + steps,
            "use_cache": True,
            name: held,
        }


def cache_name(output: Any) -> str | None:
    """Under which name a model's or generate()'s output has its cache; None without one."""
    return next((name for name in CACHES if getattr(output, name, None) is not None), None)


def check_next_ids(input_ids: Tensor, samples: int) -> None:
    """TypeError, ValueError unless input_ids are (samples, T) int64."""
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids: expected ({samples}, T) int64 as a tensor, got {type(input_ids).__name__}")
    if input_ids.dim() != 2 or len(input_ids) != samples or input_ids.dtype != torch.int64:
        raise ValueError(f"input_ids: expected ({samples}, T) int64, got {tuple(input_ids.shape)} {input_ids.dtype}")


def _copied(features: Mapping[str, Any], change: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
    """The outputs by modality, each a new object of the same values, or of what `change` makes of them."""
    copied = {}
    for modality, output in features.items():
        kind: Any = type(output)
        copied[modality] = _repeated_once(kind)(**{name: change(value) for name, value in output.items()})
    return PrunedFeatures(copied) if isinstance(features, PrunedFeatures) else copied


class _Repeated(list[Any]):
    """Features that are repeated: known as such also where their output is built anew."""


@cache
def _repeated_once(kind: Any) -> type:
    """An output class whose features can be repeated for beams once only, where the copies are one's own: the second
    time transformers would give samples the images of others."""
    if hasattr(kind, "_is_repeated"):
        return kind

    def set_attribute(self: Any, name: str, value: Any) -> None:
        if name == "pooler_output" and isinstance(value, list) and name in self:
            if self._is_repeated or isinstance(self[name], _Repeated):
                raise ValueError(
                    f"{FEATURES}: expected the features of each image once, got some that a call with beams or several "
                    "answers has repeated already: unpack the inputs anew for every call, model.generate(**pruned)"
                )
            object.__setattr__(self, "_is_repeated", True)
            value = _Repeated(value)
        kind.__setattr__(self, name, value)

    def reduce(self: Any) -> tuple[Any, ...]:  # this class has no name to be found by
        return _rebuilt, (kind, [getattr(self, field.name) for field in fields(self)], self._is_repeated)

    def update(self: Any, values: Mapping[str, Any]) -> None:  # torch's DataLoader rebuilds mappings by it
        for name, value in values.items():
            kind.__setitem__(self, name, value)

    members = {"__setattr__": set_attribute, "__reduce__": reduce, "update": update, "_is_repeated": False}
    return type(kind.__name__, (kind,), members)


def _rebuilt(kind: Any, values: list[Any], is_repeated: bool) -> Any:
    output = _repeated_once(kind)(*values)
    object.__setattr__(output, "_is_repeated", is_repeated)
    return output
