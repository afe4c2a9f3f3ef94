"""How long a selection on rows as needed waits for them on a GPU: the row path of the CUDA kernels, simulated.

The exact greedy selection needs the rows R[., s] of picked tokens only. Which tokens get rows is a guess, the tokens of
largest gain that have none, and changes no pick: it decides how often a pick waits. Two ways: a product is made when a
pick has no row, of its token and 127 others, and all wait for it ("before a pick", until 45eaa00); or products of 64
are made beside the steps, one after another, each from the gains of the moment when it is begun ("beside the steps").
What a step and a product take is given: STEP, PRODUCT and the rules below, for an H200.
"""

import argparse
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import mi_pruner
from bench import cases, record
from bench.cases import Case
from bench.record import rounded

from .guess import redundancies

FILE = "waits.csv"
BEFORE, BESIDE = "before a pick", "beside the steps"
BLOCKS = {BEFORE: 128, BESIDE: 64}  # rows of a product
ROWS_OF_PICK = 6  # that are kept: kRowsOfPick in csrc/cuda/base/arguments.h
STEP = 1.14  # us
PRODUCT = {8192: 74.0, 32768: 176.0}  # us, before a pick: with STEP what d06dccd took of clusters and of a film
TILE, TILE_ROWS, HELPERS = 24.0, 128, 120  # us of a tile of 64 chosen tokens, its tokens; blocks beside the team's
MEMORY = 4.8e6  # bytes a us
CHOICE = 3.0  # us: to propose and to rank candidates
WARPS, CHUNK = 64, 128  # of a cluster; tokens that are dealt to one of them at a time
A_WARP = 2  # candidates

SIZES = ((8192, 512), (32768, 2048))
CASES = (
    *(cases.of_photographs(Case(f"film, {n:,} → {k:,}", n, k, 4096)) for n, k in SIZES),
    *(Case(f"synthetic, {n:,} → {k:,}", n, k, 4096) for n, k in SIZES),
)


@dataclass(frozen=True)
class RowWait(record.Run):
    """One way in one case."""

    case: str
    tokens: int
    keep: int
    width: int
    way: str
    rows_a_pick: float  # computed
    products: int
    waits: int  # picks that wait
    waited_us: float
    us: float  # in all


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench waits`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Simulates every case both ways, prints and keeps what came."""
    run = record.this_run("cpu")
    for case in CASES:
        given = cases.inputs(case)[0]
        kept = [simulated(run, case, way, given.visual[0], given.text[0]) for way in BLOCKS]
        record.append(options.out / FILE, RowWait, kept)
        for w in kept:
            rows = f"{w.rows_a_pick:.2f} rows a pick in {w.products} products"
            time = f"{w.us:8,.0f} us, {w.waited_us:6,.0f} of them {w.waits} waits"
            print(f"{case.name:28}{w.way:18}{time}; {rows}", flush=True)
    print(f"\nappended to {options.out / FILE}")
    return 0


def product_us(way: str, tokens: int, width: int) -> float:
    """A product's time: measured, or the tiles that a helper has, or the features' way from memory."""
    if way == BEFORE:
        return PRODUCT[tokens]
    tiles = -(-tokens // TILE_ROWS)
    return max(-(-tiles // HELPERS) * TILE, tokens * width * 2 / MEMORY)


def candidates(way: str, gains: Tensor, count: int) -> list[int]:
    """The tokens of largest gain, `count` at the most; beside the steps, of the A_WARP best of each warp."""
    if way == BEFORE:
        best = gains.topk(min(count, len(gains)))
        return best.indices[best.values > -torch.inf].tolist()
    padded = -len(gains) % (WARPS * CHUNK)
    dealt = torch.nn.functional.pad(gains, (0, padded), value=-torch.inf).view(-1, WARPS, CHUNK)
    places = torch.arange(dealt.numel()).view_as(dealt).transpose(0, 1).flatten(1)
    own = dealt.transpose(0, 1).flatten(1).topk(A_WARP, dim=1)
    best = own.values.flatten().topk(min(count, own.values.numel()))
    tokens = places.gather(1, own.indices).flatten()[best.indices]
    return tokens[best.values > -torch.inf].tolist()


class Ring:
    """The rows that are there, of the last products."""

    def __init__(self, rows: int, row_of: Callable[[Tensor], Tensor]) -> None:
        self.room, self.row_of = rows, row_of
        self.products: deque[list[int]] = deque()
        self.rows: dict[int, Tensor] = {}

    def add(self, chosen: list[int]) -> None:
        """Of a product that is done."""
        self.products.append(chosen)
        self.rows |= dict(zip(chosen, self.row_of(torch.tensor(chosen)), strict=True))
        while sum(map(len, self.products)) > self.room:
            for token in self.products.popleft():
                self.rows.pop(token, None)


def simulated(run: record.Run, case: Case, way: str, visual: Tensor, text: Tensor) -> RowWait:
    """The selection of case.keep of visual (N, D) given text (M, D), mode "mean"."""
    block, product = BLOCKS[way], product_us(way, case.tokens, case.width)
    features = torch.nn.functional.normalize(visual, dim=1)
    left = mi_pruner.mi_scores(visual[None], text[None])[0]
    redundancy = torch.zeros_like(left)
    ring = Ring(ROWS_OF_PICK * case.keep, lambda chosen: redundancies(features, chosen))
    now = waited = 0.0
    rows = products = waits = 0
    going: tuple[float, list[int]] | None = None  # when the product is done, and its tokens

    def begin(gains: Tensor, first: list[int]) -> tuple[float, list[int]]:
        nonlocal rows, products
        gains[[*ring.rows, *first]] = -torch.inf
        chosen = first + candidates(way, gains, block - len(first))
        rows += len(chosen)
        products += 1
        return now + CHOICE * (way == BESIDE) + product, chosen

    for step in range(case.keep - 1):  # the last pick needs no row
        now += STEP
        if going is not None and now >= going[0]:
            ring.add(going[1])
            going = None
        gains = left - redundancy / max(step, 1)
        pick = int(gains.argmax())
        left[pick] = -torch.inf
        gains[pick] = -torch.inf
        if pick not in ring.rows:
            waits += 1
            before = now
            while pick not in ring.rows:
                going = going or begin(gains.clone(), [pick])
                now = max(now, going[0])
                ring.add(going[1])
                going = None
            waited += now - before
        if way == BESIDE and going is None:
            now += CHOICE
            going = begin(gains, [])
        redundancy += ring.rows[pick]
    return RowWait(
        **asdict(run),
        case=case.name,
        tokens=case.tokens,
        keep=case.keep,
        width=case.width,
        way=way,
        rows_a_pick=rounded(rows / case.keep),
        products=products,
        waits=waits,
        waited_us=rounded(waited),
        us=rounded(now),
    )
