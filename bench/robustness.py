"""What each competitor does with duplicate tokens, in a batch, and with padding: beside its speed, what it is good for.

`python -m bench robustness` prints the table and writes robustness.csv. Counts of distinct tokens are right when they
are K. They are those of this machine: where a method compares differences that are all rounding, another BLAS may give
other counts.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import cases, competitors, record
from .cases import Case, Inputs
from .competitors import COMPETITORS, Competitor

FILE = "robustness.csv"
TOKENS, WIDTH, TEXT = 576, 256, 16
KEEP = 64
KEEP_OF_HALVES = 320  # beyond the 289 distinct rows: duplicates must be picked, each once
DISTINCT = 40
PADDING = 100


@dataclass(frozen=True)
class Verdict(record.Run):
    """One competitor's line; `identical`, `forty` and `halves` are counts of distinct tokens returned."""

    competitor: str
    identical: int  # of KEEP, all rows equal
    forty: int  # of KEEP, 40 distinct rows
    halves: int  # of KEEP_OF_HALVES, every other row the same
    batch: str  # the same tokens alone and in a batch: "yes" or "no"
    padding: str  # the same tokens without and with padding that is masked: "yes", "no", "no mask" (it takes none)
    nan_free: str  # no operator gave a NaN meanwhile


class NaNWatch(TorchDispatchMode):
    """Notes whether an operator's result holds a NaN. Views, and memory that is not written yet, don't count."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, then looks."""
        result = func(*args, **(kwargs or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and "empty" not in func._schema.name:
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, Tensor) and value.is_floating_point() and value.isnan().any():
                    self.seen = True
        return result


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench robustness`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Judges everyone who can run here, prints and keeps the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = asdict(record.this_run(device))
    verdicts = []
    print(f"{'':18}{'identical':>10}{'40 rows':>10}{'halves':>10}{'batch':>8}{'padding':>10}{'NaN-free':>10}")
    for competitor in COMPETITORS.values():
        # The compiled twin is the arithmetic of plain-symmetric, at the price of a compilation for each check.
        if competitors.why_not(competitor.name, device) is None and not competitor.compiles:
            verdict = Verdict(**run, competitor=competitor.name, **judge(competitor, device))
            verdicts.append(verdict)
            _print(verdict)
    record.append(options.out / FILE, Verdict, verdicts)
    print(f"\nright: {KEEP}, {KEEP}, {KEEP_OF_HALVES}, yes, yes, yes; appended to {options.out / FILE}")
    return 0


def _print(v: Verdict) -> None:
    counts = f"{v.competitor:18}{v.identical:10}{v.forty:10}{v.halves:10}"
    print(f"{counts}{v.batch:>8}{v.padding:>10}{v.nan_free:>10}", flush=True)


def judge(competitor: Competitor, device: str = "cpu") -> dict[str, Any]:
    """The fields of a `Verdict` that depend on the competitor."""
    watch = NaNWatch()
    with watch:
        counts = {
            "identical": _distinct(competitor, _duplicates(lambda i: i * 0, device), KEEP),
            "forty": _distinct(competitor, _duplicates(lambda i: i % DISTINCT, device), KEEP),
            "halves": _distinct(competitor, _duplicates(lambda i: i * (i % 2), device), KEEP_OF_HALVES),
        }
        batch = _alone_and_in_a_batch(competitor, device)
        padding = _padded(competitor, device)
    nan_free = "no" if watch.seen else "yes"
    return {**counts, "batch": batch, "padding": padding, "nan_free": nan_free}


def _random(batch: int, device: str) -> Inputs:
    """Features without near ties: float64, where the device's backends take it."""
    dtype = torch.float64 if device == "cpu" else torch.float32
    return cases.inputs(Case("robustness", TOKENS, KEEP, WIDTH, TEXT, batch, dtype), device=device)[0]


def _duplicates(row: Callable[[Tensor], Tensor], device: str) -> Inputs:
    """One sample in float32; token i is a copy of row(i) of random tokens."""
    given = cases.inputs(Case("robustness", TOKENS, KEEP, WIDTH, TEXT), device=device)[0]
    return given._replace(visual=given.visual[:, row(torch.arange(TOKENS, device=device))].contiguous())


def _distinct(competitor: Competitor, given: Inputs, keep: int) -> int:
    indices = competitor.prune(given, keep)[1]
    return len(indices[indices >= 0].unique())


def _alone_and_in_a_batch(competitor: Competitor, device: str) -> str:
    given = _random(3, device)
    together = competitor.prune(given, KEEP)[1]
    alone = [competitor.prune(Inputs(*(x[b : b + 1] for x in given)), KEEP)[1] for b in range(3)]
    return _same(together, torch.cat(alone))


def _padded(competitor: Competitor, device: str) -> str:
    if competitor.masked is None:
        return "no mask"
    given = _random(2, device)
    filler = 100 * torch.ones_like(given.visual[:, :PADDING])
    wide = given._replace(visual=torch.cat([given.visual, filler], dim=1))
    valid = torch.arange(TOKENS + PADDING, device=device).expand(2, -1) < TOKENS
    return _same(competitor.prune(given, KEEP)[1], competitor.masked(wide, valid, KEEP))


def _same(left: Tensor, right: Tensor) -> str:
    return "yes" if torch.equal(left.sort(dim=1).values, right.sort(dim=1).values) else "no"
