"""Fixtures of the whole suite: the backends under test."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

import mi_pruner
from mi_pruner._dispatch import BACKENDS

from .cuda_host import build as cuda_host
from .inputs import CUDA_ON_HOST, INTERPRETED, UNDER_TEST

_COMMON = {
    "deadline": None,  # the first call of a size pays for caches
    "suppress_health_check": [HealthCheck.function_scoped_fixture],  # `device` chooses the backend; it holds no state
}
settings.register_profile("ci", max_examples=30, derandomize=True, database=None, **_COMMON)
settings.register_profile("explore", max_examples=300, **_COMMON)  # HYPOTHESIS_PROFILE=explore pytest ...
settings.register_profile("interpreter", max_examples=4, derandomize=True, database=None, **_COMMON)
settings.register_profile("host", max_examples=12, derandomize=True, database=None, **_COMMON)  # a fiber a CUDA thread
_PROFILE = "interpreter" if INTERPRETED else "host" if CUDA_ON_HOST else "ci"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", _PROFILE))

if CUDA_ON_HOST:
    BACKENDS["cuda"] = cuda_host.backend(cuda_host.build(cuda_host.LIBRARY.parent, "-O2"))


def pytest_report_header():
    return f"mi_pruner backends under test: {', '.join(UNDER_TEST)} (MI_PRUNER_TEST_BACKENDS names others)"


if INTERPRETED:
    import numpy as np
    from triton.runtime import interpreter

    # A GPU's minimum and maximum drop a NaN; numpy's, which the interpreter takes, keep it.
    for name, function in (("create_minnumf", np.fmin), ("create_maxnumf", np.fmax)):
        setattr(
            interpreter.InterpreterBuilder,
            name,
            lambda self, lhs, rhs, function=function: self.binary_op(lhs, rhs, function),
        )


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
