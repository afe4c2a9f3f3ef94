"""The CUDA kernels' host twin under the thread sanitizer, and races planted to test the harness itself.

How it works: tests/cuda_host. With MI_PRUNER_CUDA_HOST=1, as all that is about the twin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from .cuda_host import build as cuda_host
from .test_cuda_host import on_the_host
from .test_sanitizers import runtime

pytestmark = [on_the_host, pytest.mark.slow]


def run_for_races(*command, **environment):
    done = subprocess.run(
        command,
        # What the harness has its library do (copies, allocations) is no kernel's. And at the end nobody is waited for.
        env={**os.environ, "TSAN_OPTIONS": "ignore_interceptors_accesses=1 atexit_sleep_ms=0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("libtsan cannot use addresses as random as here: vm.mmap_rnd_bits")
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def races():
    runtime("libtsan.so")
    return cuda_host.build_faults(cuda_host.RACES)


@pytest.mark.parametrize("name", ["neighbours", "waits-for-a-block", "cluster"])
def test_a_kernel_without_fault_has_no_race(name, races):
    assert run_for_races(races, name) == (0, "right\n")


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("missing-barrier", "neighbours"),
        ("missing-wait", "send_to_the_other"),
        ("missing-release", "waits_for_a_block"),
        ("two-writers", "two_writers"),
        ("collective-for-a-barrier", "collective_for_a_barrier"),
        ("copy-over-what-others-read", "copy_over_what_others_read"),
        ("all-blocks-write", "all_blocks_write"),
    ],
)
def test_a_planted_race_is_reported(name, kernel, races):
    code, output = run_for_races(races, name)
    assert code != 0
    assert "WARNING: ThreadSanitizer: data race" in output
    assert f" {kernel}" in output


def test_no_kernel_has_a_race():
    tsan = runtime("libtsan.so")
    library = cuda_host.build(cuda_host.RACES)
    command = (sys.executable, cuda_host.HERE / "races_workload.py", library)
    environment = {"PYTHONPATH": str(cuda_host.ROOT), "LD_PRELOAD": f"{tsan} {runtime('libstdc++.so')}"}
    with ThreadPoolExecutor() as threads:
        for _, report in threads.map(lambda part: run_for_races(*command, part, **environment), ("gram", "rows")):
            assert "ThreadSanitizer" not in report, report[:6000]
            assert "all was run" in report.splitlines(), report[-6000:]
