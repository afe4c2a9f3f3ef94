"""The compiled CPU backend under the address and undefined-behaviour sanitizers, with each of its instruction sets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
WORKLOAD = Path(__file__).with_name("sanitizer_workload.py")
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


def runtime(name):
    """The path of a library of the C++ compiler's runtime, or a skip."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no g++ here")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip(f"{compiler} comes without {name}")
    return found.stdout.strip()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The library, built with -DMI_PRUNER_SANITIZE=ON."""
    runtime("libasan.so")
    tools = [shutil.which(name, path=PATH) for name in ("cmake", "ninja")]
    if None in tools:
        pytest.skip("needs cmake and ninja")
    folder = tmp_path_factory.mktemp("sanitized")
    cmake, ninja = tools
    configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    options = ["-DMI_PRUNER_SANITIZE=ON", "-DMI_PRUNER_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in ([*configure, *options], [cmake, "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "_C.abi3.so"


def run_sanitized(*program, **environment):
    """Runs a Python program whose last line is "all was run", on a library built with both sanitizers."""
    environment |= {
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",  # exceptions pass through both
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, *program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    report = done.stdout + done.stderr
    assert "ERROR: AddressSanitizer" not in report, report[-6000:]
    assert "runtime error" not in report, report[-6000:]
    assert done.returncode == 0, report[-6000:]
    assert done.stdout.splitlines()[-1:] == ["all was run"], report[-6000:]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_operator_touches_foreign_memory_or_undefined_behaviour(sanitized, isa):
    if isa == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip(f"the processor has no {isa}: the baseline would run again")
    run_sanitized(WORKLOAD, MI_PRUNER_ISA=isa, MI_PRUNER_LIBRARY=str(sanitized))
