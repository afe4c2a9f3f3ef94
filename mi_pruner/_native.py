"""Finds and loads the compiled library, which registers its operators with PyTorch as it is loaded."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch


def library_path() -> Path:
    """The file to load: `MI_PRUNER_LIBRARY` where set (a sanitizer build, say), else the installed one."""
    override = os.environ.get("MI_PRUNER_LIBRARY")
    return Path(override) if override else Path(__file__).with_name("_C.abi3.so")


@functools.cache
def load() -> str | None:
    """Loads the library, once in a process; returns None, or why there is none."""
    path = library_path()
    if not path.is_file():
        if "MI_PRUNER_LIBRARY" in os.environ:
            return f"MI_PRUNER_LIBRARY: no file {path}"
        return f"no {path.name} in {path.parent} (installed with MI_PRUNER_BUILD=none, or not built yet)"
    try:
        torch.ops.load_library(path)
    except OSError as error:  # another torch, another platform: the reference still works
        return f"{path.name} cannot be loaded: {error}"
    return None
