"""`vllm serve` with the flag, asked over HTTP: counts, answers, budgets by request, errors for one request alone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from .engines import KEEP, Case, picture, reference

QUESTION = "what is the woman wearing?"
_SECONDS = 180  # for a server to start


class Server:
    def __init__(self, folder: Path, log: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", "32"]
        command += ["--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(1 << 26)]
        command += ["--served-model-name", "tiny", *flags]
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
            )

    def started(self) -> Server:
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                return self
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-3000:])

    def ask(self, images: int = 1, seed: int = 0, **body: object) -> tuple[int, dict]:
        shown = [{"type": "image_url", "image_url": {"url": _data_url(seed + n)}} for n in range(images)]
        content = [*shown, {"type": "text", "text": QUESTION}]
        said = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 8,
            "temperature": 0,
            "ignore_eos": True,
            **body,
        }
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(said).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def _data_url(seed: int) -> str:
    file = io.BytesIO()
    picture(seed, 84, 84).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    option = json.dumps({"mi_pruner": {"keep": KEEP}})
    log = tmp_path_factory.mktemp("server") / "log"
    started = Server(folders["llava"], log, "--hf-overrides", option, "--trust-request-mm-kwargs")
    try:
        yield started.started()
    finally:
        started.stop()


def test_answers_are_those_of_transformers(server, folders):
    truth = reference(folders["llava"])
    case = Case("user: ", f"<image>{QUESTION}", "\nassistant: ", [picture(0, 84, 84)])
    for keep in (KEEP, 0.1):
        want = truth(case, keep)
        for _ in range(2):  # the second from caches
            status, told = server.ask(mm_processor_kwargs={"mi_pruner": {"keep": keep}}, return_token_ids=True)
            assert status == 200, told
            assert told["prompt_token_ids"] == want.prompt
            assert told["choices"][0]["token_ids"] == want.tokens
            assert told["usage"]["prompt_tokens"] == len(want.prompt)


def test_a_wrong_request_fails_alone(server):
    for option, message in (
        ({"keep": 0.5}, "expected keep <= 0.25"),
        ({"keep": 0}, "expected keep to be a ratio in (0, 1], got 0"),
        ({"keep": 0.1, "min_gain": 1}, "expected no min_gain"),
        ("all", "expected an object"),
    ):
        status, told = server.ask(mm_processor_kwargs={"mi_pruner": option})
        assert status == 400, told
        assert f"mi_pruner: {message}" in told["error"]["message"]
    status, told = server.ask(images=60, seed=100)  # 540 tokens are left of 2,160, at positions up to them
    assert status == 400, told
    for seed in (0, 100):  # the server lives on, and has not forgotten which images it sent
        status, told = server.ask(seed=seed)
        assert status == 200, told


def test_a_wrong_option_ends_the_start(folders, tmp_path):
    failed = Server(folders["llava"], tmp_path / "log", "--hf-overrides", '{"mi_pruner": {"keep": 144}}')
    assert failed.process.wait(_SECONDS) != 0
    assert "mi_pruner: expected keep to be a ratio in (0, 1], got 144" in failed.log.read_text()
