"""The supported families of transformers models, and the model inside what wraps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MINIMUM_VERSION = (5, 18)  # the first that takes `mm_encoder_outputs` and keeps the caller's positions in generate()


@dataclass(frozen=True)
class Family:
    """What is particular to the models of one `config.model_type`.

    Attributes:
        modalities: what its encoders take.
        mrope: positions have a time, a height and a width (`get_rope_index`).
        newlines: the features hold structural rows, `image_newline`.
        tiles: how a prompt shows an image that is cut into tiles. "one run": as one run of placeholders; the encoder
            returns the tiles one by one. "a run each": where an image ends can't be told: a sample's are one.
        frame_mark: where its processor writes a video into the prompt as images, the regular expression of what stands
            right before each; group "number" is that of the frame, where there is one.
    """

    modalities: tuple[str, ...] = ("image",)
    mrope: bool = False
    newlines: bool = False
    tiles: str | None = None
    frame_mark: str | None = None

    @property
    def takes_videos(self) -> bool:
        """Whether its processor does."""
        return "video" in self.modalities or self.frame_mark is not None


_BOTH = ("image", "video")
FAMILIES = {
    "gemma3": Family(),
    "idefics3": Family(tiles="a run each"),
    "internvl": Family(tiles="one run", frame_mark=r"Frame\s*(?P<number>\d+)\s*:\s*<[^<>]*>\s*"),
    "llava": Family(),
    "llava_next": Family(newlines=True),
    "llava_onevision": Family(_BOTH, newlines=True),
    "qwen2_5_vl": Family(_BOTH, mrope=True),
    "qwen2_vl": Family(_BOTH, mrope=True),
    "qwen3_vl": Family(_BOTH, mrope=True),
    "smolvlm": Family(
        tiles="a run each",
        frame_mark=r"Frame\s+from\s+\d+\s*:\s*\d+\s*:\s*(?:<(?!row_)[^<>]*>\s*)+",  # row_: a tile of an image
    ),
}
SUPPORTED = tuple(FAMILIES)

# What forwards its inputs as they are -> the attribute that holds the model. By name: none of these needs to be there.
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
}
_PEFT = ("peft.peft_model.PeftModel", "peft.mixed_model.PeftMixedModel")


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
    if family not in FAMILIES:
        raise ValueError(f"model: expected one of {', '.join(FAMILIES)}, got {family!r}")


def family_of(model: Any) -> Family:
    """Of a supported model, without what wraps it."""
    return FAMILIES[model.config.model_type]


def unwrapped(model: Any) -> Any:
    """The `...ForConditionalGeneration` itself: the model, or the one inside peft, torch.compile or
    DistributedDataParallel, which pass their inputs on as they are.

    Raises:
        ImportError: if transformers is too old.
        ValueError: for a model of no supported family or without generate(), and for any other wrapper: what it does
            with pruned inputs is not known.
    """
    check_version()
    inner = model
    while (held := _held(inner)) is not None:
        inner = held
    _check_model(inner)
    return inner


def _held(model: Any) -> Any | None:
    """What a known wrapper holds; None for all else."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    for name, attribute in _WRAPPERS.items():
        if name in names:
            return getattr(model, attribute)
    if names.isdisjoint(_PEFT):
        return None
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ValueError(
            "model: expected an adapter that leaves the prompt alone, such as LoRA, got one that learns a prompt: peft "
            "then drops the position_ids that pruned inputs need"
        )
    return model.base_model.model


def _check_model(model: Any) -> None:
    import transformers

    if isinstance(model, transformers.PreTrainedModel):
        check_family(model.config.model_type)
        if not isinstance(model, transformers.GenerationMixin):
            raise ValueError(
                f"model: expected a ...ForConditionalGeneration with generate(), got {type(model).__name__}"
            )
        return
    inside = [
        name
        for name, module in (model.named_modules() if hasattr(model, "named_modules") else ())
        if isinstance(module, transformers.GenerationMixin) and module.config.model_type in FAMILIES
    ]
    if not inside:
        check_family(type(model).__name__)
    raise ValueError(
        "model: expected a ...ForConditionalGeneration, also inside peft, torch.compile or DistributedDataParallel, "
        f"got {type(model).__name__}, which may change what it is given: pass model.{inside[0]}, and call that with "
        "the pruned inputs"
    )
