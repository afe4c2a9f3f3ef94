"""On a GPU that is shared: how long a caller waits for a `prune` alone, beside a busy process, and under MPS.

A call is timed from an idle stream until the result is there. MPS must be chosen before CUDA starts, so that each
surrounding has a process of its own, which measures, and which starts the busy one, its neighbour.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mi_pruner
from bench import record
from bench.baselines import plain
from bench.cases import Case
from bench.measure import Call, cuda, first_line
from mi_pruner import _dispatch

from . import goals

FILE = "shared.csv"
CASE = Case("shared", tokens=576, keep=64, width=4096, batch=13, dtype=torch.bfloat16)
WARM_UP, SAMPLES = 5, 100  # calls
BUDGET = 1.5  # seconds of a call's samples, where they are not reached before
LIMIT = 80  # seconds of the command, without MPS's start and end
PROCESS_LIMIT = 40  # of a surrounding, of which imports and torch.compile take most
NEIGHBOUR_LIMIT = 25  # until the busy process is
STEP_LIMIT = 5  # of MPS's program, or until a neighbour has ended
NEIGHBOUR, RUNNING = "neighbour", b"running\n"
FACTOR = 4096  # rows and columns: 0.14 TFLOP a product
CONTROL, SHARE = "nvidia-cuda-mps-control", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
FAILURES = (OSError, RuntimeError, ValueError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Surrounding:
    """Who else is there, and how the GPU is shared."""

    busy: bool = False  # another process multiplies matrices back to back
    mps: bool = False
    share: int = 100  # % of the multiprocessors that the measured process may use, under MPS


SURROUNDINGS = {
    "alone": Surrounding(),
    "beside a busy process": Surrounding(busy=True),
    "beside it, under MPS": Surrounding(busy=True, mps=True),
    "beside it, under MPS, on half of the multiprocessors": Surrounding(busy=True, mps=True, share=50),
}


@dataclass(frozen=True)
class Latency(record.Run):
    """Percentiles of the latency of one call in one surrounding, in us."""

    versions: str
    backend: str
    surrounding: str
    multiprocessors: int  # as the process sees them
    call: str
    tokens: int  # of an image
    keep: int
    width: int
    text: int
    p50_us: float
    p90_us: float
    samples: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench shared`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """The exit status: 2 where it can't be measured, 1 if a batch's results differ or no surrounding was measured."""
    try:
        if not torch.cuda.is_available():
            raise ValueError("expected a GPU, found none")
        record.append(options.out / FILE, Latency, [])
    except (OSError, ValueError) as error:
        print(f"shared: {error}", file=sys.stderr)
        return 2
    run, end = record.this_run("cuda"), time.monotonic() + LIMIT
    right = []
    for name, where in SURROUNDINGS.items():
        try:
            found = _asked(name, where, min(PROCESS_LIMIT, end - time.monotonic()))
        except FAILURES as error:
            print(f"{name}: left out: {first_line(error)}", file=sys.stderr)
            continue
        right.append(found.pop("same"))
        if not right[-1]:
            print(f"{name}: left out: the packed call gives other results than calls one by one", file=sys.stderr)
            continue
        for figures in found.pop("calls"):
            sizes = {"tokens": CASE.tokens, "keep": CASE.keep, "width": CASE.width, "text": CASE.text}
            latency = Latency(**asdict(run), versions=record.versions(), surrounding=name, **found, **sizes, **figures)
            record.append(options.out / FILE, Latency, [latency])
            print(f"{latency.call:32}{latency.p50_us:10.4g} us, p90 {latency.p90_us:10.4g}  {name}", flush=True)
    print(f"\nappended to {options.out / FILE}")
    return 0 if right and all(right) else 1


def _asked(name: str, where: Surrounding, seconds: float) -> dict[str, Any]:
    """What a process finds in this surrounding.

    Raises:
        OSError, RuntimeError, ValueError, SubprocessError: if the surrounding can't be had, or the time is over.
    """
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no workers, which could outlive the process
    with ExitStack() as stack:
        if where.mps:
            environment |= stack.enter_context(daemon()) | {SHARE: str(where.share)}
        done = subprocess.run(
            _python(name), env=environment, cwd=record.ROOT, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}: {_last_line(done.stderr)}")
    return json.loads(_last_line(done.stdout))


def _python(part: str) -> list[str]:
    return [sys.executable, "-c", f"from bench.speed import shared; shared.play({part!r})"]


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


@contextmanager
def daemon() -> Iterator[dict[str, str]]:
    """MPS of one's own; yields what its clients need in their environment."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        places = {f"CUDA_MPS_{kind}_DIRECTORY": f"{folder}/{kind.lower()}" for kind in ("PIPE", "LOG")}
        for place in places.values():
            Path(place).mkdir()
        _control(places, "-d")
        try:
            yield places
        finally:
            try:
                _control(places, command="quit -t 2\n")
            except FAILURES as error:
                print(f"MPS did not stop: {first_line(error)}", file=sys.stderr)


def _control(places: Mapping[str, str], *options: str, command: str = "") -> str:
    """What MPS's program says: to a file, as the daemon that it starts would hold a pipe open."""
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            [CONTROL, *options], input=command, text=True, env=os.environ | places, stdout=said,
            stderr=subprocess.STDOUT, timeout=STEP_LIMIT, check=False,
        )  # fmt: skip
        said.seek(0)
        text = said.read().strip()
    if done.returncode != 0:
        raise RuntimeError(f"{CONTROL}: exit status {done.returncode}: {text}")
    return text


def play(part: str) -> None:
    """What a process of its own does: the neighbour's part, or that of who measures in a surrounding of this name."""
    try:
        if part == NEIGHBOUR:
            multiply()
        else:
            print(json.dumps(measure(SURROUNDINGS[part])))
    except FAILURES as error:
        sys.exit(f"{type(error).__name__}: {first_line(error)}")


def multiply() -> None:
    """Until the standard input is closed: by who started this process, or by its end."""
    signal.alarm(PROCESS_LIMIT)  # should CUDA hang, which looks at no input
    factor = torch.randn(FACTOR, FACTOR, device="cuda", dtype=torch.bfloat16)
    product = torch.mm(factor, factor)
    torch.cuda.synchronize()
    os.write(sys.stdout.fileno(), RUNNING)
    while not select.select([sys.stdin], [], [], 0)[0]:
        torch.mm(factor, factor, out=product)  # waits where the queue is full


@contextmanager
def neighbour() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that will multiply, on all multiprocessors."""
    process = subprocess.Popen(
        _python(NEIGHBOUR), env=os.environ | {SHARE: "100"}, cwd=record.ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,  # `select` knows nothing of what a buffer holds
    )  # fmt: skip
    try:
        yield process
    finally:
        try:
            process.communicate(timeout=STEP_LIMIT)  # closes its standard input
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(process: "subprocess.Popen[bytes]") -> None:
    """Until the neighbour multiplies.

    Raises:
        RuntimeError: with the last that it said, if it ends instead or is silent for too long.
    """
    assert process.stdout is not None
    said = b""
    while select.select([process.stdout], [], [], NEIGHBOUR_LIMIT)[0] and (line := process.stdout.readline()):
        if line == RUNNING:
            return
        said = line
    raise RuntimeError(f"the busy process did not start: {said.decode().strip()}")


def measure(where: Surrounding) -> dict[str, Any]:
    """The fields of each `Latency` from `backend` on, but sizes; and `same`: the batch has the bits of single calls."""
    with ExitStack() as stack:
        other = stack.enter_context(neighbour()) if where.busy else None  # it starts while the calls are warmed up
        visual, text = goals.features(CASE)
        calls = _calls(visual, text)
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        torch.cuda.synchronize()
        if other is not None:
            wait_for(other)
        if where.mps and not _control({}, command="get_server_list\n"):
            raise RuntimeError("MPS: expected a server, found none")
        figures = [{"call": name, **_percentiles(call)} for name, call in calls.items()]
        parts = zip(*_one_by_one(visual, text), strict=True)
        packed = _packed(visual, text)()
        same = all(torch.equal(whole, torch.cat(part).flatten(0, 1)) for whole, part in zip(packed, parts, strict=True))
        if other is not None and other.poll() is not None:
            raise RuntimeError("the busy process ended too early")
    backend = _dispatch.choose(visual.device.type, visual.device.index).name
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    return {"same": same, "backend": backend, "multiprocessors": multiprocessors, "calls": figures}


def _calls(visual: Tensor, text: Tensor) -> dict[str, Call]:
    """Name -> call, on features (B, N, D) and (B, M, D)."""
    packed, one = _packed(visual, text), (visual[:1], text[:1], CASE.keep)
    eager, images = partial(mi_pruner.prune, *one), f"{len(visual)} images"
    return {
        f"{images}, packed": packed,
        f"{images}, one by one": partial(_one_by_one, visual, text),
        f"{images}, packed, CUDA graph": cuda.captured(packed),
        "an image": eager,
        "an image, CUDA graph": cuda.captured(eager),
        "an image, torch.compile": partial(torch.compile(mi_pruner.prune, fullgraph=True), *one),
        "an image, plain PyTorch": partial(plain.prune, *one),
    }


def _packed(visual: Tensor, text: Tensor) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    sizes = (visual.shape[1], text.shape[1], CASE.keep)
    number = torch.arange(len(visual) + 1, device=visual.device, dtype=torch.int32)
    offsets = (number * size for size in sizes)
    flat = (visual.flatten(0, 1), text.flatten(0, 1))
    return partial(mi_pruner.prune_varlen, *flat, *offsets, *sizes, len(visual) * CASE.keep)


def _one_by_one(visual: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [mi_pruner.prune(*one, CASE.keep) for one in zip(visual.split(1), text.split(1), strict=True)]


def _percentiles(call: Call) -> dict[str, float]:
    samples: list[float] = []
    end = time.perf_counter() + BUDGET
    while len(samples) < SAMPLES and time.perf_counter() < end:
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        samples.append(1e6 * (time.perf_counter() - start))
        del result  # freed off the clock, alike for all
    at = torch.tensor([0.5, 0.9], dtype=torch.float64)
    p50, p90 = torch.tensor(samples, dtype=torch.float64).quantile(at).tolist()
    return {"p50_us": record.rounded(p50), "p90_us": record.rounded(p90), "samples": len(samples)}
