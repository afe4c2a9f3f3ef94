"""`make demo-vllm`: vLLM on the CPU with all of an image's tokens, and with a share of them, side by side.

A LLaVA-1.5 of random weights is served twice and asked over the OpenAI-compatible API: one question at a time, then
many at once. Times are the client's: they hold HTTP, the picture's decoding and a vision tower, which is tiny here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.metadata
import io
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import aiohttp
import numpy as np
from PIL import Image
from tqdm import tqdm

from bench import record
from bench.record import rounded
from bench.serving.served import FILE, Served
from bench.serving.vllm_server import ServerError, serving

SIDE = 336  # pixels: 576 patches, as in LLaVA-1.5
LAYERS, WIDTH = 12, 512  # an image's tokens take some hundreds of ms on one core, and the demo ends within minutes
CONTEXT = 1024  # tokens
KV_CACHE = 1 << 28  # bytes: 10,922 tokens: 17 requests with all their tokens run at a time, and others wait
GENERATED = 16  # tokens of an answer
WARM_UP, ALONE = 3, 9  # questions asked one at a time
QUESTION = "what is the woman wearing?"
ANSWER = 300  # seconds at most for a request


class Answer(NamedTuple):
    """Of one request; times in ms since it was sent."""

    text: str
    prompt: int  # tokens
    first: float
    whole: float


def main() -> int:
    """The exit status: 1 where a server or a request failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, default=0.25, help="share of an image's tokens that stay; default: 0.25")
    parser.add_argument("--requests", type=int, default=32, help="how many are sent at once; default: 32")
    parser.add_argument("--record", action="store_true", help=f"add the figures to bench/results/{FILE}")
    options = parser.parse_args()
    if options.requests < 1:
        parser.error(f"--requests: expected at least 1, got {options.requests}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a server ends, too
    try:
        _demonstrate(options)
    except ServerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


def _demonstrate(options: argparse.Namespace) -> None:
    """Measures with pruned images first, where a wrong --keep shows soon, then with all tokens, and reports."""
    run = record.this_run("cpu", "bench.serving.demo")
    rows, texts = [], []
    with tempfile.TemporaryDirectory(prefix="mi-pruner-demo-") as name:
        folder = Path(name, "llava")
        _write_checkpoint(folder)
        for keep in (options.keep, 1.0):
            label = "all tokens" if keep == 1 else f"keep {keep:g}"
            print(f"{label}: starting vllm serve", file=sys.stderr, flush=True)
            with serving(folder, Path(name, "log"), *_flags(keep)) as url:
                alone, load, seconds = asyncio.run(_measure(url, options.requests, label))
            rows.append(_served(run, keep, alone, load, seconds))
            texts.append(alone[0].text)
    _report(rows[1], rows[0], texts[::-1])
    if options.record:
        record.append(record.RESULTS / FILE, Served, rows)


def _write_checkpoint(folder: Path) -> None:
    import transformers  # takes seconds

    from bench.serving.vllm_checkpoints import save

    print("writing a LLaVA-1.5 of random weights", file=sys.stderr, flush=True)
    transformers.utils.logging.disable_progress_bar()
    save("llava", folder, layers=LAYERS, width=WIDTH, side=SIDE)


def _flags(keep: float) -> list[str]:
    flags = ["--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(KV_CACHE)]
    flags += ["--limit-mm-per-prompt", '{"image": 2}']
    return flags if keep == 1 else [*flags, "--hf-overrides", json.dumps({"mi_pruner": {"keep": keep}})]


async def _measure(url: str, requests: int, label: str) -> tuple[list[Answer], list[Answer], float]:
    """Answers one at a time; those of all at once, and the seconds that these took together.

    Every request has its own picture, so that none is answered from a cache.
    """
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
        raise ServerError(f"{len(failed)} of {requests} requests failed, the first of them: {failed[0]!r}")
    return alone, done, seconds


async def _ask(session: aiohttp.ClientSession, picture: str) -> Answer:
    """QUESTION about a picture, given as a data URL.

    Raises:
        ServerError: for a request that is refused or breaks off.
    """
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": QUESTION}]
    body = {
        "model": "tiny",
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
                raise ServerError(f"status {answer.status}, {(await answer.text())[:500]}")
            async for line in answer.content:
                _, _, data = line.decode().partition("data: ")
                told = json.loads(data) if data.startswith("{") else {}
                if "error" in told:
                    raise ServerError(f"an answer ended with {told['error']}")
                for choice in told.get("choices", ()):
                    text += choice["delta"].get("content") or ""
                    if choice.get("token_ids") and not first:
                        first = 1e3 * (time.perf_counter() - start)
                usage = told.get("usage") or usage
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise ServerError(f"a request broke off: {error!r}") from error
    if usage is None or usage["completion_tokens"] != GENERATED:
        raise ServerError(f"an answer of {GENERATED} tokens was expected, got {text!r}, {usage}")
    whole = 1e3 * (time.perf_counter() - start)
    return Answer(text, usage["prompt_tokens"], first, whole)


def _picture(seed: int) -> str:
    """Soft patches of colour, as the data URL of a PNG."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _served(run: record.Run, keep: float, alone: list[Answer], load: list[Answer], seconds: float) -> Served:
    """seconds: from the first request of the load to the last answer."""
    first, whole = ([answer.first for answer in load], [answer.whole for answer in load])
    return Served(
        **asdict(run),
        vllm=importlib.metadata.version("vllm"),
        keep=keep,
        requests=len(load),
        prompt=alone[0].prompt,
        alone_first_ms=rounded(median(answer.first for answer in alone)),
        requests_s=rounded(len(load) / seconds),
        tokens_s=rounded(GENERATED * len(load) / seconds),
        first_50_ms=rounded(median(first)),
        first_95_ms=rounded(float(np.percentile(first, 95))),
        whole_50_ms=rounded(median(whole)),
        whole_95_ms=rounded(float(np.percentile(whole, 95))),
    )


def _report(dense: Served, pruned: Served, texts: list[str]) -> None:
    shown = {
        "prompt": "prompt, tokens",
        "alone_first_ms": "alone: first token, ms",
        "requests_s": "load: requests a second",
        "tokens_s": "load: generated tokens a second",
        "first_50_ms": "load: first token, median, ms",
        "first_95_ms": "load: first token, 95th percentile, ms",
        "whole_50_ms": "load: whole request, median, ms",
        "whole_95_ms": "load: whole request, 95th percentile, ms",
    }
    print(f"\n{'':42}{'all tokens':>12}{f'keep {pruned.keep:g}':>12}{'all / kept':>12}")
    for name, what in shown.items():
        whole, kept = getattr(dense, name), getattr(pruned, name)
        print(f"{what:42}{whole:>12g}{kept:>12g}{whole / kept:>12.2f}")
    for label, text in zip(("all tokens", f"keep {pruned.keep:g}"), texts, strict=True):
        print(f"answer, {label}: {text!r}")
    print(f"\nalone: one question at a time, median of {ALONE} after {WARM_UP}, each with its own picture")
    print(f"load: {dense.requests} requests at once, each with its own picture, {GENERATED} new tokens; none failed")
    print("The weights are random, the vision tower is tiny: the answers mean nothing, and the ratios flatter pruning.")
    print(f"{dense.machine}, {dense.threads} threads, torch {dense.torch}, vLLM {dense.vllm}, {record.versions()}")
    print(f"commit {dense.commit}, {dense.date}, by `{dense.command}`")


if __name__ == "__main__":
    sys.exit(main())
