"""Triton launches without a GPU: what an operator would launch, and the kernels compiled for a given architecture.

Operators run on meta tensors: real sizes, no memory. A stand-in for the driver answers which GPU is there, so that
Triton specialises and compiles each launch as it would on that GPU.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import triton
from mi_pruner.triton_kernels import launches, operators
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bench.speed import machine_code
from mi_pruner._schema import Signature

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass
class Launch:
    """One launch: the kernel's name, its grid, its constants and options, and what it was compiled to (or None)."""

    kernel: str
    grid: tuple[int, ...]
    options: dict
    compiled: triton.compiler.CompiledKernel | None

    @property
    def threads(self) -> int:
        return 32 * self.options.get("num_warps", 4)

    def resources(self) -> dict[str, int]:
        """REG, STACK, LOCAL a thread and shared memory a program, in bytes."""
        found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", self._dump("-res-usage"))}
        return found | {"SHARED": self.compiled.metadata.shared}

    def instructions(self) -> list[machine_code.Instruction]:
        return machine_code.instructions(self._dump("-sass"), self.kernel)

    def _dump(self, option: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.compiled.asm["cubin"])
            file.flush()
            return subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # keys Triton's cache of kernels

    def get_current_stream(self, device):
        return 0


def call(operator: str, *arguments, **options):
    """One of the backend's operators, as the dispatcher calls it: with every option."""
    return getattr(operators, operator)(*arguments, **{**Signature(operator).defaults, **options})


@contextlib.contextmanager
def recorded(architecture: int, compiles: bool | Collection[str]):
    """The list of launches made inside, on a GPU of `architecture` (90: compute capability 9.0); none of them runs.

    compiles: all kernels, none, or those of these names: the others are not in the list.
    """
    made: list[Launch] = []
    run, active, asked = JITFunction.run, driver._active, launches._architecture

    def record(kernel, *arguments, grid, warmup, **options):
        name = kernel.__name__.rsplit(".", 1)[-1]
        if isinstance(compiles, bool) or name in compiles:
            compiled = run(kernel, *arguments, grid=grid, warmup=True, **options) if compiles else None
            made.append(Launch(name, grid, options, compiled))

    JITFunction.run, driver._active, launches._architecture = record, _Driver(architecture), lambda device: architecture
    try:
        yield made
    finally:
        JITFunction.run, driver._active, launches._architecture = run, active, asked
