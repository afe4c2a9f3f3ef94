"""The machine code of the CUDA kernels: instructions, and the cycles that each holds back the next of its warp.

    python -m tests.machine_code [LIBRARY]    # the loops that the time goes to, a line each

A stall count is what the compiler wrote into the instruction (bits 41 to 44 of its upper word, Volta to Hopper): the
least that a warp takes if it never waits for memory, a barrier or another warp. Their sum is a floor for one warp, the
number of instructions times the warps of a scheduler one for many.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mi_pruner import _native

ARCHITECTURE = "sm_90a"
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);\s*/\* 0x[0-9a-f]{16} \*/")
_UPPER = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_BRANCH = re.compile(r"(@!?\w+\s+)?BRA (?:!?\w+, )?(0x[0-9a-f]+)")


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    stall: int


@dataclass(frozen=True)
class Loop:
    """One that the time goes to: of the kernel whose mangled name contains `kernel`, the one with the most `mark`."""

    name: str
    kernel: str
    mark: str
    most_instructions: int
    most_stalls: int


# The way that every turn takes; of a stage, that of warps with columns. Bounds: a little above what nvcc 13.0 makes.
LOOPS = (
    Loop("greedy step, N <= 1,024", "greedy_kernelILNS0_10RedundancyE0ELb1E", "REDUX", 90, 235),
    Loop("greedy step, longer", "greedy_kernelILNS0_10RedundancyE0ELb0E", "REDUX", 110, 300),
    Loop("stage, groups, a block", "similarity_kernelINS0_5BrainENS0_9TileShapeILi128ELi1E", "HGMMA", 180, 390),
    Loop("stage, groups, a cluster", "similarity_kernelINS0_5BrainENS0_9TileShapeILi128ELi8E", "HGMMA", 190, 475),
    Loop("stage, warps", "similarity_kernelINS0_5BrainENS0_9TileShapeILi64ELi1E", "HMMA", 165, 490),
)


def cuobjdump() -> str | None:
    """The toolkit's, or the one that Triton ships."""
    spec = importlib.util.find_spec("triton")
    shipped = [] if spec is None else [Path(spec.submodule_search_locations[0]) / "backends/nvidia/bin"]
    places = [folder / "cuobjdump" for folder in (Path("/usr/local/cuda/bin"), *shipped)]
    return shutil.which("cuobjdump") or next((str(path) for path in places if path.exists()), None)


@cache
def dump(library: str, *options: str) -> str:
    """What cuobjdump prints of it: half a minute for all instructions, so once.

    Raises:
        subprocess.CalledProcessError: if the library has none for the GPU that the options name.
    """
    command = [cuobjdump(), *options, library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def sass(library: str) -> str:
    return dump(library, "-sass", "-arch", ARCHITECTURE)


def instructions(code: str, kernel: str) -> list[Instruction]:
    """Those of the one kernel whose mangled name contains `kernel`, in order."""
    found, inside, last = [], False, None
    for line in code.splitlines():
        if "Function :" in line:
            inside = kernel in line
        elif inside and (match := _LINE.match(line)):
            last = (int(match[1], 16), match[2].strip())
        elif inside and last is not None and (match := _UPPER.match(line)):
            found.append(Instruction(*last, stall=int(match[1], 16) >> 41 & 15))
            last = None
    return found


def turn(code: list[Instruction], mark: str) -> list[Instruction]:
    """One turn of a loop that contains no other: the shortest with the most instructions that contain `mark`; by the
    cheapest way that meets as many of them as any does."""
    place = {x.address: i for i, x in enumerate(code)}
    loops = []
    for end, x in enumerate(code):
        branch = _BRANCH.match(x.text)
        start = place.get(int(branch[2], 16), end + 1) if branch else end + 1
        marked = sum(mark in y.text for y in code[start : end + 1])
        if marked and not any(start <= inner and outer <= end for _, _, inner, outer in loops):
            loops.append((marked, start - end, start, end))
    start, end = max(loops)[2:]
    best: dict[int, tuple[int, list[int]]] = {start: (0, [])}  # instruction -> cost of the way to it, the way
    for i in range(start, end + 1):
        if i not in best:
            continue
        cost, way = best[i]
        cost += code[i].stall - 10_000 * (mark in code[i].text)
        branch = _BRANCH.match(code[i].text)
        following = [i + 1] if branch is None or branch[1] else []
        following += [place.get(int(branch[2], 16), -1)] if branch else []
        for j in following:
            if i < j <= end and (j not in best or cost < best[j][0]):
                best[j] = (cost, [*way, i])
    return [code[i] for i in [*best[end][1], end]]


def main() -> int:
    library = sys.argv[1] if len(sys.argv) > 1 else str(_native.library_path())
    if cuobjdump() is None:
        print("machine_code: expected cuobjdump, of a CUDA toolkit or of Triton; found none", file=sys.stderr)
        return 2
    try:
        found = {loop: instructions(sass(library), loop.kernel) for loop in LOOPS}
    except subprocess.CalledProcessError:
        found = {}
    if not found or not all(found.values()):
        print(f"machine_code: {library}: expected the CUDA kernels, built for {ARCHITECTURE}", file=sys.stderr)
        return 2
    print(f"{'':32}instructions   stall cycles")
    for loop, code in found.items():
        way = turn(code, loop.mark)
        print(f"{loop.name:32}{len(way):12}{sum(x.stall for x in way):15}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
