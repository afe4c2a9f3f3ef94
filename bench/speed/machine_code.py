"""What a turn of each loop that the time goes to costs, read from the machine code of the CUDA kernels.

A stall count is what the compiler wrote into an instruction (bits 41 to 44 of its upper word, Volta to Hopper): how
long it holds back the next one of its warp. Their sum is the least that a warp takes if it never waits for memory, a
barrier or another warp; the number of instructions, times the warps of a scheduler, the least that these take. What
that makes of the kernels' times is in `pages/expected.py`.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from bench import record
from mi_pruner import _native

FILE = "machine-code.csv"
ARCHITECTURE = "sm_90a"
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);\s*/\* 0x[0-9a-f]{16} \*/")
_UPPER = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_BRANCH = re.compile(r"(@!?\w+\s+)?BRA (?:!?\w+, )?(0x[0-9a-f]+)")
_COMPILER = re.compile(rb"Cuda compilation tools, release [\d.]+, V([\d.]+)")
_MEETS = "WARPSYNC.COLLECTIVE"


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    stall: int


@dataclass(frozen=True)
class Loop:
    """Of the kernel whose mangled name contains `kernel`, the loop with the most `mark`, of several the shortest or the
    `longest`; of its ways, that with the most `way` (none: `mark`). The bounds of a turn lie a little above what nvcc
    13.0 makes."""

    kernel: str
    mark: str
    most_instructions: int
    most_stalls: int
    way: str | None = None
    longest: bool = False


GREEDY_WARP, GREEDY_CLUSTER, GREEDY_FEW_ROWS, GREEDY_ROWS = (
    "greedy step, one warp, N ≤ 640",
    "greedy step, a cluster, N ≤ 3,072",
    "greedy step, rows, N ≤ 8,192",
    "greedy step, rows, N ≤ 32,768",
)
STAGE_BLOCK, STAGE_CLUSTER, STAGE_WARPS = "stage, wgmma, a block", "stage, wgmma, a cluster", "stage, mma.sync"
STAGE_ROWS = "stage, wgmma, rows as needed"
_ROWS = "rows_kernelINS0_5BrainENS0_9TileShapeILi64ELi1ELb1E"  # by groups of warps
# Of a step the way that every turn takes (of one warp, where the row is there), of a stage that of warps with columns.
LOOPS = {
    GREEDY_WARP: Loop("greedy_warp_kernelILNS0_10RedundancyE0ELi5E", "FFMA", 150, 260, way="REDUX|LDS.128"),
    GREEDY_CLUSTER: Loop(
        "greedy_warp_kernelILNS0_10RedundancyE0ELi3ELNS0_8TogetherE2E", "FFMA", 170, 350, way="REDUX|LDS.128"
    ),
    GREEDY_FEW_ROWS: Loop(_ROWS, "REDUX", 305, 1010, way="STAS|MUFU.EX2"),
    GREEDY_ROWS: Loop(_ROWS, "REDUX", 495, 1350, way="STAS|MUFU.EX2", longest=True),
    STAGE_BLOCK: Loop("gram_kernelINS0_5BrainENS0_9TileShapeILi128ELi1E", "HGMMA.64x128", 125, 195),
    STAGE_CLUSTER: Loop("gram_kernelINS0_5BrainENS0_9TileShapeILi128ELi8E", "HGMMA.64x128", 120, 210),
    STAGE_ROWS: Loop(_ROWS, "HGMMA.64x64", 105, 170),
    STAGE_WARPS: Loop("similarity_kernelINS0_5BrainENS0_9TileShapeILi64ELi1E", "HMMA", 168, 495),
}


@dataclass(frozen=True)
class Count:
    """A turn of one loop."""

    date: str
    commit: str
    compiler: str
    architecture: str
    loop: str
    instructions: int
    stalls: int
    command: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench machine-code`."""
    parser.add_argument("--library", type=Path, help="default: the one that mi_pruner loads")
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Counts every loop, prints and keeps the counts; 2 where they can't be had."""
    try:
        counts = count_all(str(options.library or _native.library_path()))
    except (RuntimeError, OSError) as error:
        print(f"machine-code: {error}", file=sys.stderr)
        return 2
    record.append(options.out / FILE, Count, counts)
    print(f"{'':32}instructions   stall cycles")
    for count in counts:
        print(f"{count.loop:32}{count.instructions:12}{count.stalls:15}")
    print(f"nvcc {counts[0].compiler}, {ARCHITECTURE}; appended to {options.out / FILE}")
    return 0


def count_all(library: str) -> list[Count]:
    """A turn of each of LOOPS in a library.

    Raises:
        RuntimeError: without cuobjdump, or if the library has no CUDA kernels for ARCHITECTURE.
        OSError: without such a file.
    """
    if cuobjdump() is None:
        raise RuntimeError("expected cuobjdump, of a CUDA toolkit or of Triton; found none")
    made_by = compiler(library)
    try:
        turns = {name: turn_of(library, loop) for name, loop in LOOPS.items()}
    except (subprocess.CalledProcessError, LookupError):
        turns = None
    if made_by is None or turns is None:
        raise RuntimeError(f"{library}: expected the CUDA kernels, built for {ARCHITECTURE} (make gpu-library)")
    run = asdict(record.this_run("cpu"))
    shared = {key: run[key] for key in ("date", "commit", "command")} | {"architecture": ARCHITECTURE}
    return [
        Count(loop=name, compiler=made_by, instructions=len(way), stalls=stalls(way), **shared)
        for name, way in turns.items()
    ]


def compiler(library: str) -> str | None:
    """The version of the nvcc that made the library's kernels; None without any."""
    found = _COMPILER.search(Path(library).read_bytes())
    return None if found is None else found[1].decode()


def cuobjdump() -> str | None:
    """The toolkit's, or the one that Triton ships."""
    spec = importlib.util.find_spec("triton")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    shipped = [Path(place) / "backends/nvidia/bin" for place in places]
    found = [folder / "cuobjdump" for folder in (Path("/usr/local/cuda/bin"), *shipped)]
    return shutil.which("cuobjdump") or next((str(path) for path in found if path.exists()), None)


@cache
def dump(library: str, *options: str) -> str:
    """What cuobjdump prints of it: half a minute for all instructions, so once.

    Raises:
        subprocess.CalledProcessError: if the library has none for the GPU that the options name.
    """
    command = [str(cuobjdump()), *options, library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def turn_of(library: str, loop: Loop) -> list[Instruction]:
    """A turn of the loop in a library.

    Raises:
        LookupError: if the library has no such kernel, or the kernel no such loop.
        subprocess.CalledProcessError: if it has none for ARCHITECTURE.
    """
    code = instructions(dump(library, "-sass", "-arch", ARCHITECTURE), loop.kernel)
    return turn(code, loop.mark, loop.way, loop.longest)


def instructions(code: str, kernel: str) -> list[Instruction]:
    """Those of the one kernel whose mangled name contains `kernel`, in order, of what cuobjdump printed."""
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


def stalls(way: list[Instruction]) -> int:
    return sum(x.stall for x in way)


def turn(code: list[Instruction], mark: str, way: str | None = None, longest: bool = False) -> list[Instruction]:
    """One turn of the shortest (`longest`) of the loops with the most instructions that match `mark`, of those that
    have no other such loop inside; by the cheapest of the ways that meet as many that match `way` (none: `mark`) as any
    does, and that stay out of loops inside if any does.

    Raises:
        LookupError: without such a loop.
    """
    place = {x.address: i for i, x in enumerate(code)}
    loops = [
        (place[int(branch[2], 16)], end)
        for end, branch in enumerate(_BRANCH.match(x.text) for x in code)
        if branch and place.get(int(branch[2], 16), end + 1) <= end
    ]
    # Where lanes may have come apart, nvcc has a warp meet out of line, and branch back: that is no loop.
    loops = [loop for loop in loops if not any(_MEETS in x.text for x in code[loop[0] : loop[1] + 1])]
    marked = {loop: sum(re.search(mark, x.text) is not None for x in code[loop[0] : loop[1] + 1]) for loop in loops}
    candidates = [loop for loop in loops if marked[loop] and not any(marked[x] for x in loops if _inside(x, loop))]
    if not candidates:
        raise LookupError(f"no loop with {mark}")
    sign = 1 if longest else -1
    start, end = max(candidates, key=lambda loop: (marked[loop], sign * (loop[1] - loop[0]), loop))
    nested = {i for loop in loops if _inside(loop, (start, end)) for i in range(loop[0], loop[1] + 1)}
    best: dict[int, tuple[int, list[int]]] = {start: (0, [])}  # instruction -> cost of the way to it, which that is
    for i in range(start, end + 1):
        if i not in best:
            continue
        cost, before = best[i]
        wanted = re.search(way or mark, code[i].text) is not None
        cost += code[i].stall - 10_000 * wanted + 10_000_000 * (i in nested)
        branch = _BRANCH.match(code[i].text)
        following = [i + 1] if branch is None or branch[1] else []
        following += [place.get(int(branch[2], 16), -1)] if branch else []
        for j in following:
            if i < j <= end and (j not in best or cost < best[j][0]):
                best[j] = (cost, [*before, i])
    return [code[i] for i in [*best[end][1], end]]


def _inside(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]
