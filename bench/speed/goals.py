"""On a GPU: the project's performance goals, a line each, and the time of every kernel behind them.

A step of a selection is (T(K) - T(1)) / (K - 1), of the times of all kernels but those before the selection, which do
not depend on K and vary by more than a step. Calls follow one another, so that inputs lie in L2 where they fit; "cold":
after L2 was filled with something else. "Photographs": with their features, which have no goals.
"""

import argparse
import operator
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import mi_pruner
from bench import cases, record
from bench.baselines import plain
from bench.cases import Case, of_photographs
from bench.measure import Call, cuda, first_line, floor, timing
from mi_pruner._dispatch import BACKENDS

FILE = "goals.csv"
KERNELS_FILE = "goals-kernels.csv"
MEASURED = tuple(name for name, backend in BACKENDS.items() if backend.device == "cuda")
COLD_SAMPLES = 15
RATIO = 0.111  # keeps 64 of 576


def _case(batch: int, tokens: int, keep: int) -> Case:
    return Case(f"{batch} x {tokens}", tokens, keep, width=4096, batch=batch, dtype=torch.bfloat16)


PRUNE, TILED = _case(1, 576, 64), _case(1, 2880, 320)
PRUNE_GOALS = {"graph": "<= 40", "host, count": "<= 60", "host, ratio": "<= 65"}  # us
PLAIN_GOALS = {"eager": ">= 50", "compiled, graph": ">= 10"}  # times the prune from a graph
STEPS = {  # us a step
    _case(1, 576, 64): "<= 0.25",
    _case(128, 576, 64): "<= 0.5",
    _case(1, 2880, 320): "<= 0.5",
    _case(1, 8192, 512): "",
    _case(1, 32768, 2048): "<= 4",
}
SCORES = tuple(_case(batch, tokens, 1) for batch, tokens in ((128, 576), (28, 576), (6, 2880), (1, 32768)))
SCORES_GOAL = ">= 85"  # % of the copy bandwidth; each of the cases has 64 M elements or more


@dataclass(frozen=True)
class Figure(record.Run):
    """One quantity of one competitor: a backend, or `plain`."""

    versions: str
    competitor: str
    quantity: str
    batch: int
    tokens: int
    keep: int
    width: int
    text: int
    value: float
    unit: str
    goal: str  # "<= 40"; empty where none is set

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        return _is_met(self.value, self.goal) if self.goal else None


@dataclass(frozen=True)
class KernelTime(record.Run):
    """One kernel's share of a call, by PyTorch's profiler."""

    competitor: str
    call: str
    batch: int
    tokens: int
    keep: int
    kernel: str
    launches: float  # a call
    us: float  # a call, of all these launches


def _is_met(value: float, goal: str) -> bool:
    relation, bound = goal.split()
    return {"<=": operator.le, ">=": operator.ge}[relation](value, float(bound))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench goals`."""
    parser.add_argument("--backends", nargs="+", metavar="NAME", help=f"some of: {' '.join(MEASURED)}")
    parser.add_argument("--compiled", action="store_true", help="plain PyTorch's compiled twin, too: a minute")
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Measures every goal; the exit status: 2 where it can't be, 1 if a backend failed. A missed goal is a result."""
    names = options.backends or [name for name in MEASURED if BACKENDS[name].why_not("cuda") is None]
    try:
        _check(names)
        for file, of in ((FILE, Figure), (KERNELS_FILE, KernelTime)):
            record.append(options.out / file, of, [])
    except (OSError, ValueError) as error:
        print(f"goals: {error}", file=sys.stderr)
        return 2
    table = Table(record.this_run("cuda"), options.out)
    copy = floor.measure("cuda", torch.bfloat16).copy_gb_per_s
    table.note("torch", "copy, read + written", PRUNE, copy, "GB/s")
    failed = [name for name in names if not _measured(name, table, copy)]
    measure_plain(table, options.compiled)
    measure_reads(table, copy)
    print(f"\nappended to {options.out / FILE} and {KERNELS_FILE}")
    return 1 if failed else 0


def _measured(name: str, table: "Table", copy_gb_per_s: float) -> bool:
    """Whether it was: where one backend can't run a call, the other is measured all the same."""
    try:
        with mi_pruner.backend(name):
            measure(name, table, copy_gb_per_s)
    except RuntimeError as error:
        print(f"{name}: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return False
    return True


def _check(names: list[str]) -> None:
    if not torch.cuda.is_available():
        raise ValueError("expected a GPU, found none")
    for name in names:
        why = f"expected some of {', '.join(MEASURED)}" if name not in MEASURED else BACKENDS[name].why_not("cuda")
        if why is not None:
            raise ValueError(f"--backends: {name}: {why}")


class Table:
    """Keeps and prints each figure as it comes: a run that is cut off has what it measured."""

    def __init__(self, run: record.Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.prune_us: dict[tuple[str, Case], float] = {}  # backend, case -> a whole prune from a graph

    def note(self, who: str, quantity: str, case: Case, value: float, unit: str, goal: str = "") -> None:
        """One figure."""
        sizes = {"batch": case.batch, "tokens": case.tokens, "keep": case.keep, "width": case.width, "text": case.text}
        quantity += _of(case)
        what = {"competitor": who, "quantity": quantity, "value": record.rounded(value), "unit": unit, "goal": goal}
        figure = Figure(**asdict(self.run), versions=record.versions(), **sizes, **what)
        record.append(self.folder / FILE, Figure, [figure])
        verdict = {None: "", True: "met", False: "missed"}[figure.met]
        shape = f"{case.batch} x {case.tokens} -> {case.keep}"
        print(f"{who:8}{quantity:36}{shape:22}{figure.value:10.4g} {unit:6}{goal:9}{verdict}", flush=True)

    def note_kernels(self, who: str, quantity: str, case: Case, call: Call) -> None:
        """Where a call's time goes."""
        quantity += _of(case)
        common = {"competitor": who, "call": quantity, "batch": case.batch, "tokens": case.tokens, "keep": case.keep}
        found = [
            KernelTime(**asdict(self.run), **common, kernel=kernel, launches=launches, us=record.rounded(us))
            for kernel, (launches, us) in cuda.kernel_times(call).items()
        ]
        record.append(self.folder / KERNELS_FILE, KernelTime, found)
        print(f"{'':8}of it: " + ", ".join(f"{k.kernel} {k.us:.1f}" for k in found), flush=True)


def _of(case: Case) -> str:
    """What the name of a quantity says of the features."""
    return "" if case.features == "synthetic" else ", photographs"


def features(case: Case) -> tuple[Tensor, Tensor]:
    """visual (B, N, D), text (B, M, D): of photographs, or clustered as those of `cases`, but made on the GPU: large
    cases take seconds on a CPU."""
    if case.features != "synthetic":
        given = cases.inputs(case, device="cuda")[0]
        return given.visual, given.text
    g = torch.Generator("cuda").manual_seed(0)
    normal = partial(torch.randn, device="cuda", generator=g)
    visual = torch.empty(case.batch, case.tokens, case.width, device="cuda", dtype=case.dtype)
    clusters = case.tokens // 10
    for sample in visual:
        centres = cases.CENTRE * normal(clusters, case.width) + cases.COMMON * normal(1, case.width)
        member = torch.randint(clusters, (case.tokens,), device="cuda", generator=g)
        sample.copy_(centres[member] + cases.NOISE * normal(case.tokens, case.width))
    return visual, normal(case.batch, case.text, case.width).to(case.dtype)


def measure(name: str, table: Table, copy_gb_per_s: float) -> None:
    """All goals of one backend, which is the chosen one."""
    _measure_prune(name, table)
    for case in (of_photographs(PRUNE), TILED, of_photographs(TILED)):
        visual, text = features(case)
        table.prune_us[name, case] = cuda.warm_us(cuda.captured(partial(mi_pruner.prune, visual, text, case.keep)))
        table.note(name, "prune, graph", case, table.prune_us[name, case], "us")
    for case, goal in {**STEPS, **{of_photographs(case): "" for case in STEPS}}.items():
        visual, text = features(case)
        select = partial(mi_pruner.greedy_select, mi_pruner.mi_scores(visual, text), visual)
        table.note(name, "greedy_select, a step", case, _step(select, case.keep), "us", goal)
        table.note_kernels(name, "greedy_select", case, partial(select, case.keep))
    for case in SCORES:
        visual, text = features(case)
        call = partial(mi_pruner.mi_scores, visual, text)
        share = _share_of_copy(call, visual.nbytes + text.nbytes, copy_gb_per_s)
        table.note(name, "mi_scores, share of a copy", case, share, "%", SCORES_GOAL)
        table.note_kernels(name, "mi_scores", case, call)


def _measure_prune(name: str, table: Table) -> None:
    visual, text = features(PRUNE)
    count = partial(mi_pruner.prune, visual, text, PRUNE.keep)
    ratio = partial(mi_pruner.prune, visual, text, RATIO)
    graph = cuda.captured(count)
    table.prune_us[name, PRUNE] = cuda.warm_us(graph)
    cold = timing.percentiles(map(cuda.event_clock(), [graph] * COLD_SAMPLES)).p50
    for quantity, us in {
        "graph": table.prune_us[name, PRUNE],
        "graph, cold": 1e3 * cold,
        "eager, count": cuda.warm_us(count),
        "eager, ratio": cuda.warm_us(ratio),
        "host, count": cuda.host_us(count),
        "host, ratio": cuda.host_us(ratio),
    }.items():
        table.note(name, f"prune, {quantity}", PRUNE, us, "us", PRUNE_GOALS.get(quantity, ""))
    table.note_kernels(name, "prune", PRUNE, count)


BEFORE_SELECTION = {"similarity_kernel", "gram_kernel", "normaliser_kernel"}  # of every backend


def _step(select: Callable[[int], object], keep: int) -> float:
    """Microseconds."""
    every, one = (
        sum(us for name, (_, us) in cuda.kernel_times(partial(select, count)).items() if name not in BEFORE_SELECTION)
        for count in (keep, 1)
    )
    return (every - one) / (keep - 1)


def measure_reads(table: Table, copy_gb_per_s: float) -> None:
    """What reading the features takes that scores are made of: a sum of their bytes, which does nothing else."""
    for case in SCORES:
        words = features(case)[0].view(torch.float32)
        share = _share_of_copy(partial(torch.sum, words), words.nbytes, copy_gb_per_s)
        table.note("plain", "sum of the features, share of a copy", case, share, "%")


def _share_of_copy(call: Call, size: int, copy_gb_per_s: float) -> float:
    """How fast a call, from a graph, has so many bytes: %."""
    return 100 * size / cuda.warm_us(cuda.captured(call)) / 1e3 / copy_gb_per_s


def measure_plain(table: Table, compiled: bool) -> None:
    """The same algorithm in plain PyTorch, and how many times as long it takes as the faster of our graphs."""
    _measure_plain(table, PRUNE, {"": plain.prune} | ({"compiled, ": plain.prune_compiled} if compiled else {}))
    _measure_plain(table, of_photographs(PRUNE), {"": plain.prune})


def _measure_plain(table: Table, case: Case, prunes: dict[str, Callable[..., object]]) -> None:
    visual, text = features(case)
    best = min((us for (_, of), us in table.prune_us.items() if of == case), default=None)
    for prefix, prune in prunes.items():
        call = partial(prune, visual, text, case.keep)
        for mode, run in (("eager", call), ("graph", cuda.captured(call))):
            us = cuda.warm_us(run)
            goal = PLAIN_GOALS.get(prefix + mode, "") if case == PRUNE else ""
            table.note("plain", f"prune, {prefix}{mode}", case, us, "us")
            if best is not None:
                table.note("plain", f"prune, {prefix}{mode}, of ours", case, us / best, "x", goal)
