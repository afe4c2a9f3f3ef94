"""The option `mi_pruner`, at start-up and in a request: what it may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

SERVED_VERSION = (0, 32)  # of vLLM: the plug-in builds on what is not a public interface
NAME = "mi_pruner"  # in hf_overrides, and in mm_processor_kwargs
TEXTS = ("image", "question")


@dataclass(frozen=True)
class Options:
    """Of an engine, or of a request.

    Attributes:
        keep: the ratio of an image's tokens that stay, in (0, 1]; 1 and 1.0 are all, as JSON does not tell them apart.
        text: what an image is scored against. "image": its own tokens, so that it may be cached by itself. "question":
            the user's words of the turn in which it stands.
    """

    keep: float
    text: str = "image"

    @classmethod
    def at_startup(cls, said: Any) -> Options:
        """Of what --hf-overrides says.

        Raises:
            ValueError: naming what is wrong. (Always this one: vLLM reports it, and answers a request with 400.)
        """
        if isinstance(said, Mapping) and "keep" not in said:
            raise ValueError('mi_pruner: expected a ratio of tokens, such as {"keep": 0.25}, got no "keep"')
        return cls(**_checked(said))

    def of_request(self, said: Any) -> Options:
        """These, changed by what a request's mm_processor_kwargs say.

        Raises:
            ValueError: naming what is wrong, also for a larger `keep`: encoder cache and scheduler are made for this.
        """
        asked = replace(self, **_checked(said))
        if asked.keep > self.keep:
            raise ValueError(
                f"mi_pruner: expected keep <= {self.keep:g}, for which the engine was started, got {asked.keep:g}: "
                "start it with the largest that requests ask for"
            )
        return asked


def configured(hf_config: Any) -> Options | None:
    """Of a model's configuration, in which --hf-overrides put them; None without the option."""
    said = getattr(hf_config, NAME, None)
    return None if said is None else Options.at_startup(said)


def is_within(kwargs: Mapping[str, Any]) -> bool:
    """Whether the option is said in a part of a processor's kwargs, such as images_kwargs, where nobody reads it."""
    return any(isinstance(part, Mapping) and NAME in part for part in kwargs.values())


def _checked(said: Any) -> dict[str, Any]:
    if not isinstance(said, Mapping):
        raise ValueError(f'mi_pruner: expected an object, such as {{"keep": 0.25}}, got {said!r:.60}')
    known = [each.name for each in fields(Options)]
    for name in said:
        if name == "min_gain":
            raise ValueError(
                "mi_pruner: expected no min_gain, since an engine must know an image's count from its shape"
            )
        if name not in known:
            raise ValueError(f"mi_pruner: expected {' and '.join(known)}, got {name!r:.60}")
    given = dict(said)
    if "keep" in given:
        given["keep"] = _ratio(given["keep"])
    if given.get("text", TEXTS[0]) not in TEXTS:
        raise ValueError(
            f"mi_pruner: expected text to be one of {', '.join(map(repr, TEXTS))}, got {given['text']!r:.60}"
        )
    return given


def _ratio(keep: Any) -> float:
    is_number = isinstance(keep, (int, float)) and not isinstance(keep, bool)
    if is_number and 0 < keep <= 1:
        return float(keep)
    hint = ": a count does not fit images of several sizes" if is_number and keep > 1 else ""
    raise ValueError(f"mi_pruner: expected keep to be a ratio in (0, 1], got {keep!r:.60}{hint}")
