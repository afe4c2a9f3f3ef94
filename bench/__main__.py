"""``python -m bench``: measures the competitors on each case, prints a table, appends to the CSV of this machine."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from . import competitors, record, shapes, timing

REFERENCE = "ours-reference"
REFERENCE_TOKENS = 1024  # it is written to be read: beyond this it would take most of the run, unless it is asked for
QUICK_BUDGET = 10.0  # seconds of measuring for a case
FULL_BUDGET = 60.0


def main() -> int:
    options = _parser().parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = _wrong_name(options, device)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    run = record.this_run(device)
    path = options.out or record.default_path(device)
    try:
        record.append(path, [])  # before anything is measured for a file that can't take it
    except (OSError, ValueError) as error:
        print(f"--out: {error}", file=sys.stderr)
        return 2
    print(f"{run.machine}, {run.threads} threads, torch {run.torch}, commit {run.commit}")
    for name in options.cases or (shapes.QUICK if options.quick else shapes.CORE):
        case = shapes.CASES[name]
        names = options.competitors or _default_competitors(case, device)
        rows = _measure(run, case, names, QUICK_BUDGET if options.quick else FULL_BUDGET)
        record.append(path, rows)
        _print_table(case, rows)
    print(f"\nappended to {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short: the largest case left out, 10 s for each other")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"any of: {' '.join(shapes.CASES)}")
    parser.add_argument("--competitors", nargs="+", metavar="NAME", help=f"any of: {' '.join(competitors.COMPETITORS)}")
    parser.add_argument("--out", type=Path, metavar="CSV", help="default: bench/results/<machine>.csv")
    return parser


def _wrong_name(options: argparse.Namespace, device: str) -> str | None:
    for name in options.cases or ():
        if name not in shapes.CASES:
            return f"--cases: expected any of {', '.join(shapes.CASES)}, got {name}"
    for name in options.competitors or ():
        if name not in competitors.COMPETITORS:
            return f"--competitors: expected any of {', '.join(competitors.COMPETITORS)}, got {name}"
        reason = competitors.why_not(name, device)
        if reason is not None:
            return f"--competitors: {name} cannot run here: {reason}"
    return None


def _default_competitors(case: shapes.Case, device: str) -> list[str]:
    return [
        name
        for name in competitors.COMPETITORS
        if competitors.why_not(name, device) is None and (name != REFERENCE or case.tokens <= REFERENCE_TOKENS)
    ]


def _measure(run: record.Run, case: shapes.Case, names: list[str], budget: float) -> list[record.Row]:
    torch.compiler.reset()  # the compilations of earlier cases count against a limit
    with _progress(f"{case.name}: memory", len(names)) as advance:
        peaks: dict[str, float | None] = {}
        for name in names:
            peaks[name] = round(competitors.peak_extra_mb(case, name, run.device), 1)
            advance(len(peaks))
    with _progress(f"{case.name}: time", 100) as advance:
        calls = competitors.calls(case, names, run.device)
        timings = timing.measure(calls, run.device, budget, on_round=lambda share: advance(int(100 * share)))
    return record.rows(run, case, timings, peaks, competitors.BASELINE)


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal with tqdm, else one line; yields a function of the steps done so far."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(f"{label} ...", file=sys.stderr, flush=True)
        yield lambda done: None
        return
    with tqdm(total=total, desc=label, leave=False, disable=None) as bar:
        yield lambda done: bar.update(done - bar.n)


def _print_table(case: shapes.Case, rows: list[record.Row]) -> None:
    print(f"\n{case.name}: keep {case.keep} of ({case.batch}, {case.tokens}, {case.width}), {case.text} text tokens")
    print(f"{'':16}{'p20':>10}{'p50':>10}{'p80 ms':>10}{'speedup':>10}{'GFLOP/s':>10}{'GB/s':>8}{'extra MB':>10}")
    for row in rows:
        speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
        memory = "" if row.peak_extra_mb is None else f"{row.peak_extra_mb:.1f}"
        print(
            f"{row.competitor:16}{row.p20_ms:10.2f}{row.p50_ms:10.2f}{row.p80_ms:10.2f}{speedup:>10}"
            f"{row.gflop_per_s:10.1f}{row.gb_per_s:8.2f}{memory:>10}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
