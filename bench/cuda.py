"""What is measured differently on a GPU: time by events, calls as CUDA graphs, launches, the allocator's peak.

The clock is tested with stand-ins for events, the rest on a GPU only (tests/test_bench.py).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[], object]


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
    """A clock: call -> milliseconds between two events around it, after a write of twice the L2 cache.

    So the inputs come from memory. The flush also keeps the device busy while the host queues the call: launch gaps
    show only if the call takes longer to queue than to run, as they do in a model.
    """
    if flush is None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        flush = torch.empty(2 * cache, dtype=torch.int8, device="cuda").zero_

    def clock(call: Call) -> float:
        start, stop = new_event(), new_event()
        flush()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop))

    return clock


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
    from torch.profiler import ProfilerActivity, profile

    call()  # compilation and tuning launch kernels, too
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as run:
        call()
        torch.cuda.synchronize()
    return count_device_events(run.events())


def count_device_events(events: list) -> int:
    """Of the profiler's events those that ran on the device."""
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)


def peak_extra_mb(call: Call) -> float:
    """The allocator's peak over what was held before the call, results included, in MB (10^6 bytes)."""
    call()  # workspaces that stay
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
