"""Latency by interleaved calls.

Competitors take turns: what disturbs the machine for a while disturbs all of them, and each starts from the caches that
another one left behind, as in a model. The figure is the whole call, from tensors to tensors, allocation included.
`torch.utils.benchmark` times one statement after the other, so that a slow minute of the machine hits one competitor
only: hence a clock of our own.
"""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from . import Call, cuda

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

WARM_UP = 2  # calls before the clock: compilation, thread pools, workspaces
MIN_SAMPLES = 5  # fewer give no p20 and p80
MAX_SAMPLES = 200  # more tell nothing new
SLOW = 1.0  # seconds of a call from which on a competitor
SLOW_SAMPLES = 3  # is measured only that often: it would take most of the run


@dataclass(frozen=True)
class Timing:
    """Percentiles of the latency of one call, in ms."""

    p20: float
    p50: float
    p80: float
    samples: int


def percentiles(samples: Iterable[float]) -> Timing:
    """Milliseconds of each call -> p20, p50, p80, interpolated."""
    values = torch.tensor(list(samples), dtype=torch.float64)
    p20, p50, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Timing(p20, p50, p80, len(values))


def measure(
    calls: dict[Key, Call],
    device: str = "cpu",
    budget: float = 10.0,
    on_turn: Callable[[float], object] | None = None,
    on_failure: Callable[[Key, RuntimeError], object] | None = None,
) -> dict[Key, Timing]:
    """Times the calls for about `budget` seconds, each at least `MIN_SAMPLES` (`SLOW_SAMPLES`) times.

    Each is to have an equal share of the time, or `MAX_SAMPLES`, and whoever is least far on the way there is next: so
    the calls of all are spread evenly over the whole run.

    Args:
        calls: competitor -> a call without arguments.
        device: "cpu" or "cuda".
        budget: seconds (> 0) of measuring, warm-up excluded.
        on_turn: called after each call with the share of the work done, in (0, 1].
        on_failure: called with who raised a RuntimeError and the error; the others go on. Without it, it is raised.
    """
    clock = cuda.event_clock() if device == "cuda" else cpu_clock
    warm = {key: _unless_it_fails(partial(_warm_up, call, device), key, on_failure) for key, call in calls.items()}
    wanted = {key: least for key, least in warm.items() if least is not None}
    calls = {key: calls[key] for key in wanted}
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    used = dict.fromkeys(calls, 0.0)
    progress = dict.fromkeys(calls, 0.0)
    while min(progress.values(), default=1) < 1:
        key = min(progress, key=progress.__getitem__)
        start = time.perf_counter()
        sample = _unless_it_fails(partial(clock, calls[key]), key, on_failure)
        if sample is None:
            del samples[key], progress[key]
            continue
        samples[key].append(sample)
        used[key] += time.perf_counter() - start
        share = max(used[key] * len(calls) / budget, len(samples[key]) / MAX_SAMPLES)
        progress[key] = min(len(samples[key]) / wanted[key], share)
        if on_turn is not None:
            on_turn(min(1.0, *progress.values()))
    return {key: percentiles(values) for key, values in samples.items()}


def _unless_it_fails(
    function: Callable[[], Result], key: Key, on_failure: Callable[[Key, RuntimeError], object] | None
) -> Result | None:
    try:
        return function()
    except RuntimeError as error:
        if on_failure is None:
            raise
        on_failure(key, error)
        return None


def _warm_up(call: Call, device: str) -> int:
    """Returns how often the call is to be measured at least."""
    if _seconds(call, device) > SLOW and _seconds(call, device) > SLOW:  # not slow because it compiled
        return SLOW_SAMPLES
    for _ in range(WARM_UP - 1):
        call()
    return MIN_SAMPLES


def _seconds(call: Call, device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def fastest(call: Call, device: str, repeats: int) -> float:
    """The least of a few measurements, in ms, after the warm-up."""
    clock = cuda.event_clock() if device == "cuda" else cpu_clock
    for _ in range(WARM_UP):
        call()
    return min(clock(call) for _ in range(repeats))


def cpu_clock(call: Call) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    result = call()
    stop = time.perf_counter()
    del result  # freed off the clock, alike for all
    return (stop - start) * 1e3
