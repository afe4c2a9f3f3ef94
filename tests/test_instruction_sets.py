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


def pruned_with(isa: str, samples: int) -> subprocess.CompletedProcess[str]:
    program = f"""
import torch, mi_pruner
torch.set_num_threads(2)
visual = torch.randn({samples}, 200, 64)
with mi_pruner.backend("cpu"):
    print(mi_pruner.prune(visual, visual, 5)[1].shape)
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
@pytest.mark.parametrize("samples", [1, 8])
def test_an_unknown_instruction_set_is_named_also_from_a_thread_of_the_work(samples):
    need_cpu_backend()
    done = pruned_with("sse9", samples)
    assert done.returncode == 1
    message = "RuntimeError: MI_PRUNER_ISA: expected baseline, avx2 or avx512, got 'sse9'"
    assert message in done.stderr.splitlines()


def test_an_empty_choice_of_instruction_set_is_none():
    need_cpu_backend()
    done = pruned_with("", 1)
    assert done.returncode == 0, done.stderr


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
