"""mi_pruner inside vLLM: a plug-in that drops image tokens before the language model.

    vllm serve MODEL --hf-overrides '{"mi_pruner": {"keep": 0.25}}'

vLLM finds it by the entry point `vllm.general_plugins` and calls `register` in each of its processes. It shortens an
image's placeholders in the processor (`processor`), its features in the model (`model`), and gives those that stay
their original positions (`positions`). Without the option no result, hash or count changes. docs/serving.md is the
how-to.
"""

from __future__ import annotations

from .options import SERVED_VERSION

__all__ = ["register"]


def register() -> None:
    """Entry point: puts our classes in place of vLLM's own, and a check of the option into every model's configuration.

    May be called again. With another version of vLLM than the one that is served nothing is put in place, and the check
    refuses the option.
    """
    import vllm

    from . import startup

    served = tuple(int(part) for part in vllm.__version__.split(".")[:2]) == SERVED_VERSION
    if served:
        from .models import ARCHITECTURES

        for name in ARCHITECTURES:
            vllm.ModelRegistry.register_model(name, f"{__name__}.models:{name}")
        startup.mend_cpu_runner()
    startup.check_configurations(vllm.__version__, served)
