"""How many instructions the CPU kernels execute, counted by valgrind: a figure of their speed without any noise.

A standalone program (instruction_driver.cpp) scores and selects once, on one thread, by the AVX2 kernels: valgrind 3.19
knows no AVX-512. The count depends on the compiler, and a little on the C library's choice for this processor.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import record

FILE = "instructions.csv"
ISA = "avx2"
BUILD = record.ROOT / "build" / "drivers"
MEASURED = "measured"  # the function of the driver that is counted

# name -> TOKENS KEEP WIDTH TEXT DTYPE MARGINAL REDUNDANCY. Narrow features: valgrind is some 50 times slower.
WORKLOADS = {
    "llava-1.5/64, quarter width": "576 64 1024 32 float32 joint mean",
    "llava-1.5/64, quarter, bfloat16": "576 64 1024 32 bfloat16 joint mean",
    "llava-1.5/64, quarter, max": "576 64 1024 32 float32 joint max",
    "llava-1.5/64, quarter, top-k": "576 64 1024 32 float32 prior none",
    "llava-1.5/64, quarter, long text": "576 64 1024 256 float32 joint mean",
    "llava-next/320, 1/16 width": "2880 320 256 32 float32 joint mean",
}


@dataclass(frozen=True)
class Count:
    """One workload's instructions."""

    date: str
    commit: str
    machine: str
    compiler: str
    valgrind: str
    isa: str
    workload: str
    arguments: str
    instructions: int
    command: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench instructions`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Counts every workload, prints and keeps the counts; 2 if a tool is missing."""
    try:
        counts = count_all(WORKLOADS)
    except RuntimeError as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    record.append(options.out / FILE, Count, counts)
    for count in counts:
        print(f"{count.workload:36}{count.instructions:16,}")
    print(f"{counts[0].compiler}, {counts[0].valgrind}, {ISA}; appended to {options.out / FILE}")
    return 0


def count_all(workloads: dict[str, str]) -> list[Count]:
    """Builds the driver, then counts.

    Raises:
        RuntimeError: if valgrind, CMake or Ninja is missing, the build fails, or the processor has no AVX2.
    """
    valgrind = _tool("valgrind", "install it (apt install valgrind)")
    driver, compiler = build("instruction_driver")
    run = record.this_run("cpu")
    shared = {key: value for key, value in asdict(run).items() if key in ("date", "commit", "machine", "command")}
    version = checked([valgrind, "--version"]).stdout.strip()
    return [
        Count(
            **shared,
            compiler=compiler,
            valgrind=version,
            isa=ISA,
            workload=name,
            arguments=arguments,
            instructions=_count(valgrind, driver, arguments.split()),
        )
        for name, arguments in workloads.items()
    ]


def build(driver: str) -> tuple[Path, str]:
    """Compiles a driver with the flags of the library; its path, and the compiler's name and version."""
    cmake, ninja = _tool("cmake", "pip install cmake"), _tool("ninja", "pip install ninja")
    configure = [cmake, "-S", str(record.ROOT), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    checked([*configure, "-DMI_PRUNER_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"])
    checked([cmake, "--build", str(BUILD), "--target", driver])
    cache = (BUILD / "CMakeCache.txt").read_text()
    path = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    if path is None:
        raise RuntimeError(f"no compiler named in {BUILD / 'CMakeCache.txt'}")
    compiler = checked([path[1], "--version"]).stdout.splitlines()[0]
    return BUILD / driver, compiler


def _count(valgrind: str, driver: Path, arguments: list[str]) -> int:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        raise RuntimeError("expected a processor with AVX2: valgrind runs the instructions that the processor has")
    with tempfile.TemporaryDirectory() as folder:
        tool = ["--tool=callgrind", f"--toggle-collect={MEASURED}", f"--callgrind-out-file={folder}/out"]
        done = checked([valgrind, *tool, str(driver), *arguments], MI_PRUNER_ISA=ISA)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or int(found[1]) == 0:
        raise RuntimeError(f"expected a count of instructions, got: {done.stderr}")
    return int(found[1])


def _tool(name: str, remedy: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]))
    if path is None:
        raise RuntimeError(f"expected {name} on PATH, found none: {remedy}")
    return path


def checked(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """What the command did.

    Raises:
        RuntimeError: with all that it said, if it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done
