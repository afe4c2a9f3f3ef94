"""Which backend runs an operator: a choice made from the device alone, which `backend()` overrides.

Each public operator has one implementation for every device, registered here: it validates (`_checks`), brings the
arguments into one form, and calls the chosen backend outside autograd. Where that is the compiled one, it leaves the
calls that follow to the library (`_native`), which has the same form and hands back what it can't take.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import types
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks, _native, _schema, reference

_FEATURES = ("visual", "text")
_FLOATS = ("scores", "visual_prior", "text_prior")


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators: where it runs, and why it can't be used here (None: it can)."""

    name: str
    device: str  # "any", "cpu" or "cuda"
    what: str
    missing: str | None  # known when the package is imported
    operators: types.ModuleType | torch._ops._OpNamespace | _TritonOperators | None
    # The same of the device of an index, or (None) of any, asked of the driver on first use.
    probe: Callable[[int | None], str | None] = lambda index: None
    lacks: frozenset[str] = frozenset()  # operators that it does not implement

    def unavailable(self, index: int | None = None) -> str | None:
        """Why it can't be used in this installation, on the device of this index if any; None where it can."""
        return self.missing or self.probe(index)

    def why_not(self, device_type: str, index: int | None = None) -> str | None:
        """Why it can't serve tensors of this device; None where it can."""
        if self.missing is None and self.device not in ("any", device_type):
            return f"runs on {self.device} tensors only"
        return self.unavailable(index)


_NATIVE_MISSING = _native.load()
_LIBRARY = _schema.define("mi_pruner")
_FOR_THE_LIBRARY = _schema.define("mi_pruner_python", _schema.with_bytes)
for _backend in ("mi_pruner_cpu", "mi_pruner_cuda"):
    _schema.define(_backend)  # implemented by the compiled library


class _TritonOperators:
    """The module `triton_kernels.operators`, imported, and Triton with it, when an operator is first called."""

    def __getattr__(self, name: str) -> Callable:
        return getattr(importlib.import_module(".triton_kernels.operators", __package__), name)


def _load_triton() -> tuple[str | None, str, _TritonOperators | None]:
    """Why the Triton kernels can't be used (None: they can), the device of their tensors, and their operators."""
    # As Triton reads it: kernels run on CPU tensors, slowly.
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    device = "cpu" if interpreted else "cuda"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'mi_pruner[triton]')", device, None
    if importlib.util.find_spec(".triton_kernels", __package__) is None:
        return "mi_pruner runs from a checkout that is not installed (pip install -e .)", device, None
    if not interpreted and torch.version.cuda is None:
        return "this PyTorch is built without CUDA", device, None
    return None, device, _TritonOperators()


_TRITON_MISSING, _TRITON_DEVICE, _TRITON_OPERATORS = _load_triton()


def _triton_unusable(index: int | None) -> str | None:
    """Why the Triton kernels can't run (None: they can). The driver is asked where no tensor of a GPU proves it."""
    if index is not None or _TRITON_DEVICE == "cpu" or torch.cuda.is_available():
        return None
    return "no GPU, or no NVIDIA driver"


BACKENDS = {
    backend.name: backend
    for backend in (  # in order of preference
        Backend(
            "cuda",
            "cuda",
            "compiled CUDA kernels",
            _native.cuda_missing(),
            torch.ops.mi_pruner_cuda,
            _native.cuda_unusable,
            frozenset({"histogram_mi_scores"}),
        ),
        Backend("cpu", "cpu", "compiled, fused, multi-threaded", _NATIVE_MISSING, torch.ops.mi_pruner_cpu),
        Backend("triton", _TRITON_DEVICE, "Triton kernels", _TRITON_MISSING, _TRITON_OPERATORS, _triton_unusable),
        Backend("reference", "any", "plain PyTorch", None, reference),
    )
}

_fallback_is_known: list[str] = []  # the backend that the warning named
# One for all imports of the package: see `_schema.define`.
_override: ContextVar[str] = vars(torch.ops.mi_pruner).setdefault(
    "_backend", ContextVar("mi_pruner_backend", default="auto")
)


class _Asked(str):
    """A backend's name. While it lives, in any context, the library leaves to Python what is not that backend's."""

    held: object


def _ask(name: str) -> _Asked:
    asked = _Asked(name)
    asked.held = _native.close_direct([device for device in _native.DIRECT if name not in ("auto", device)])
    return asked


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the operators called inside on one backend.

    Args:
        name: "auto" (the fastest available for the tensors' device), "reference", "cpu", "triton" or "cuda".

    Raises:
        ValueError: for another name.
        RuntimeError: if that backend can't be used in this installation; the message says why.

    The choice holds for the current thread or async task, also for direct calls of `torch.ops.mi_pruner.*`.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"name: expected 'auto' or one of {sorted(BACKENDS)}, got {name!r}")
        why = BACKENDS[name].unavailable()
        if why is not None:
            raise RuntimeError(f"backend {name!r} is not available: {why}")
    token = _override.set(_ask(name))
    try:
        yield
    finally:
        _override.reset(token)


def choose(device_type: str, index: int | None = None, operator: str = "prune") -> Backend:
    """The backend of an operator for tensors of this device: its type ("cpu", "cuda", ...) and, of several GPUs, which.

    Raises:
        RuntimeError: if `backend()` asked for one that does not run on such tensors, or lacks the operator.
    """
    asked = _override.get()
    if asked == "auto":
        return _automatic(device_type, index, operator)
    why = BACKENDS[asked].why_not(device_type, index)
    if why is not None:
        raise RuntimeError(f"backend {asked!r} can't take {device_type} tensors: {why}")
    if operator in BACKENDS[asked].lacks:
        raise RuntimeError(f"backend {asked!r} has no {operator}: 'auto' chooses one that has")
    return BACKENDS[asked]


def _automatic(device_type: str, index: int | None, operator: str) -> Backend:
    """The first backend that can serve such tensors."""
    having = [b for b in BACKENDS.values() if operator not in b.lacks]
    chosen = next(b for b in having if b.why_not(device_type, index) is None)
    if device_type == "cuda" and chosen is not having[0] and having[0].name == "cuda":
        _warn_of_fallback(having[0], chosen.name, index)
    return chosen


def _warn_of_fallback(cuda: Backend, name: str, index: int | None) -> None:
    """Says once in a process that CUDA kernels are there, but that the driver or the GPU can't run them."""
    if cuda.missing is None and not _fallback_is_known:
        _fallback_is_known.append(name)
        why = cuda.unavailable(index)
        warnings.warn(
            f"mi_pruner: the compiled CUDA kernels can't run here ({why}); {name!r} runs instead",
            RuntimeWarning,
            stacklevel=2,
        )


def show_backends() -> None:
    """Prints which backends can be used here, for which tensors, and why the others can't."""
    print(f"mi_pruner on torch {torch.__version__}; the first available backend for a tensor's device runs:")
    for b in BACKENDS.values():
        why = b.unavailable()
        state = "available" if why is None else f"not available: {why}"
        what = ", no ".join([b.what, *sorted(b.lacks)])
        print(f"  {b.name:<10} {b.device + ' tensors':<13} {what:<46} {state}")


def _canonical(name: str, value: object, dtype: torch.dtype) -> object:
    """Features with a contiguous last dimension, contiguous scores and priors in `dtype`, contiguous int64 budget."""
    if not isinstance(value, Tensor):
        return value
    if name in _FEATURES:
        return value if value.stride(-1) == 1 else value.contiguous()
    to = dtype if name in _FLOATS else torch.int64 if name == "budget" else value.dtype
    return value.to(to).contiguous()


def _implementation(name: str) -> Callable:
    signature = _schema.Signature(name)

    def run(*arguments, **options):
        call = signature.bind(*arguments, **options)
        device, dtype = call.visual.device, _checks.accumulation_dtype(call.visual.dtype)
        chosen = choose(device.type, device.index, name)
        operators = chosen.operators
        # The compiled operators have the same schemas: what they fill in themselves costs less than passing it on.
        if not isinstance(operators, torch._ops._OpNamespace):
            options = {key: getattr(call, key) for key in signature.defaults}
        elif chosen.name == device.type and chosen is _automatic(device.type, device.index, name):
            _native.open_direct(device.type, device.index)
        with torch.no_grad():
            return getattr(operators, name)(
                *(_canonical(key, value, dtype) for key, value in zip(signature.positional, arguments, strict=True)),
                **{key: _canonical(key, value, dtype) for key, value in options.items()},
            )

    return run


def _for_the_library(name: str) -> Callable:
    """The implementation, as the library calls it: an error is raised by the library, in place of empty results."""
    run = _implementation(name)
    outputs = len(torch._C.parse_schema(name + _schema.SCHEMAS[name]).returns)
    empty = torch.empty(0, device="cpu")
    nothing = empty if outputs == 1 else (empty,) * outputs

    def run_or_leave_error(*arguments, **options):
        called_by = None
        try:
            try:
                called_by = _native.begin()
                texts = {key: bytes(value).decode() for key, value in options.items() if isinstance(value, list)}
                return run(*arguments, **options | texts)
            except BaseException as error:  # noqa: BLE001  it is raised all the same
                _native.raise_in_library(called_by, error)
                return nothing
        except BaseException as error:  # noqa: BLE001  of a signal's handler, meanwhile
            _native.raise_in_library(called_by, error)
            return nothing

    return run_or_leave_error


def register() -> None:
    """Registers fake and real implementations of the public operators; none of them records autograd."""
    for name in _schema.SCHEMAS:
        for library, implementation in ((_LIBRARY, _implementation), (_FOR_THE_LIBRARY, _for_the_library)):
            library.impl(name, implementation(name), "CompositeExplicitAutograd")
            library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"mi_pruner::{name}", _schema.fake(name), lib=_LIBRARY)
