"""Finds and loads the compiled library, which registers its operators with PyTorch as it is loaded; and speaks with it.

The public operators are the library's where it has kernels for a tensor's device: it takes a call past Python if the
arguments are right and Python has left it the device (`open_direct`), as long as nobody asks for another backend
(`close_direct`). All other calls come back to Python, as operators of the namespace `mi_pruner_python`. The other half
is csrc/front/python.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import _checks

_NO_CUDA = "the library was built without the CUDA kernels (MI_PRUNER_BUILD=cuda asks for them)"


def library_path() -> Path:
    """The file to load: `MI_PRUNER_LIBRARY` where set (a sanitizer build, say), else the installed one."""
    override = os.environ.get("MI_PRUNER_LIBRARY")
    return Path(override).resolve() if override else Path(__file__).with_name("_C.abi3.so")


@functools.cache
def load() -> str | None:
    """Loads the library, once in a process; returns None, or why there is none."""
    home = vars(torch.ops.mi_pruner)  # outlives the package, as does a library that was loaded
    if "_library" not in home:
        path = library_path()
        if not path.is_file():
            if "MI_PRUNER_LIBRARY" in os.environ:
                return f"MI_PRUNER_LIBRARY: no file {path}"
            return f"no {path.name} in {path.parent} (installed with MI_PRUNER_BUILD=none, or not built yet)"
        try:
            torch.ops.load_library(path)
        except OSError as error:  # another torch, another platform: the reference still works
            return f"{path.name} cannot be loaded: {error}"
        library = ctypes.PyDLL(str(path))
        if not hasattr(library, "mi_pruner_connect"):
            return f"{path} was built from another version of mi_pruner: build it again"
        home["_library"] = library
    _connect()
    return None


DIRECT = ("cpu", "cuda")  # devices, in the library's order, whose tensors it may take past Python


class _Limits(ctypes.Structure):
    """What the library takes: see `Limits` in csrc/front/python.h."""

    NUMBERS = ("MIN_BANDWIDTH", "MAX_BANDWIDTH", "MAX_WEIGHT")  # of _checks.py
    COUNTS = ("MIN_BINS", "MAX_BINS")
    _fields_ = [*((name, ctypes.c_double) for name in NUMBERS), *((name, ctypes.c_int64) for name in COUNTS)]


class _Python(ctypes.Structure):
    """Functions of the interpreter: see `Python` in csrc/front/python.cpp."""

    FUNCTIONS = (
        "PyErr_Restore",
        "Py_IncRef",
        "Py_DecRef",
        "PyGILState_Ensure",
        "PyGILState_Release",
        "Py_IsInitialized",
        "PyObject_CallObject",
        "PyErr_Fetch",
        "PyErr_NormalizeException",
        "PyCapsule_New",
        "PyCapsule_GetPointer",
    )
    _fields_ = [(name, ctypes.c_void_p) for name in FUNCTIONS]


def _library() -> ctypes.PyDLL:
    """The functions of the library that was loaded, called with Python's lock."""
    return vars(torch.ops.mi_pruner)["_library"]


FRAMES = 40  # that an operator in Python takes until it can tell the library of an error, and some more


def _probe(frames: int = FRAMES) -> None:
    """Called before an operator in Python, where an exception is not lost: a signal's handler raises here, and where
    there are not so many frames left, RecursionError is raised."""
    if frames > 0:
        _probe(frames - 1)


def _connect() -> None:
    """Tells the library which options are in range, and how to raise an exception."""
    library, pointer, any_object = _library(), ctypes.c_void_p, ctypes.py_object
    interface: dict[str, tuple[Any, list[Any]]] = {  # function -> what it returns, what it takes
        "connect": (None, [ctypes.POINTER(_Limits), ctypes.POINTER(_Python), any_object]),
        "open": (None, [ctypes.c_int, ctypes.c_int]),
        "close": (any_object, [ctypes.c_ssize_t]),
        "begin": (pointer, []),
        "raise": (None, [pointer, any_object, any_object, any_object, ctypes.c_char_p]),
    }
    for name, (result, arguments) in interface.items():
        function = getattr(library, f"mi_pruner_{name}")
        function.restype, function.argtypes = result, arguments
    limits = _Limits(*(getattr(_checks, name) for name in (*_Limits.NUMBERS, *_Limits.COUNTS)))
    functions = (getattr(ctypes.pythonapi, name) for name in _Python.FUNCTIONS)
    python = _Python(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))
    library.mi_pruner_connect(ctypes.byref(limits), ctypes.byref(python), _probe)


def open_direct(device_type: str, index: int | None) -> None:
    """From now on the library takes calls for the tensors of this device past Python."""
    _library().mi_pruner_open(DIRECT.index(device_type), index or 0)


def close_direct(device_types: Iterable[str]) -> object:
    """Not for tensors of these devices, as long as what it returns lives."""
    library, bits = vars(torch.ops.mi_pruner).get("_library"), sum(1 << DIRECT.index(name) for name in device_types)
    return library.mi_pruner_close(bits) if library is not None and bits else None


def begin() -> int | None:
    """Which call of the library an operator in Python begins to serve; None: it was not called by the library."""
    return _library().mi_pruner_begin()


def raise_in_library(call: int | None, error: BaseException) -> None:
    """Has the library raise this where the operator in Python returns to it, in place of what it was told before.

    None: it has called none; the error is raised here.
    """
    if call is None:
        raise error
    name = type(error).__name__
    try:
        text = f"{name}: {error}"
    except Exception:  # noqa: BLE001  of the exception's own __str__
        text = name
    encoded = text.encode(errors="replace")
    _library().mi_pruner_raise(call, type(error), error, error.__traceback__, encoded)


def cuda_kernels_missing() -> str | None:
    """Why the library has no CUDA kernels (None: it has)."""
    missing = load()
    if missing is not None:
        return missing
    return None if hasattr(_library(), "mi_pruner_cuda_unusable") else _NO_CUDA


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
    unusable = ctypes.CDLL(_library()._name).mi_pruner_cuda_unusable  # without Python's lock: drivers take their time
    unusable.argtypes, unusable.restype = [ctypes.c_int], ctypes.c_char_p
    why = unusable(-1 if index is None else index)
    return None if why is None else why.decode()
