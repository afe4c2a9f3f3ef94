"""Triton's interpreter, quicker by a third and as GPUs have it. With TRITON_INTERPRET=1."""

from __future__ import annotations

import dataclasses

import numpy as np
from triton.runtime import interpreter

_patched: set[str] = set()
_numpy_types: dict[str, np.dtype] = {}


def see_overflows(whether: bool) -> None:
    """Of sums and products of integers, as an error. By default they are looked for, for a fifth of the time, and what
    is found is dropped, as all assertions in kernels are unless one debugs."""
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=whether, debug=whether)


def mend() -> None:
    see_overflows(False)
    interpreter.InterpretedFunction.__call__ = _call_function
    interpreter._get_np_dtype = _numpy_type
    # A GPU's minimum and maximum drop a NaN; numpy's, which the interpreter takes, keep it.
    for name, function in (("create_minnumf", np.fmin), ("create_maxnumf", np.fmax)):
        setattr(
            interpreter.InterpreterBuilder,
            name,
            lambda self, lhs, rhs, function=function: self.binary_op(lhs, rhs, function),
        )


def _call_function(self, *arguments, **options):
    """Patches triton.language once for a module, not for every call of a function in a kernel: a launch patches what
    kernels see, and what the language's own functions see is never restored."""
    if self.fn.__module__ not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(self.fn.__module__)
    return self.rewrite()(*arguments, **options)


def _numpy_type(dtype, of=interpreter._get_np_dtype):
    """Triton's own makes its table anew at every call."""
    name = dtype.scalar.name
    if name not in _numpy_types:
        _numpy_types[name] = of(dtype.scalar)
    return _numpy_types[name]
