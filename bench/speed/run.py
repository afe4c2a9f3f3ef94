"""Measures the competitors on each case, prints a table, appends to the CSV of this machine."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch

from bench import cases, competitors, record
from bench.competitors import COMPETITORS
from bench.measure import Call, cuda, first_line, floor, timing
from bench.record import rounded

from .rows import Entry, Row, full_name, rows

# B N^2 up to which calls are also captured: beyond, kernels are long, and each graph keeps its memory (a few times
# 512 MB here) until the case is done.
GRAPH_ELEMENTS = 1 << 27
BUSY = 0.7  # load per core from which on a run is not to be trusted
BUDGET = 3.0  # seconds of measuring for a case


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench`."""
    parser.add_argument("--quick", action="store_true", help=f"two cases only: {' and '.join(cases.QUICK)}")
    parser.add_argument("--sets", nargs="+", metavar="SET", help=f"some of: {' '.join(cases.SETS)}")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"any of: {' '.join(cases.CASES)}")
    parser.add_argument("--competitors", nargs="+", metavar="NAME", help=f"any of: {' '.join(COMPETITORS)}")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="S", help="seconds of measuring for a case")
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Runs the cases that the options name; the exit status."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = record.this_run(device)
    path = record.path_in(options.out, device)
    try:
        _check_names(options, device)
        record.append(path, Row, [])  # before anything is measured for a file that can't take it
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{run.machine}, {run.threads} threads, torch {run.torch}, commit {run.commit}")
    load = record.load_per_core()
    if load > BUSY:
        print(f"warning: a load of {load} per core: the figures will be those of a busy machine", file=sys.stderr)
    named = options.competitors or [name for name in COMPETITORS if competitors.why_not(name, device) is None]
    for name in COMPETITORS:
        if not options.competitors and name not in named:
            print(f"left out: {name}: {competitors.why_not(name, device)}")
    names, slow = _cases(options, device)
    for name in slow:
        print(
            f"left out: the case {name}: too long for the usual run on a CPU; --cases {name} measures it all the same"
        )
    if not names:
        print(f"no case is left; expected some that are not too long on a {device}, or --cases", file=sys.stderr)
        return 2
    for number, name in enumerate(names, start=1):
        case = _on(device, cases.CASES[name])
        left_out = {} if options.competitors else _too_long(named, case, device)
        taking_part = [n for n in named if n not in left_out]
        measurement = Measurement(run, case, left_out, load, f"{number}/{len(names)} {name}")
        measured = measurement(taking_part, options.budget)
        record.append(path, Row, measured)
        _print_table(case, measured, left_out)
    print(f"\nappended to {path}")
    return 0


def _check_names(options: argparse.Namespace, device: str) -> None:
    for option, known in (("sets", cases.SETS), ("cases", cases.CASES), ("competitors", COMPETITORS)):
        for name in getattr(options, option) or ():
            if name not in known:
                raise ValueError(f"--{option}: expected any of {', '.join(known)}, got {name}")
    for name in options.competitors or ():
        reason = competitors.why_not(name, device)
        if reason is not None:
            raise ValueError(f"--competitors: {name} cannot run here: {reason}")
    if not options.budget > 0:
        raise ValueError(f"--budget: expected seconds > 0, got {options.budget}")


def _cases(options: argparse.Namespace, device: str) -> tuple[list[str], list[str]]:
    """Which to measure, and which are left out."""
    if options.cases or options.quick:
        return options.cases or list(cases.QUICK), []
    return cases.usual(device, options.sets or cases.SETS)


def _too_long(names: list[str], case: cases.Case, device: str) -> dict[str, str]:
    """Who sits the case out, and why."""
    reasons = {name: competitors.too_long(name, case, case.name in cases.CORE, device) for name in names}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _on(device: str, case: cases.Case) -> cases.Case:
    """Models run in bfloat16 on a GPU."""
    return dataclasses.replace(case, dtype=torch.bfloat16) if device == "cuda" else case


@cache
def _rates(device: str, dtype: torch.dtype) -> floor.Rates:
    return floor.measure(device, dtype)


@dataclass
class Measurement:
    """One case. Who fails is left out, with the reason; the others are measured."""

    run: record.Run
    case: cases.Case
    left_out: dict[str, str]
    load: float
    label: str

    def __call__(self, names: list[str], budget: float) -> list[Row]:
        """One row for each of those that did not fail, and mode."""
        torch.compiler.reset()  # the compilations of earlier cases count against a limit
        case, device = self.case, self.run.device
        rates = _rates(device, case.dtype)
        calls = competitors.calls(case, names, device)
        peaks: dict[str, float] = {}
        if case.name in cases.CORE:
            with _progress(f"{self.label}: memory", len(calls)) as advance:
                for name in list(calls):
                    with self._leaving_out(name, calls):
                        peaks[name] = rounded(competitors.peak_extra_mb(case, name, device))
                    advance(len(peaks))
        launches: dict[str, int] = {}
        if device == "cuda":
            for name, call in list(calls.items()):
                with self._leaving_out(name, calls):
                    launches[name] = cuda.launches(call)
        entries: dict[Entry, Call] = {Entry(name): call for name, call in calls.items()}
        if device == "cuda" and sum(tokens**2 for tokens, _ in case.samples) <= GRAPH_ELEMENTS:
            entries |= _graphs(calls)
        with _progress(f"{self.label}: time", 100) as advance:
            timings = timing.measure(entries, device, budget, lambda share: advance(int(100 * share)), self._failed)
        return rows(self.run, case, rates, timings, peaks, launches, self.load)

    @contextlib.contextmanager
    def _leaving_out(self, name: str, calls: dict[str, Call]) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._failed(Entry(name), error)
            del calls[name]

    def _failed(self, entry: Entry, error: RuntimeError) -> None:
        """Notes why. A compiler's errors and those of memory are RuntimeErrors, too."""
        self.left_out[full_name(entry)] = f"{type(error).__name__}: {first_line(error)}"
        if self.run.device == "cuda":
            torch.cuda.empty_cache()


def _graphs(calls: dict[str, Call]) -> dict[Entry, Call]:
    """The calls that a CUDA graph can capture, captured."""
    graphs: dict[Entry, Call] = {}
    for name, call in calls.items():
        if COMPETITORS[name].capturable:
            try:
                graphs[Entry(name, "graph")] = cuda.captured(call)
            except RuntimeError as error:
                print(f"{name}: no CUDA graph: {first_line(error)}", file=sys.stderr)
    return graphs


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


def _print_table(case: cases.Case, measured: list[Row], left_out: dict[str, str]) -> None:
    shape = f"({case.batch}, {case.tokens}, {case.width})"
    if case.sizes:
        shape = f"{case.batch} samples of {sorted(case.sizes)}"
    print(
        f"\n{case.name}: keep {case.keep} of {shape}, {case.text} text tokens, {str(case.dtype).removeprefix('torch.')}"
    )
    head = f"{'':24}{'p20':>10}{'p50':>10}{'p80 ms':>10}{'n':>6}"
    print(f"{head}{'speedup':>10}{'of floor':>10}{'extra MB':>10}{'launches':>10}")
    for row in measured:
        speedup = "" if row.speedup is None else f"{row.speedup:.2f}x"
        memory = "" if row.peak_extra_mb is None else f"{row.peak_extra_mb:.1f}"
        launches = "" if row.launches is None else row.launches
        print(
            f"{full_name(row):24}{row.p20_ms:10.3f}{row.p50_ms:10.3f}{row.p80_ms:10.3f}{row.samples:6}{speedup:>10}"
            f"{row.share_of_floor:10.0%}{memory:>10}{launches:>10}"
        )
    for name, why in left_out.items():
        print(f"{name:24}left out: {why}")
    sys.stdout.flush()
