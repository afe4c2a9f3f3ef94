"""What nvcc made of csrc/cuda, read from the installed library: architectures, registers, stack, instructions."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mi_pruner import _native

ARCHITECTURES = {"sm_80", "sm_90a", "sm_100"}
# Registers a thread: what the launch bounds allow. 255 is where the hardware ends; greedy blocks are of 1024 threads.
BUDGETS = {
    "similarity_kernel": 128,  # two blocks of 256 a multiprocessor
    "normaliser_kernel": 80,  # three blocks of 256 a multiprocessor
    "score_kernel": 64,
    "greedy_kernel": 64,
    "top_k_kernel": 64,
    "gather_kernel": 64,
    "rows_kernel": 255,  # one block a multiprocessor
}


def cuobjdump():
    """The toolkit's, or the one that Triton ships."""
    spec = importlib.util.find_spec("triton")
    shipped = [] if spec is None else [Path(spec.submodule_search_locations[0]) / "backends/nvidia/bin"]
    places = [folder / "cuobjdump" for folder in (Path("/usr/local/cuda/bin"), *shipped)]
    found = shutil.which("cuobjdump") or next((path for path in places if path.exists()), None)
    if found is None:
        pytest.skip("no cuobjdump, from a CUDA toolkit or from Triton")
    return found


def dump(*options):
    if _native.cuda_missing() not in (None, "this PyTorch is built without CUDA"):
        pytest.skip(_native.cuda_missing())
    command = [cuobjdump(), *options, _native.library_path()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str  # mangled
    registers: int
    stack: int
    local: int
    shared: int


@pytest.fixture(scope="module")
def kernels():
    found, architecture, name = [], "", ""
    for line in dump("-res-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Kernel(architecture, name, registers, stack, local, shared))
    if {k.architecture for k in found} != ARCHITECTURES:
        pytest.skip(f"built for {sorted({k.architecture for k in found})} (CUDAARCHS)")
    return found


def test_every_kernel_is_there_for_every_architecture(kernels):
    for name in BUDGETS:
        # Of the dtypes, and of two shapes of tile, the smaller one also for two blocks; of the modes of redundancy.
        count = {"similarity_kernel": 9, "rows_kernel": 3, "greedy_kernel": 3}.get(name, 1)
        for architecture in ARCHITECTURES:
            found = [k for k in kernels if k.architecture == architecture and name in k.name]
            assert len(found) == count, (name, architecture)


@pytest.mark.usefixtures("kernels")
def test_newer_architectures_are_served_by_ptx():
    assert "sm_100.ptx" in dump("-lptx")


def test_no_kernel_spills_or_needs_more_than_its_budget(kernels):
    for kernel in kernels:
        (budget,) = (registers for name, registers in BUDGETS.items() if name in kernel.name)
        stack = 0
        if "rows_kernel" in kernel.name or "ELi1EEE" in kernel.name:
            # One block computes both halves of a sum: the first waits in local memory.
            stack = 64 if "Li64E" in kernel.name else 128
        if "Li128E" in kernel.name:
            stack += 48 if kernel.architecture == "sm_100" else 16  # outside of the loop over the stages
        assert kernel.stack <= stack, kernel
        assert kernel.local == 0, kernel
        assert kernel.registers <= budget, kernel
        assert kernel.shared <= 1024, f"{kernel}: shared memory is dynamic, but for what the driver reserves"


@pytest.mark.usefixtures("kernels")
def test_the_instructions_that_were_meant_are_used():
    code = dump("-sass", "-arch", "sm_90a")
    copies = "LDGSTS.E.BYPASS.LTC256B.128"
    for instruction in ("HMMA.16816.F32.BF16", "HMMA.16816.F32 ", "LDSM.16.M88.4", copies, "REDUX.MAX"):
        assert instruction in code, instruction
    assert "DADD" not in code  # nothing is computed in float64 by accident
    assert "DMUL" not in code


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_clusters_are_used_where_there_are_any(architecture):
    """Their barrier, stores to another block's shared memory, waits for these."""
    code = dump("-sass", "-arch", architecture)
    for instruction in ("UCGABAR_ARV", "UCGABAR_WAIT", "STAS.128", "SYNCS.PHASECHK"):
        assert (instruction in code) == (architecture != "sm_80"), instruction
