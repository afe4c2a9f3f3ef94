"""Fixtures of the whole suite: the backends under test."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from mi_pruner._dispatch import BACKENDS

from .cuda_host import build as cuda_host
from .inputs import CUDA_ON_HOST, INTERPRETED, UNDER_TEST, running

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
    BACKENDS["cuda"] = cuda_host.backend(cuda_host.PLAIN.library)

if INTERPRETED:
    from . import interpreter

    interpreter.mend()


def pytest_report_header():
    return f"mi_pruner backends under test: {', '.join(UNDER_TEST)} (MI_PRUNER_TEST_BACKENDS names others)"


@pytest.fixture(params=UNDER_TEST)
def backend(request):
    """The name of a backend, which runs every operator called in the test."""
    with running(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    """Where the tensors of the backend under test live."""
    return "cuda" if BACKENDS[backend].device == "cuda" else "cpu"


@pytest.fixture
def _overflows_seen():
    """In the interpreter, sums and products of integers are looked at."""
    if not INTERPRETED:
        yield
        return
    interpreter.see_overflows(True)
    yield
    interpreter.see_overflows(False)


@pytest.fixture
def _poisoned():
    """Fresh memory holds NaN (the largest number, for integers) until it is written."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def one_thread():
    """Operations on tiny models are so small that a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
