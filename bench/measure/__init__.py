"""The instruments: latency, what differs on a GPU, peak memory, what a machine can do at best."""

from collections.abc import Callable

Call = Callable[[], object]  # what is measured
