"""The CUDA kernels' host twin under the address sanitizer, and faults planted to test the harness itself.

How it works: tests/cuda_host. With MI_PRUNER_CUDA_HOST=1, as all that is about the twin.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from .cuda_host import build as cuda_host
from .test_cuda_host import on_the_host
from .test_sanitizers import run_sanitized, runtime

pytestmark = [on_the_host, pytest.mark.slow]


@pytest.fixture(scope="module")
def faults():
    runtime("libasan.so")
    return cuda_host.build_faults(cuda_host.ADDRESSES)


def run_fault(program, name, seed):
    environment = {**os.environ, "MI_PRUNER_HOST_SEED": str(seed)}
    done = subprocess.run([program, name], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["neighbours", "waits-for-a-block", "cluster"])
def test_a_kernel_without_fault_is_right_in_any_order(name, faults):
    for seed in range(8):
        assert run_fault(faults, name, seed) == (0, "right\n")


@pytest.mark.parametrize("name", ["missing-barrier", "missing-wait"])
def test_a_missing_barrier_gives_a_wrong_result_in_some_order(name, faults):
    assert (1, "wrong\n") in [run_fault(faults, name, seed) for seed in range(8)]


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("out-of-bounds", "heap-buffer-overflow"),
        ("divergent", "divergent barrier: some threads wait at"),
        ("divergent-instances", "divergent barrier: some threads wait at"),
        ("divergent-warp", "divergent barrier: a thread"),
        ("ends-early", "divergent barrier: a thread"),
        ("spins", "all threads spin for ever"),
        ("out-of-bounds-of-another", "heap-buffer-overflow"),
        ("too-early", "shared memory of a block that may not have started"),
        ("ended-block", "shared memory of a block that has ended"),
        ("divergent-cluster", "divergent barrier: some threads wait at"),
        ("ends-early-in-a-cluster", "divergent barrier: a thread"),
        ("lost-parcel", "all threads spin for ever"),
    ],
)
def test_a_planted_fault_is_reported(name, report, faults):
    code, output = run_fault(faults, name, 1)
    assert code != 0
    assert report in output


def test_no_kernel_touches_foreign_memory_or_undefined_behaviour():
    runtime("libasan.so")
    library = cuda_host.build(cuda_host.ADDRESSES)
    run_sanitized(cuda_host.HERE / "workload.py", library)
