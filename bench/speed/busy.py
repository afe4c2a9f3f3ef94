"""On a CPU that is busy: how long a caller waits for a `prune`, beside none and beside other processes.

A neighbour multiplies small matrices on one thread, without a pause. The calls take turns, so that what disturbs the
machine for a while disturbs all of them. How OpenMP's threads wait for each other is chosen before they start: run it
with `OMP_WAIT_POLICY=passive`, too.
"""

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import torch

from bench import cases, competitors, record
from bench.measure import Call, timing
from bench.record import rounded

FILE = "busy.csv"
CASE = "photograph-576/64"
COMPETITORS = ("ours-cpu", "plain")
NEIGHBOURS = (0, 1, 2, 4)
WARM_UP = 3  # calls, after the number of threads was changed
TURNS, SAMPLES = 5, 12  # calls of each in a turn; in another turn the threads that helped have been elsewhere
START_LIMIT = 60  # seconds until a neighbour runs
SIZE = 512  # rows and columns of its matrices: they stay in its cache
RUNNING = b"running\n"


@dataclass(frozen=True)
class Wait(record.Run):
    """Percentiles of the latency of one call beside a number of neighbours, in ms."""

    versions: str
    case: str
    policy: str  # OMP_WAIT_POLICY
    neighbours: int
    competitor: str
    used: int  # threads of the call; `threads` is how many there can be
    p50_ms: float
    p90_ms: float
    samples: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench busy`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Measures beside each number of neighbours; the exit status: 2 where they can't be had."""
    run, threads = record.this_run("cpu"), torch.get_num_threads()
    calls = competitors.calls(cases.CASES[CASE], list(COMPETITORS))
    for neighbours in NEIGHBOURS:
        try:
            with beside(neighbours):
                kept = measure(run, calls, neighbours)
        except (OSError, RuntimeError) as error:
            print(f"busy: {neighbours} neighbours: {error}", file=sys.stderr)
            return 2
        finally:
            torch.set_num_threads(threads)
        record.append(options.out / FILE, Wait, kept)
        for wait in kept:
            figures = f"{wait.p50_ms:8.1f} ms, p90 {wait.p90_ms:8.1f}"
            print(f"{wait.neighbours} neighbours, {wait.used} threads  {wait.competitor:10}{figures}", flush=True)
    print(f"\nappended to {options.out / FILE}")
    return 0


def measure(run: record.Run, calls: dict[str, Call], neighbours: int) -> list[Wait]:
    """One line for each call on one thread and on all."""
    samples: dict[tuple[str, int], list[float]] = {}
    for _ in range(TURNS):
        for used in sorted({1, run.threads}):
            torch.set_num_threads(used)
            for name, call in calls.items():
                for _ in range(WARM_UP):
                    call()
                samples.setdefault((name, used), []).extend(timing.cpu_clock(call) for _ in range(SAMPLES))
    return [
        Wait(
            **asdict(run),
            versions=record.versions(),
            case=CASE,
            policy=os.environ.get("OMP_WAIT_POLICY", "not set"),
            neighbours=neighbours,
            competitor=name,
            used=used,
            p50_ms=_percentile(found, 0.5),
            p90_ms=_percentile(found, 0.9),
            samples=len(found),
        )
        for (name, used), found in samples.items()
    ]


def _percentile(values: list[float], share: float) -> float:
    return rounded(torch.tensor(values, dtype=torch.float64).quantile(share).item())


@contextmanager
def beside(neighbours: int) -> Iterator[None]:
    """With so many busy processes.

    Raises:
        RuntimeError: if one does not start.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_neighbour()) for _ in range(neighbours)]
        end = time.monotonic() + START_LIMIT
        for process in processes:
            assert process.stdout is not None
            ready = select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]
            if not ready or process.stdout.readline() != RUNNING:
                raise RuntimeError("a busy process did not start")
        yield


@contextmanager
def _neighbour() -> "Iterator[subprocess.Popen[bytes]]":
    code = "from bench.speed import busy; busy.multiply()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=record.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def multiply() -> None:
    """Until the standard input is closed, as by the end of who started this process."""
    torch.set_num_threads(1)
    factor = torch.randn(SIZE, SIZE)
    os.write(sys.stdout.fileno(), RUNNING)
    while not select.select([sys.stdin], [], [], 0)[0]:
        torch.mm(factor, factor)
