"""The compiled CPU backend with the narrower instruction sets that the processor at hand would not choose."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mi_pruner import _native
from mi_pruner._dispatch import BACKENDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
# What holds scores, picks and bits to account at odd sizes, in seconds.
CHOSEN = "cpu and (not_finite or powers_of_two or oracle or packed and 577 or 123 or equal_rows_get_equal_scores)"


def pruned_with(isa: str) -> subprocess.CompletedProcess[str]:
    """Prunes one sample on the calling thread and eight on two, in a process of its own."""
    program = """
import torch, mi_pruner
torch.set_num_threads(2)
for samples in (1, 8):
    visual = torch.randn(samples, 200, 64)
    try:
        with mi_pruner.backend("cpu"):
            print(mi_pruner.prune(visual, visual, 5)[1].shape)
    except RuntimeError as error:
        print(error)
"""
    environment = {**os.environ, "MI_PRUNER_ISA": isa, "MI_PRUNER_LIBRARY": str(_native.library_path())}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def need_cpu_backend():
    missing = BACKENDS["cpu"].missing
    if missing is not None:
        pytest.skip(f"backend 'cpu': {missing}")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set only")
def test_an_unknown_instruction_set_is_named_also_from_a_thread_of_the_work():
    need_cpu_backend()
    done = pruned_with("sse9")
    message = "MI_PRUNER_ISA: expected baseline, avx2 or avx512, got 'sse9'"
    assert (done.returncode, done.stdout.splitlines()) == (0, [message] * 2), done.stderr


def test_an_empty_choice_of_instruction_set_is_none():
    need_cpu_backend()
    done = pruned_with("")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"torch.Size([{samples}, 5])" for samples in (1, 8)]


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_a_narrower_instruction_set_passes_the_tests_of_exactness(isa):
    need_cpu_backend()
    tests = [f"tests/test_{name}.py" for name in ("backends", "invariances", "properties", "histogram")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib", "-k", CHOSEN, *tests],
        cwd=ROOT,
        env={**os.environ, "MI_PRUNER_ISA": isa, "MI_PRUNER_LIBRARY": str(_native.library_path())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_thread_of_a_small_stack_is_enough(dtype):
    """Of 128 KB, as musl gives: no kernel keeps its sums on the stack."""
    need_cpu_backend()
    program = f"""
import threading, torch, mi_pruner
torch.set_num_threads(1)
visual = torch.randn(1, 200, 256, dtype=torch.{dtype})
threading.stack_size(128 << 10)
thread = threading.Thread(target=lambda: print(mi_pruner.prune(visual, visual, 20)[1].shape))
thread.start()
thread.join()
"""
    environment = {**os.environ, "MI_PRUNER_LIBRARY": str(_native.library_path())}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "torch.Size([1, 20])\n"), done.stderr
