"""What is measured differently on a GPU: time by events, calls as CUDA graphs, launches, the allocator's peak.

The clock is tested with stand-ins for events, the rest on a GPU only (tests/test_bench_gpu.py).
"""

import re
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from . import Call, each_us


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any, /) -> float: ...


def _timing_event() -> Event:
    return torch.cuda.Event(enable_timing=True)


def event_clock(
    new_event: Callable[[], Event] = _timing_event, flush: Callable[[], object] | None = None
) -> Callable[[Call], float]:
    """A clock: call -> milliseconds between two events around it, after a read of twice the L2 cache.

    So the inputs come from memory, and nothing that was written waits to be put back there. The flush also keeps the
    device busy while the host queues the call: launch gaps show only if the call takes longer to queue than to run, as
    they do in a model.
    """
    if flush is None:
        flush = _flush()

    def clock(call: Call) -> float:
        start, stop = new_event(), new_event()
        flush()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))

    return clock


def _flush() -> Callable[[], object]:
    cache = torch.cuda.get_device_properties().L2_cache_size
    filler = torch.zeros(2 * cache // 4, device="cuda")
    return partial(torch.sum, filler, dim=0, out=filler.new_empty(()))


WARM_BATCHES = 9
WARM_BATCH_US = 2000  # long beside the resolution of events, half a microsecond


def warm_us(call: Call, new_event: Callable[[], Event] = _timing_event) -> float:
    """Microseconds of a call among others of its kind, back to back: the median of batches between two events."""

    def batch(repeats: int) -> float:
        start, stop = new_event(), new_event()
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
        return 1e3 * float(start.elapsed_time(stop)) / repeats

    call()
    repeats = max(1, min(100, round(WARM_BATCH_US / max(batch(3), 1))))
    return statistics.median(batch(repeats) for _ in range(WARM_BATCHES))


HOST_CALLS = 50  # their launches fit in the queue of a stream (1,024): the host waits for no one


def host_us(call: Call) -> float:
    """Microseconds that the host takes to queue a call: the median of batches."""
    times = []
    for _ in range(WARM_BATCHES):
        torch.cuda.synchronize()
        times.append(each_us(call, HOST_CALLS))
    torch.cuda.synchronize()
    return statistics.median(times)


def captured(call: Call) -> Call:
    """The call as a CUDA graph; calling the result replays it.

    Raises:
        RuntimeError: if the call synchronises with the host, or does else what can't be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first uses (handles, workspaces, compilation) must lie before the capture
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def launches(call: Call) -> int:
    """Kernels, copies and fills that one call puts on the device."""
    return len(_device_events(call, 1))


PROFILED = 5  # calls


def kernel_times(call: Call) -> dict[str, tuple[float, float]]:
    """Kernel -> how often a call launches it, and the microseconds of a call that these take, in order of launch."""
    found: dict[str, list[float]] = {}
    for event in _device_events(call, PROFILED):
        found.setdefault(kernel_name(event.name), []).append(event.time_range.elapsed_us())
    return {name: (len(times) / PROFILED, sum(times) / PROFILED) for name, times in found.items()}


def kernel_name(signature: str) -> str:
    """The function of a demangled signature, without its namespaces, template arguments and parameters."""
    function = re.sub(r"[<(].*", "", signature.removeprefix("void ").replace("(anonymous namespace)::", ""))
    return function.split("::")[-1].strip()


def _device_events(call: Call, times: int) -> list:
    from torch.profiler import ProfilerActivity, profile

    call()  # compilation and tuning launch kernels, too
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        for _ in range(times):
            call()
        torch.cuda.synchronize()
    return on_device(run.events())


def on_device(events: list) -> list:
    """Of the profiler's events those that ran on the device, in order of time."""
    kept = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(kept, key=lambda event: event.time_range.start)


def peak_extra_mb(call: Call) -> float:
    """The allocator's peak over what was held before the call, results included, in MB (10^6 bytes)."""
    call()  # workspaces that stay
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
