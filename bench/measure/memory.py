"""The peak of extra memory of one call on a CPU: the rise of the process's resident set."""

import ctypes
import gc
import resource
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def peak_extra_mb(call: Callable[[], object]) -> float:
    """Peak resident memory of one call above what was held before it, results included, in MB (10^6 bytes).

    Run it in a process of its own (`in_a_process`), after a call on a tiny case (the libraries' first use) or, where a
    call compiles for its shape, after one on the same shape.
    """
    gc.collect()
    _return_free_memory()
    before = _reset_peak_rss()
    call()
    return max(0, _peak_rss() - before) / 1e6


def in_a_process(function: Callable[..., Any], *arguments: object) -> Any:
    """function(*arguments) in a fresh process, forked from a server that has imported torch (Linux) or spawned.

    Raises:
        RuntimeError: if the process dies.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["bench.competitors"])
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__}{arguments} ended without a result") from error
    finally:
        process.join()


def _send(connection: Any, function: Callable[..., Any], arguments: tuple) -> None:
    connection.send(function(*arguments))


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
