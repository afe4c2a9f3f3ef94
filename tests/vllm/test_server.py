"""`vllm serve` with the flag, asked over HTTP: counts, answers, budgets by request, errors for one request alone."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request

import pytest
from vllm_server import ServerError, serving

from .engines import KEEP, Case, picture, reference

QUESTION = "what is the woman wearing?"
FLAGS = ("--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 26))


def ask(server: str, images: int = 1, seed: int = 0, **body: object) -> tuple[int, dict]:
    """Status and answer."""
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
        f"{server}/v1/chat/completions", json.dumps(said).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _data_url(seed: int) -> str:
    file = io.BytesIO()
    picture(seed, 84, 84).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    option = json.dumps({"mi_pruner": {"keep": KEEP}})
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(folders["llava"], log, *FLAGS, "--hf-overrides", option, "--trust-request-mm-kwargs") as url:
        yield url


def test_answers_are_those_of_transformers(server, folders):
    truth = reference(folders["llava"])
    case = Case("user: ", f"<image>{QUESTION}", "\nassistant: ", [picture(0, 84, 84)])
    for keep in (KEEP, 0.1):
        want = truth(case, keep)
        for _ in range(2):  # the second from caches
            status, told = ask(server, mm_processor_kwargs={"mi_pruner": {"keep": keep}}, return_token_ids=True)
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
        status, told = ask(server, mm_processor_kwargs={"mi_pruner": option})
        assert status == 400, told
        assert f"mi_pruner: {message}" in told["error"]["message"]
    status, told = ask(server, images=60, seed=100)  # 540 tokens are left of 2,160, at positions up to them
    assert status == 400, told
    for seed in (0, 100):  # the server lives on, and has not forgotten which images it sent
        status, told = ask(server, seed=seed)
        assert status == 200, told


def test_a_wrong_option_ends_the_start(folders, tmp_path):
    option = '{"mi_pruner": {"keep": 144}}'
    message = r"it ended with status [1-9][\s\S]*mi_pruner: expected keep to be a ratio in \(0, 1\], got 144"
    with (
        pytest.raises(ServerError, match=message),
        serving(folders["llava"], tmp_path / "log", *FLAGS, "--hf-overrides", option),
    ):
        pass
