"""Finds and loads the compiled library, which registers its operators with PyTorch as it is loaded."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import torch

_NO_CUDA = "the library was built without the CUDA kernels (MI_PRUNER_BUILD=cuda asks for them)"


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


def cuda_kernels_missing() -> str | None:
    """Why the library has no CUDA kernels (None: it has)."""
    missing = load()
    if missing is not None:
        return missing
    return None if hasattr(ctypes.CDLL(str(library_path())), "mi_pruner_cuda_unusable") else _NO_CUDA


def cuda_missing() -> str | None:
    """Why the library has no CUDA kernels for this PyTorch (None: it has); asks nothing of the driver."""
    missing = cuda_kernels_missing()
    if missing is not None:
        return missing
    return "this PyTorch is built without CUDA" if torch.version.cuda is None else None


@functools.cache
def cuda_unusable(index: int | None = None) -> str | None:
    """Why the CUDA kernels that the library has can't run on this GPU; without an index, on any (None: they can).

    Asked of the driver, so not before there is a reason to: a process that has asked can't be forked any more.
    """
    unusable = ctypes.CDLL(str(library_path())).mi_pruner_cuda_unusable
    unusable.argtypes, unusable.restype = [ctypes.c_int], ctypes.c_char_p
    why = unusable(-1 if index is None else index)
    return None if why is None else why.decode()
