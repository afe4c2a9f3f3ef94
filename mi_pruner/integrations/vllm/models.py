"""The served families: vLLM's own model classes with what prunes put before them, made when vLLM asks for one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One of vLLM's model classes.

    Attributes:
        module: in vllm.model_executor.models.
        mrope: positions have a time, a height and a width.
        newlines: the features hold structural rows, `image_newline`, which always stay.
    """

    module: str
    mrope: bool = False
    newlines: bool = False


ARCHITECTURES = {
    "LlavaForConditionalGeneration": Architecture("llava"),
    "LlavaNextForConditionalGeneration": Architecture("llava_next", newlines=True),
    "Qwen2VLForConditionalGeneration": Architecture("qwen2_vl", mrope=True),
    "Qwen2_5_VLForConditionalGeneration": Architecture("qwen2_5_vl", mrope=True),
    "Qwen3VLForConditionalGeneration": Architecture("qwen3_vl", mrope=True),
}


def image_token(config: Any) -> int:
    """The id of an image's placeholder, of a model's configuration."""
    return getattr(config, "image_token_id", None) or config.image_token_index


def __getattr__(name: str) -> type:
    if name not in ARCHITECTURES:
        raise AttributeError(name)
    globals()[name] = _built(name)
    return globals()[name]


def _built(name: str) -> type:
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from .model import PrunedModel
    from .processor import PrunedProcessor

    architecture = ARCHITECTURES[name]
    parent = getattr(importlib.import_module(f"vllm.model_executor.models.{architecture.module}"), name)
    factory = parent._processor_factory

    def processor(info: Any, dummy_inputs: Any) -> Any:
        own = factory.processor(info, dummy_inputs)  # maybe a function that chooses a class
        pruned = type(f"Pruned{type(own).__name__}", (PrunedProcessor, type(own)), {"architecture": architecture})
        made: Any = object.__new__(pruned)
        made.__dict__.update(own.__dict__)
        return made

    built = type(name, (PrunedModel, parent), {"__module__": __name__, "architecture": architecture})
    registered = MULTIMODAL_REGISTRY.register_processor(processor, info=factory.info, dummy_inputs=factory.dummy_inputs)
    return registered(built)
