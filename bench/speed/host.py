"""What a call costs the host beside its work: on tensors so small that there is next to none.

The unit is a `layer_norm` of the same tensor, in the same turn: a machine that is fast or slow at the moment is so for
both. On a GPU calls are queued, and waited for between the turns. Beside them, what PyTorch takes for an operator in
Python, of the same schema, that does nothing.
"""

import argparse
import contextvars
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

import mi_pruner
from bench import record
from bench.measure import Call, cuda, each_us, timing
from bench.record import rounded
from mi_pruner import _schema

FILE = "host.csv"
TOKENS, TEXT, WIDTH, KEEP, RATIO = 8, 2, 16, 2, 0.25
UNIT = "layer_norm"
WARM_UP = 10  # calls in a turn, before the clock
TURNS = 300
OTHER = "reference"  # a backend that nobody uses by itself
THROUGH_PYTHON = f"mi_pruner.prune, while another thread has backend({OTHER!r})"


@dataclass(frozen=True)
class HostTime(record.Run):
    """What a call takes the host, in us, and in times of the unit."""

    versions: str
    load: float  # average per core when the run began
    call: str
    p20_us: float
    p50_us: float
    p80_us: float
    ratio: float  # the median over the turns
    turns: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench host`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Measures all calls; the exit status."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more have nothing to do
    try:
        run, load = record.this_run(device), record.load_per_core()
        times = measure(calls(device), device)
    finally:
        torch.set_num_threads(threads)
    kept = [
        HostTime(
            **asdict(run),
            versions=record.versions(),
            load=load,
            call=name,
            p20_us=rounded(found.p20),
            p50_us=rounded(found.p50),
            p80_us=rounded(found.p80),
            ratio=rounded(ratio),
            turns=found.samples,
        )
        for name, (found, ratio) in times.items()
    ]
    print(f"{run.machine}, torch {run.torch}, commit {run.commit}, load {load} per core")
    print(f"{'':60}{'p20':>8}{'p50':>8}{'p80 us':>8}{f'x {UNIT}':>14}")
    for row in kept:
        print(f"{row.call:60}{row.p20_us:8.1f}{row.p50_us:8.1f}{row.p80_us:8.1f}{row.ratio:14.2f}")
    record.append(options.out / FILE, HostTime, kept)
    print(f"\nappended to {options.out / FILE}", file=sys.stderr)
    return 0


def calls(device: str) -> dict[str, Call]:
    """Name -> the call; the unit first."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    visual = torch.randn(1, TOKENS, WIDTH, dtype=dtype, device=device)
    text = torch.randn(1, TEXT, WIDTH, dtype=dtype, device=device)
    mask = torch.ones(1, TOKENS, dtype=torch.bool, device=device)
    scores = torch.randn(1, TOKENS, device=device)
    cu = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (TOKENS, TEXT, KEEP))
    packed = (visual[0], text[0], *cu, TOKENS, TEXT, KEEP, KEEP)
    module = mi_pruner.MIPruner(KEEP)
    _, by_impl, by_custom_op = _doing_nothing()
    return {
        UNIT: lambda: F.layer_norm(visual, (WIDTH,)),
        "torch.ops.mi_pruner.prune": lambda: torch.ops.mi_pruner.prune(visual, text, KEEP),
        "mi_pruner.prune": lambda: mi_pruner.prune(visual, text, KEEP),
        "mi_pruner.prune, keep a ratio": lambda: mi_pruner.prune(visual, text, RATIO),
        "mi_pruner.prune, with a mask": lambda: mi_pruner.prune(visual, text, KEEP, visual_prior=mask),
        "MIPruner": lambda: module(visual, text),
        "mi_pruner.mi_scores": lambda: mi_pruner.mi_scores(visual, text),
        "mi_pruner.greedy_select": lambda: mi_pruner.greedy_select(scores, visual, KEEP),
        "mi_pruner.prune_varlen": lambda: mi_pruner.prune_varlen(*packed),
        THROUGH_PYTHON: lambda: mi_pruner.prune(visual, text, KEEP),
        "torch.library, impl: nothing": lambda: by_impl(visual, text, KEEP),
        "torch.library, custom_op: nothing": lambda: by_custom_op(visual, text, KEEP),
    }


@functools.cache  # an operator is defined once in a process
def _doing_nothing() -> tuple[torch.library.Library, Callable, Callable]:
    """Operators with the schema of `prune` that give the same empty tensors always: by `impl`, whose library has to
    live, and by `custom_op`."""
    library = torch.library.Library("mi_pruner_bench", "DEF")
    outputs = tuple(torch.empty(0) for _ in range(3))
    schema = _schema.SCHEMAS["prune"]
    library.define("by_impl" + schema)
    library.impl("by_impl", lambda *_: outputs, "CompositeExplicitAutograd")
    by_custom_op = torch.library.custom_op(
        "mi_pruner_bench::by_custom_op",
        lambda *_: outputs,
        mutates_args=(),
        schema=schema.replace("*, ", ""),  # it takes no tensors by keyword alone
    )
    return library, torch.ops.mi_pruner_bench.by_impl, by_custom_op


def measure(calls: dict[str, Call], device: str) -> dict[str, tuple[timing.Timing, float]]:
    """Each call's times, in us where `Timing` says ms, and its ratio to the unit's, the median over the turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            with _chosen_elsewhere() if name == THROUGH_PYTHON else nullcontext():
                for _ in range(WARM_UP):
                    call()
                if device == "cuda":
                    torch.cuda.synchronize()
                samples[name].append(each_us(call, cuda.HOST_CALLS))
                if device == "cuda":
                    torch.cuda.synchronize()
    unit = samples[UNIT]
    return {
        name: (timing.percentiles(found), statistics.median(a / b for a, b in zip(found, unit, strict=True)))
        for name, found in samples.items()
    }


@contextmanager
def _chosen_elsewhere() -> Iterator[None]:
    """As if another thread or task were within `mi_pruner.backend`."""
    context, chosen = contextvars.copy_context(), mi_pruner.backend(OTHER)
    context.run(chosen.__enter__)
    try:
        yield
    finally:
        context.run(chosen.__exit__, None, None, None)
