"""`make demo-vllm`: vLLM on the CPU with all of an image's tokens, and with a share of them, side by side.

A LLaVA-1.5 of random weights is served twice and asked over the OpenAI-compatible API: one question at a time, then
many at once. Times are the client's: they hold HTTP, the picture's decoding and a vision tower, which is tiny here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import csv
import datetime
import io
import json
import os
import platform
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import aiohttp
import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 336  # pixels: 576 patches, as in LLaVA-1.5
LAYERS, WIDTH = 12, 512  # an image's tokens take some hundreds of ms on one core, and the demo ends within minutes
CONTEXT = 1024  # tokens
KV_CACHE = 1 << 28  # bytes: 10,922 tokens: 17 requests with all their tokens run at a time, and others wait
GENERATED = 16  # tokens of an answer
WARM_UP, ALONE = 3, 9  # questions asked one at a time
QUESTION = "what is the woman wearing?"
START, ANSWER, END = 240, 300, 10  # seconds at most: for a server to start, for a request, for a server to end
TAIL = 25  # lines of a log that are shown
CELL = 24  # characters of a column
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
Row = tuple[str, "float | str", str]  # what, value, unit


class DemoError(Exception):
    """What ends the demo, told to the user."""


class Answer(NamedTuple):
    """Of one request; times in ms since it was sent."""

    text: str
    prompt: int  # tokens
    generated: int  # tokens
    first: float
    whole: float


def main() -> int:
    """The exit status: 1 where a server or a request failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, default=0.25, help="share of an image's tokens that stay; default: 0.25")
    parser.add_argument("--requests", type=int, default=32, help="how many are sent at once; default: 32")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures to it, too")
    options = parser.parse_args()
    if options.requests < 1:
        parser.error(f"--requests: expected at least 1, got {options.requests}")
    if options.csv and not options.csv.resolve().parent.is_dir():
        parser.error(f"--csv: there is no folder {options.csv.resolve().parent}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a server ends, too
    try:
        _demonstrate(options)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _demonstrate(options: argparse.Namespace) -> None:
    """Measures with pruned images first, where a wrong --keep shows soon, then with all tokens, and reports."""
    machine = f"{_processor()}, {os.cpu_count()} cores, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "vllm", "mi_pruner")
    )
    columns = []
    with tempfile.TemporaryDirectory(prefix="mi-pruner-demo-") as name:
        _write_checkpoint(Path(name, "llava"))
        for keep in (options.keep, None):
            label = "all tokens" if keep is None else f"keep {keep:g}"
            print(f"{label}: starting vllm serve", file=sys.stderr, flush=True)
            with _serving(Path(name), keep) as url:
                columns.append(asyncio.run(_measure(url, options.requests, label)))
    pruned, dense = columns
    _report(dense, pruned, options, machine)
    if options.csv:
        _write(options.csv, dense, pruned, machine)


def _write_checkpoint(folder: Path) -> None:
    import transformers  # takes seconds
    from vllm_checkpoints import save  # beside this file

    print("writing a LLaVA-1.5 of random weights", file=sys.stderr, flush=True)
    transformers.utils.logging.disable_progress_bar()
    save("llava", folder, layers=LAYERS, width=WIDTH, side=SIDE)


@contextlib.contextmanager
def _serving(folder: Path, keep: float | None) -> Iterator[str]:
    """The address of a server of folder/llava, which ends with the context.

    Raises:
        DemoError: that from within, with the end of the server's log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, url = folder / "log", f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(
            _command(port, keep),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=folder,  # not a checkout: its triton_kernels would hide vLLM's
            env={**os.environ, **QUIET},
            start_new_session=True,
        )
    try:
        asyncio.run(_wait(process, url))
        yield url
    except DemoError as error:
        tail = log.read_text(errors="replace").splitlines()[-TAIL:]
        raise DemoError("\n".join([f"{error}\nThe last lines of the server's log:", *tail])) from error
    finally:
        _stop(process)


def _command(port: int, keep: float | None) -> list[str]:
    flags = {
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": CONTEXT,
        "--gpu-memory-utilization": 0.1,
        "--kv-cache-memory-bytes": KV_CACHE,
        "--block-size": 32,
        "--limit-mm-per-prompt": '{"image": 2}',
    }
    if keep is not None:
        flags["--hf-overrides"] = json.dumps({"mi_pruner": {"keep": keep}})
    said = [str(part) for flag in flags.items() for part in flag]
    vllm = str(Path(sys.executable).with_name("vllm"))
    return [vllm, "serve", "llava", "--enforce-eager", "--disable-uvicorn-access-log", *said]


async def _wait(process: subprocess.Popen, url: str) -> None:
    until = time.monotonic() + START
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while time.monotonic() < until:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError):
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            if process.poll() is not None:
                raise DemoError(f"vllm serve did not start: it ended with status {process.returncode}")
            await asyncio.sleep(0.5)
    raise DemoError(f"vllm serve did not start within {START} s")


def _stop(process: subprocess.Popen) -> None:
    """Ends the server and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(END)


async def _measure(url: str, requests: int, label: str) -> list[Row]:
    """Every request has its own picture, so that none is answered from a cache."""
    pictures = [_picture(seed) for seed in range(WARM_UP + ALONE + requests)]
    timeout, connector = aiohttp.ClientTimeout(total=ANSWER), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        alone = [await _ask(session, picture) for picture in pictures[: WARM_UP + ALONE]][WARM_UP:]
        with tqdm(total=requests, desc=label, unit="request") as bar:
            start = time.perf_counter()
            tasks = [asyncio.create_task(_ask(session, picture)) for picture in pictures[WARM_UP + ALONE :]]
            for task in tasks:
                task.add_done_callback(lambda _: bar.update())
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            seconds = time.perf_counter() - start
    done = [each for each in answers if isinstance(each, Answer)]
    failed = [each for each in answers if isinstance(each, BaseException)]
    if failed:
        raise DemoError(f"{len(failed)} of {requests} requests failed, the first of them: {failed[0]!r}")
    return _figures(alone, done, seconds)


async def _ask(session: aiohttp.ClientSession, picture: str) -> Answer:
    """QUESTION about a picture, given as a data URL.

    Raises:
        DemoError: for a request that is refused or breaks off.
    """
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    body = {
        "model": "llava",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": GENERATED,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,  # the first token may bring no text, if it ends within a character
    }
    first, text, usage, start = 0.0, "", None, time.perf_counter()
    try:
        async with session.post("/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise DemoError(f"status {answer.status}, {(await answer.text())[:500]}")
            async for line in answer.content:
                _, _, data = line.decode().partition("data: ")
                told = json.loads(data) if data.startswith("{") else {}
                if "error" in told:
                    raise DemoError(f"an answer ended with {told['error']}")
                for choice in told.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    if choice.get("token_ids") and not first:
                        first = 1e3 * (time.perf_counter() - start)
                usage = told.get("usage") or usage
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise DemoError(f"a request broke off: {error!r}") from error
    if usage is None or usage["completion_tokens"] != GENERATED:
        raise DemoError(f"an answer of {GENERATED} tokens was expected, got {text!r}, {usage}")
    whole = 1e3 * (time.perf_counter() - start)
    return Answer(text, usage["prompt_tokens"], usage["completion_tokens"], first, whole)


def _picture(seed: int) -> str:
    """Soft patches of colour, as the data URL of a PNG."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _figures(alone: list[Answer], load: list[Answer], seconds: float) -> list[Row]:
    """seconds: from the first request of the load to the last answer."""
    first, whole = ([getattr(answer, name) for answer in load] for name in ("first", "whole"))
    return [
        ("prompt", alone[0].prompt, "tokens"),
        ("alone: first token", median(answer.first for answer in alone), "ms"),
        ("alone: answer", repr(alone[0].text), "text"),
        ("load: requests", len(load) / seconds, "1/s"),
        ("load: generated tokens", sum(answer.generated for answer in load) / seconds, "1/s"),
        ("load: first token, median", median(first), "ms"),
        ("load: first token, 95th percentile", float(np.percentile(first, 95)), "ms"),
        ("load: whole request, median", median(whole), "ms"),
        ("load: whole request, 95th percentile", float(np.percentile(whole, 95)), "ms"),
    ]


def _report(dense: list[Row], pruned: list[Row], options: argparse.Namespace, machine: str) -> None:
    wide = max(len(f"{what}, {unit}") for what, _, unit in dense)
    print(f"\n{'':{wide}}{'all tokens':>{CELL}}{f'keep {options.keep:g}':>{CELL}}{'all / kept':>12}")
    for (what, all_of_them, unit), (_, kept, _) in zip(dense, pruned, strict=True):
        ratio = "" if isinstance(all_of_them, str) or isinstance(kept, str) else f"{all_of_them / kept:.2f}"
        print(f"{f'{what}, {unit}':{wide}}{_cell(all_of_them):>{CELL}}{_cell(kept):>{CELL}}{ratio:>12}")
    print(f"\nalone: one question at a time, median of {ALONE} after {WARM_UP}, each with its own picture")
    print(f"load: {options.requests} requests at once, each with its own picture, {GENERATED} new tokens; none failed")
    print("The weights are random: the answers mean nothing, and show only that a server answers.")
    print(f"{machine}\n{_said()}")


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value if len(value) < CELL else f"{value[: CELL - 5]}..."
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _write(file: Path, dense: list[Row], pruned: list[Row], machine: str) -> None:
    """The rows of the table; each says what made it."""
    made = (_commit(), datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), machine, _said())
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["what", "dense", "pruned", "unit", "commit", "date", "machine", "command"])
        for (what, all_of_them, unit), (_, kept, _) in zip(dense, pruned, strict=True):
            values = [each if isinstance(each, str) else f"{float(f'{each:.4g}'):.10g}" for each in (all_of_them, kept)]
            writer.writerow([what, *values, unit, *made])
    print(f"wrote {file}")


def _said() -> str:
    return shlex.join(["python", *sys.argv])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", file.read_text()) if file.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    sys.exit(main())
