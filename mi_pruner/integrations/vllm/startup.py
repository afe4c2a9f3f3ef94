"""What is checked and set when vLLM reads a model's configuration."""

from __future__ import annotations

import functools
from typing import Any

from .options import NAME, SERVED_VERSION, configured, is_within

_DRAFTLESS = ("ngram", "ngram_gpu", "suffix")  # speculative decoding without a model that would read the prompt


def check_configurations(version: str, served: bool) -> None:
    """Adds our check to vLLM's own of every architecture, so that the option is never passed over in silence.

    Args:
        version: vLLM's.
        served: False: any use of the option is an error.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for architecture in {*ModelRegistry.get_supported_archs(), *MODELS_CONFIG_MAP}:
        own = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not issubclass(own, _Checked):
            MODELS_CONFIG_MAP[architecture] = type(
                own.__name__, (_Checked, own), {"version": version, "served": served}
            )


class _Checked:
    """To be put before a VerifyAndUpdateConfig of vLLM."""

    version: str
    served: bool

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        super().verify_and_update_model_config(model_config)  # type: ignore[misc]
        if getattr(model_config.hf_config, NAME, None) is not None:
            if not cls.served:
                raise ValueError(_another_version(cls.version))
            _check_model(model_config)

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        super().verify_and_update_config(vllm_config)  # type: ignore[misc]
        if getattr(vllm_config.model_config.hf_config, NAME, None) is not None:
            _check_engine(vllm_config)


def _another_version(version: str) -> str:
    served = ".".join(map(str, SERVED_VERSION))
    return f"mi_pruner: expected vLLM {served}, which this version serves, got {version}: pip install 'mi_pruner[vllm]'"


def _check_model(model_config: Any) -> None:
    """ValueError for a model or option that is not served; a model of 1-D positions is made to keep original ones."""
    from .models import ARCHITECTURES

    architecture = model_config.architecture
    if architecture not in ARCHITECTURES:
        raise ValueError(f"mi_pruner: expected one of {', '.join(ARCHITECTURES)}, got {architecture}")
    configured(model_config.hf_config)
    multimodal = model_config.multimodal_config
    if multimodal is None:
        raise ValueError("mi_pruner: expected a model that takes images, got one that is started for text alone")
    if multimodal.is_multimodal_pruning_enabled():
        raise ValueError(
            "mi_pruner: expected no video_pruning_rate beside it, since both would set positions: leave out one of them"
        )
    if model_config.enable_prompt_embeds:
        raise ValueError(
            "mi_pruner: expected no enable_prompt_embeds, since vLLM puts such prompts among the features of images: "
            "serve them by another engine"
        )
    kwargs = multimodal.mm_processor_kwargs or {}
    if NAME in kwargs or is_within(kwargs):
        raise ValueError("mi_pruner: expected it in --hf-overrides, got it in --mm-processor-kwargs, too")
    vision = model_config.hf_config.vision_config.model_type
    if vision == "pixtral":
        raise ValueError("mi_pruner: expected a LLaVA with CLIP or SigLIP, got one with Pixtral's vision encoder")
    if not ARCHITECTURES[architecture].mrope:
        _keep_positions(model_config)


def _keep_positions(model_config: Any) -> None:
    """Declares 1-D positions as mRoPE ones, without a part for height and width: these a model of vLLM may tell.

    The model takes one of the three rows, which are equal but for images (`positions`).
    """
    text = model_config.hf_text_config
    rope = getattr(text, "rope_parameters", None)
    if rope is None:
        raise ValueError(
            "mi_pruner: expected a language model with rotary positions, got one without rope_parameters: "
            f"{text.model_type}"
        )
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"mi_pruner: expected rope_type 'default' in a model of 1-D positions, got {rope['rope_type']!r}, whose "
            "table of positions ends where the context does"
        )
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rope["mrope_section"] = [int(head * rope.get("partial_rotary_factor", 1.0)) // 2, 0, 0]


def _check_engine(vllm_config: Any) -> None:
    """ValueError for what would be served wrong, since it passes over `embed_multimodal` or over positions."""
    parallel, lora, speculative = vllm_config.parallel_config, vllm_config.lora_config, vllm_config.speculative_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "mi_pruner: expected pipeline_parallel_size 1, since vLLM tells positions of pruned images to the first "
            f"stage only, got {parallel.pipeline_parallel_size}: use tensor_parallel_size"
        )
    if lora is not None and lora.enable_tower_connector_lora:
        raise ValueError(
            "mi_pruner: expected no enable_tower_connector_lora, which counts tokens as they are in the prompt"
        )
    if speculative is not None and speculative.method not in _DRAFTLESS:
        raise ValueError(
            f"mi_pruner: expected a speculative method without draft model ({', '.join(_DRAFTLESS)}), since a draft "
            f"gets an image's features shifted against its positions, got {speculative.method!r}"
        )
    if vllm_config.ec_transfer_config is not None:
        raise ValueError("mi_pruner: expected the vision encoder in the same instance, got an ec_transfer_config")


def mend_cpu_runner() -> None:
    """vLLM 0.32: CPUModelRunner.load_model does not set the flag by which positions of pruned images are put right, as
    GPUModelRunner.load_model does. The one place where vLLM is patched; without the option nothing changes.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    before = CPUModelRunner.load_model
    if getattr(before, "mended", False):
        return

    @functools.wraps(before)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **kwargs)
        if configured(self.model_config.hf_config) is not None:
            self.is_multimodal_pruning_enabled = True

    load_model.mended = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load_model
