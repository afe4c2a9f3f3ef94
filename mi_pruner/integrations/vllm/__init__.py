"""mi_pruner inside vLLM: a plug-in that drops image tokens before the language model.

    vllm serve MODEL --hf-overrides '{"mi_pruner": {"keep": 0.25}}'

vLLM finds it by the entry point `vllm.general_plugins` and calls `register` in each of its processes. It shortens an
image's placeholders in the processor (`processor`), its features in the model (`model`), and gives those that stay
their original positions (`positions`). Without the option no result, hash or count changes. docs/serving.md is the
how-to.
"""

from __future__ import annotations

import re
from typing import Any

from .options import SERVED_VERSION

__all__ = ["register"]


def __getattr__(name: str) -> Any:
    """The model classes, which vLLM takes from here: of a package it sees when any of the files has changed."""
    if not name.endswith("ForConditionalGeneration"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import models

    return getattr(models, name)


def register() -> None:
    """Entry point: puts our classes in place of vLLM's own, and a check of the option into every model's configuration.

    May be called again. With another version of vLLM than the one that is served nothing is put in place, and the check
    refuses the option.
    """
    import vllm

    from . import startup

    numbers = re.match(r"(\d+)\.(\d+)", vllm.__version__)  # none in that of a checkout without tags
    served = numbers is not None and tuple(map(int, numbers.groups())) == SERVED_VERSION
    if served:
        from .models import ARCHITECTURES

        for name in ARCHITECTURES:
            vllm.ModelRegistry.register_model(name, f"{__name__}:{name}")
        startup.mend_cpu_runner()
    startup.check_configurations(vllm.__version__, served)
