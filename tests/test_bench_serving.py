"""The table of docs/serving.md: the last run, pruned beside whole."""

from bench.pages import serving
from bench.pages.markdown import NONE
from bench.serving.served import Served


def served(date: str, keep: float, prompt: int, first: float, requests_s: float) -> Served:
    run = {"commit": "c", "command": "d", "machine": "m", "device": "cpu", "threads": 2, "torch": "2", "vllm": "0.32"}
    load = {"requests": 8, "requests_s": requests_s, "tokens_s": 1, "first_50_ms": 4e3, "first_95_ms": 8e3}
    load |= {"whole_50_ms": 5e3, "whole_95_ms": 9e3}
    return Served(date, **run, keep=keep, prompt=prompt, alone_first_ms=first, **load)


def test_the_last_run_is_shown():
    rows = [
        served("2026-01-01", 0.5, 9, 9, 9),
        served("2026-01-02", 1.0, 600, 700, 2),
        served("2026-01-02", 0.25, 150, 200, 5),
    ]
    text = serving.block(rows)
    assert "| prompt, tokens | 600 | **150** | 4 |" in text
    assert "| one at a time: first token, ms | 700 | **200** | 3.5 |" in text
    assert "| 8 at once: requests a second | 2 | **5** | 2.5 |" in text
    assert "| 8 at once: first token, median (95th percentile), s | 4 (8) | **4** (8) | 1 (1) |" in text
    assert "vLLM 0.32, 2 threads, m, torch 2, commit c, 2026-01-02, by `d`." in text


def test_nothing_is_measured():
    assert serving.block([]) == NONE
