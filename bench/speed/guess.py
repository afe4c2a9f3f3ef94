"""How many rows a selection computes for a pick: of the tokens of largest gain, or of those that a draft picks.

The exact greedy selection needs the rows R[., s] of picked tokens only, and computes them in blocks, ahead of the
picks. Which tokens a block is of is a guess: those of the largest current gains (a GPU's, beside its steps: waits.py),
or those that the loop would pick next on a sketch of the features (the CPU backend, whose sources are compiled and run
here, so that its rows are counted, not simulated).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import mi_pruner
from bench import cases, record
from bench.cases import Case
from bench.record import rounded

from . import instructions

FILE = "guess.csv"
BLOCKS = (20, 48, 128)  # of the tokens of largest gain
BLOCK = 64  # of the draft: kBlock in csrc/cpu/greedy.cpp
GAIN, DRAFT = "largest gain", "draft"
SAMPLES = 3  # pictures, whose figures are averaged
BANDWIDTH = 0.63

MODELS = ((576, 64), (2880, 320))
CASES = (
    *(cases.of_photographs(Case(f"photographs, {n:,} → {k}", n, k, 4096, batch=SAMPLES)) for n, k in MODELS),
    *(cases.of_photographs(Case(f"film, {n:,} → {k:,}", n, k, 4096)) for n, k in ((8192, 512), (10000, 1000))),
    *(Case(f"synthetic, {n:,} → {k}", n, k, 4096, batch=SAMPLES) for n, k in MODELS),
    *(replace(case, name=f"{case.features}, {case.tokens:,} → {case.keep}") for case in cases.SETS["hard"]),
)


class Work(NamedTuple):
    """Of one selection."""

    rows: int  # computed
    products: int  # of these, in blocks
    drafted: int  # rows of a sketch


@dataclass(frozen=True)
class Guess(record.Run):
    """One way to guess in one case, over K."""

    case: str
    tokens: int
    keep: int
    width: int
    guess: str
    block: int
    samples: int
    rows_a_pick: float
    products: float
    drafted_a_pick: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench guess`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Counts every case, prints and keeps the counts; 2 if the program can't be built or fails."""
    run = record.this_run("cpu")
    try:
        driver = build()
        for case in CASES:
            kept = count(run, case, driver)
            record.append(options.out / FILE, Guess, kept)
            for g in kept:
                drafted = f", {g.drafted_a_pick:.2f} drafted" if g.drafted_a_pick else ""
                what = f"{g.rows_a_pick:.2f} rows a pick in {g.products:.3g} products{drafted}"
                print(f"{g.case:28}{g.guess:14}{g.block:5}  {what}", flush=True)
    except RuntimeError as error:
        print(f"guess: {error}", file=sys.stderr)
        return 2
    print(f"\nappended to {options.out / FILE}")
    return 0


def build() -> Path:
    """Compiles the program that counts.

    Raises:
        RuntimeError: if CMake or Ninja is missing or the build fails.
    """
    return instructions.build("guess_driver")[0]


def count(run: record.Run, case: Case, driver: Path) -> list[Guess]:
    """One line for each way to guess."""
    given = cases.inputs(case)[0]
    samples = list(zip(given.visual, given.text, strict=True))
    counts = {(GAIN, block): [by_gain(visual, text, case.keep, block) for visual, text in samples] for block in BLOCKS}
    counts[DRAFT, BLOCK] = [by_draft(driver, visual, text, case.keep) for visual, text in samples]
    return [
        Guess(
            **asdict(run),
            case=case.name,
            tokens=case.tokens,
            keep=case.keep,
            width=case.width,
            guess=guess,
            block=block,
            samples=len(found),
            rows_a_pick=rounded(sum(w.rows for w in found) / len(found) / case.keep),
            products=rounded(sum(w.products for w in found) / len(found)),
            drafted_a_pick=rounded(sum(w.drafted for w in found) / len(found) / case.keep),
        )
        for (guess, block), found in counts.items()
    ]


def by_gain(visual: Tensor, text: Tensor, keep: int, block: int) -> Work:
    """What the selection of `keep` of visual (N, D) given text (M, D) computes, where a block is of the tokens that
    have the largest gains and no row."""
    left = mi_pruner.mi_scores(visual[None], text[None])[0]
    features = torch.nn.functional.normalize(visual, dim=1)
    redundancy = torch.zeros_like(left)
    rows: dict[int, Tensor] = {}
    computed = products = 0
    for step in range(keep - 1):  # the last pick needs no row
        gains = left - redundancy / max(step, 1)
        pick = int(gains.argmax())
        left[pick] = -torch.inf
        if pick not in rows:
            gains[list(rows)] = -torch.inf
            gains[pick] = torch.inf
            best = gains.topk(min(block, keep - 1 - step))
            chosen = best.indices[best.values > -torch.inf]
            rows |= dict(zip(chosen.tolist(), redundancies(features, chosen), strict=True))
            computed += len(chosen)
            products += 1
        redundancy += rows.pop(pick)
    return Work(computed, products, 0)


def redundancies(features: Tensor, chosen: Tensor) -> Tensor:
    """(C, N): R[., s] for the chosen s, docs/maths.md, "Selection"."""
    count = len(features)
    logits = (features[chosen] @ features.T - 1) / BANDWIDTH**2
    log_ratio = logits - logits.logsumexp(1, keepdim=True) + torch.log(torch.tensor(float(count)))
    return log_ratio.exp() * log_ratio / count


def by_draft(
    driver: Path,
    visual: Tensor,
    text: Tensor,
    keep: int,
    prior: Tensor | None = None,
    redundancy: str = "mean",
    weight: float = 1.0,
) -> Work:
    """What the CPU backend computes: visual (N, D), text (M, D), prior (N), None for a uniform one.

    Raises:
        RuntimeError: if the program fails, or picks another number of tokens.
    """
    prior = torch.ones(len(visual)) if prior is None else prior
    with _written(visual, text, prior) as path:
        sizes = map(str, (len(visual), keep, visual.shape[1], len(text)))
        done = instructions.checked([str(driver), str(path), *sizes, redundancy, str(weight)])
    picks, *work = map(int, done.stdout.split())
    if picks != keep:
        raise RuntimeError(f"guess_driver: expected {keep} picks, got {picks}")
    return Work(*work)


@contextmanager
def _written(*parts: Tensor) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile() as file:
        for part in parts:
            file.write(part.float().contiguous().numpy().tobytes())
        file.flush()
        yield Path(file.name)
