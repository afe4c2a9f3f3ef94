"""The instruments: latency, what differs on a GPU, peak memory, what a machine can do at best."""

import time
from collections.abc import Callable

Call = Callable[[], object]  # what is measured


def each_us(call: Call, calls: int) -> float:
    """Microseconds of each of so many calls in a row; the host's alone, where they are queued for a GPU."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return 1e6 * (time.perf_counter() - start) / calls


def first_line(error: Exception) -> str:
    """Of what a call that failed says: compilers add pages."""
    return (str(error).splitlines() or [""])[0]
