"""The compiled CPU backend with the narrower instruction sets that the processor at hand would not choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mi_pruner import _native
from mi_pruner._dispatch import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
# What holds scores, picks and bits to account at odd sizes, in seconds.
CHOSEN = "cpu and (not_finite or powers_of_two or oracle or packed and 577 or 123 or equal_rows_get_equal_scores)"


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_a_narrower_instruction_set_passes_the_tests_of_exactness(isa):
    missing = BACKENDS["cpu"].missing
    if missing is not None:
        pytest.skip(f"backend 'cpu': {missing}")
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
