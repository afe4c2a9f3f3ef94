"""The instruments: latency, what differs on a GPU, peak memory, what a machine can do at best."""

from collections.abc import Callable

Call = Callable[[], object]  # what is measured


def first_line(error: Exception) -> str:
    """Of what a call that failed says: compilers add pages."""
    return (str(error).splitlines() or [""])[0]
