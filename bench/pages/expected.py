"""The least that the CUDA kernels can take on an H100 or H200, by their machine code, beside what was measured.

A time is about the largest of these, or more:

    series    turns · stall cycles of a turn
    issue     turns · instructions of a turn · warps of the busiest scheduler
    matrices  turns · cycles that the multiprocessor's matrix units need for its blocks' products
    L2        bytes copied from L2, at what all multiprocessors can take
    memory    of what is more than L2 holds, all bytes read and written, at the data sheet's rate

where turns are those of one block after another, on the multiprocessor that has the most of them. Left out: every wait
for memory, barriers and other warps, what comes before and after the loop, warps that only fetch, and the launch.
"""

from dataclasses import dataclass
from itertools import chain

from bench.speed import goals, machine_code

from .kept import newest_calls
from .markdown import NONE, made, short, table

CLOCK = 1.98e3  # cycles a us
PROCESSORS, SCHEDULERS = 132, 4
FLOPS = 4096  # a cycle of a multiprocessor, of halves
MEMORY = {"H100": 3.35e6, "H200": 4.8e6}  # bytes a us
L2 = 64 * PROCESSORS * CLOCK
WIDTH, HALF, FLOAT, DEPTH = 4096, 2, 4, 64  # of `goals`; halves of a stage
TILE_ROWS, TEXT = 128, 32
BLOCK_WARPS = 8  # of tiles and rows


@dataclass(frozen=True)
class Floor:
    """What a kernel of a call does."""

    call: str
    batch: int
    tokens: int
    keep: int
    kernel: str
    loop: str
    turns: int
    warps: int
    matrices: int = 0  # cycles a turn
    l2: int = 0  # bytes
    memory: int = 0

    def bounds(self, count: machine_code.Count, card: str) -> dict[str, float]:
        """us, by what sets it."""
        return {
            "series": self.turns * count.stalls / CLOCK,
            "issue": self.turns * count.instructions * self.warps / CLOCK,
            "matrices": self.turns * self.matrices / CLOCK,
            "L2": self.l2 / L2,
            "memory": self.memory / MEMORY[card],
        }


def gram(batch: int, tokens: int, keep: int, blocks: int = 1) -> Floor:
    """The Gram matrix: tiles of 128 x 128 on and below the diagonal, by one block or eight each."""
    across = -(-tokens // TILE_ROWS)
    tiles = batch * across * (across + 1) // 2
    copied = batch * tokens * across  # each tile's rows; and its columns, off the diagonal: as many as there are rows
    return Floor(
        "greedy_select", batch, tokens, keep, "gram",
        machine_code.STAGE_CLUSTER if blocks > 1 else machine_code.STAGE_BLOCK,
        turns=-(-tiles * blocks // PROCESSORS) * (WIDTH // DEPTH // blocks),
        warps=BLOCK_WARPS // SCHEDULERS,
        matrices=2 * TILE_ROWS**2 * DEPTH // FLOPS,
        l2=copied * WIDTH * HALF,
        memory=batch * tokens * (WIDTH * HALF + tokens * FLOAT) if batch > 1 else 0,
    )  # fmt: skip


def scores(batch: int, tokens: int) -> Floor:
    """The similarities with the text: tiles of 128 x 64, two blocks a multiprocessor."""
    tiles = batch * -(-tokens // TILE_ROWS)
    return Floor(
        "mi_scores", batch, tokens, 1, "similarity", machine_code.STAGE_WARPS,
        turns=-(-tiles // (2 * PROCESSORS)) * (WIDTH // DEPTH),
        warps=2 * BLOCK_WARPS // SCHEDULERS,
        matrices=2 * 2 * TILE_ROWS * 64 * DEPTH // FLOPS,
        l2=(batch * tokens + tiles * TEXT) * WIDTH * HALF,
        memory=batch * tokens * (WIDTH * HALF + TEXT * FLOAT),
    )  # fmt: skip


def by_warp(batch: int, tokens: int, keep: int) -> Floor:
    """A warp a sample; rows of R come from L2, where the matrices of the batch fit there."""
    read = batch * keep * tokens * FLOAT
    return Floor(
        "greedy_select", batch, tokens, keep, "greedy_warp", machine_code.GREEDY_WARP,
        turns=keep,
        warps=1,
        l2=read,
        memory=read if batch > 1 else 0,
    )  # fmt: skip


def by_cluster(tokens: int, keep: int) -> Floor:
    """A warp in each block of a cluster; rows of R come from L2."""
    return Floor(
        "greedy_select", 1, tokens, keep, "greedy_warp", machine_code.GREEDY_CLUSTER,
        turns=keep,
        warps=1,
        l2=keep * tokens * FLOAT,
    )  # fmt: skip


def rows(tokens: int, keep: int) -> Floor:
    """The steps of a cluster, without the products."""
    return Floor(
        "greedy_select", 1, tokens, keep, "rows",
        machine_code.GREEDY_FEW_ROWS if tokens <= 8192 else machine_code.GREEDY_ROWS,
        turns=keep,
        warps=BLOCK_WARPS // SCHEDULERS,
        l2=keep * tokens * FLOAT,
    )  # fmt: skip


FLOORS = (
    gram(1, 576, 64, blocks=8), by_warp(1, 576, 64), gram(128, 576, 64), by_warp(128, 576, 64), gram(1, 2880, 320),
    by_cluster(2880, 320), rows(8192, 512), rows(32768, 2048), scores(128, 576), scores(1, 32768),
)  # fmt: skip


def block(counts: list[machine_code.Count], times: list[goals.KernelTime]) -> str:
    """A line for each kernel: what a turn costs, each bound, and the share of the largest in what was measured last.

    Raises:
        ValueError: if a loop was not counted.
    """
    if not counts:
        return NONE
    newest = {count.loop: count for count in counts}
    if missing := {floor.loop for floor in FLOORS} - newest.keys():
        raise ValueError(f"{machine_code.FILE}: expected {', '.join(sorted(missing))}: python -m bench machine-code")
    run = list(chain(*newest_calls(times, "cuda").values()))
    card = next((name for name in MEMORY if run and name in run[-1].machine), "H100")
    measured = {(t.call, t.batch, t.tokens, t.keep, t.kernel.removesuffix("_kernel")): t.us for t in run}
    lines = []
    for floor in FLOORS:
        count = newest[floor.loop]
        bounds = floor.bounds(count, card)
        least = max(bounds.values())
        cells = [f"**{short(x)}**" if x == least else short(x) if x else "" for x in bounds.values()]
        us = measured.get((floor.call, floor.batch, floor.tokens, floor.keep, floor.kernel))
        found = ["–", "–"] if us is None else [short(us), f"{100 * least / us:.0f} %"]
        kept = "" if floor.call == "mi_scores" else f" → {floor.keep:,}"
        of = f"{floor.kernel}, {floor.batch} × {floor.tokens:,}{kept}"
        turn = f"{count.loop}: {count.instructions:,}, {count.stalls:,}"
        lines.append([of, turn, f"{floor.turns:,} × {floor.warps}", *cells, *found])
    head = ("kernel, B × N → K", "a turn: instructions, stall cycles", "turns × warps a scheduler",
            "series", "issue", "matrices", "L2", "memory", "measured", "share")  # fmt: skip
    last = counts[-1]
    counted = f"Counted for {last.architecture}, nvcc {last.compiler}, commit {last.commit}, by `{last.command}`"
    return f"{table(head, lines)}\n\n{counted}; us. Measured: {made(*run) if run else 'nothing yet.'}"
