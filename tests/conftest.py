"""Fixtures of the whole suite: the backends under test."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from .cuda_host import build as cuda_host

_COMMON = {
    "deadline": None,  # the first call of a size pays for caches
    "suppress_health_check": [HealthCheck.function_scoped_fixture],  # `device` chooses the backend; it holds no state
}
settings.register_profile("ci", max_examples=30, derandomize=True, database=None, **_COMMON)
settings.register_profile("explore", max_examples=300, **_COMMON)  # HYPOTHESIS_PROFILE=explore pytest ...
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# With TRITON_INTERPRET=1 the Triton kernels run on CPU tensors, and are all that is tested.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# With MI_PRUNER_CUDA_HOST=1 the CUDA kernels, compiled as C++ and a fiber a thread, run on CPU tensors instead.
CUDA_ON_HOST = os.environ.get("MI_PRUNER_CUDA_HOST") == "1"
GPU = torch.cuda.is_available()
if CUDA_ON_HOST:
    library = cuda_host.build(cuda_host.ROOT / "build/cuda_host", "-O2")
    BACKENDS["cuda"] = dataclasses.replace(
        BACKENDS["cuda"], device="cpu", missing=None, operators=cuda_host.operators(library), probe=lambda: None
    )
    UNDER_TEST: tuple[str, ...] = ("cuda",)
elif INTERPRETED:
    UNDER_TEST = ("triton",)
else:
    UNDER_TEST = ("reference", "cpu", "cuda", "triton") if GPU else ("reference", "cpu")


def pytest_report_header():
    return f"mi_pruner backends under test: {', '.join(UNDER_TEST)}{'' if GPU else ' (no GPU: none that needs it)'}"


@pytest.fixture(params=UNDER_TEST)
def backend(request):
    """The name of a backend, which runs every operator called in the test."""
    missing = BACKENDS[request.param].unavailable()
    if missing is not None:
        pytest.skip(f"backend {request.param!r}: {missing}")
    with mi_pruner.backend(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    """Where the tensors of the backend under test live."""
    return "cuda" if BACKENDS[backend].device == "cuda" else "cpu"
