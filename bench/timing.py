"""Latency by interleaved rounds, and the peak of extra memory of one call.

In each round every competitor runs once, in an order that rotates: what disturbs the machine for a while disturbs all
of them, and each starts from the caches that another one left behind, as in a model. The figure is the whole call,
from tensors to tensors, allocation included.
"""

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Call = Callable[[], object]

WARM_UP = 2  # calls before the clock: compilation, thread pools, workspaces
MIN_ROUNDS = 5  # fewer give no p20 and p80


@dataclass(frozen=True)
class Timing:
    """Percentiles of the latency of one call, in ms."""

    p20: float
    p50: float
    p80: float
    samples: int


def percentiles(samples: Iterable[float]) -> Timing:
    """Milliseconds of each call -> p20, p50, p80, interpolated."""
    values = list(samples)
    p20, p50, p80 = np.percentile(values, (20, 50, 80)).tolist()
    return Timing(p20, p50, p80, len(values))


def measure(
    calls: dict[str, Call],
    device: str = "cpu",
    budget: float = 10.0,
    on_round: Callable[[float], object] | None = None,
) -> dict[str, Timing]:
    """Times the calls for `budget` seconds in all, and at least `MIN_ROUNDS` rounds.

    Args:
        calls: competitor's name -> a call without arguments.
        device: "cpu" or "cuda".
        budget: seconds (> 0) of measuring, warm-up excluded.
        on_round: called after each round with the share of the work done, in (0, 1].
    """
    clock = _cuda_clock() if device == "cuda" else _cpu_clock
    names = list(calls)
    for name in names:
        for _ in range(WARM_UP):
            calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    rounds = 0
    share = 0.0
    while share < 1:
        for offset in range(len(names)):
            name = names[(rounds + offset) % len(names)]
            samples[name].append(clock(calls[name]))
        rounds += 1
        share = min(1.0, rounds / MIN_ROUNDS, (time.perf_counter() - start) / budget)
        if on_round is not None:
            on_round(share)
    return {name: percentiles(values) for name, values in samples.items()}


def _cpu_clock(call: Call) -> float:
    start = time.perf_counter()
    result = call()
    stop = time.perf_counter()
    del result  # freed off the clock, alike for all
    return (stop - start) * 1e3


def _cuda_clock() -> Callable[[Call], float]:
    """Events around one call, after a write of twice the L2 cache, so that the inputs come from memory.

    The flush also keeps the device busy while the host queues the call: launch gaps show only if the call takes longer
    to queue than to run, as they do in a model.
    """
    flush = torch.empty(2 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.int8, device="cuda")

    def clock(call: Call) -> float:
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))

    return clock


def peak_extra_mb(call: Call, device: str = "cpu") -> float:
    """Peak memory of one call above what was held before it, results included, in MB (10^6 bytes).

    On a CPU this is the process's resident set: run it in a process of its own, after a call on a tiny case (the
    libraries' first use) or, where a call compiles for its shape, after one on the same shape.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    _return_free_memory()
    before = _reset_peak_rss()
    call()
    return max(0, _peak_rss() - before) / 1e6


def _return_free_memory() -> None:
    """Gives freed heap pages back, which the call would otherwise reuse unseen (glibc; elsewhere nothing)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak_rss() -> int:
    """Resident bytes now, from which the peak counts anew (Linux), else the peak so far."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # resets VmHWM
    return _peak_rss()


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
