"""`vllm serve` on the CPU, for as long as a context lasts. Standard library only: tests import it apart from bench."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START, END = 240, 10  # seconds at most: for a server to start, to end
TAIL = 25  # lines of a log that are shown
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
FLAGS = ("--dtype", "float32", "--enforce-eager", "--block-size", "32", "--gpu-memory-utilization", "0.1")


class ServerError(Exception):
    """A server that did not start, or a request that failed, with the end of the server's log."""


@contextlib.contextmanager
def serving(checkpoint: Path, log: Path, *flags: str) -> Iterator[str]:
    """The address of a server of a checkpoint, which ends with the context.

    Raises:
        ServerError: where it does not start; one from within, with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(checkpoint), "--served-model-name", "tiny"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--disable-uvicorn-access-log", *FLAGS, *flags],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=checkpoint,  # not a checkout: its triton_kernels would hide vLLM's
            env={**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    except ServerError as error:
        tail = log.read_text(errors="replace").splitlines()[-TAIL:]
        raise ServerError("\n".join([f"{error}\nThe last lines of the server's log:", *tail])) from error
    finally:
        _stop(process)


def _wait(process: subprocess.Popen, url: str) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        if process.poll() is not None:
            raise ServerError(f"vllm serve did not start: it ended with status {process.returncode}")
        time.sleep(0.5)
    raise ServerError(f"vllm serve did not start within {START} s")


def _stop(process: subprocess.Popen) -> None:
    """Ends the server and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(END)
