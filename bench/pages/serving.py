"""The table of vLLM with all of an image's tokens and with a share of them, in the last run."""

from collections.abc import Iterable

from bench.serving.served import Served

from .markdown import NONE, made, short, table

IN_BRACKETS = "median (95th percentile), s"


def block(rows: list[Served]) -> str:
    """Figures as rows: all tokens, pruned, and how many times better that is."""
    if not rows:
        return NONE
    pruned, whole = sorted((row for row in rows if row.date == rows[-1].date), key=lambda row: row.keep)
    together = f"{pruned.requests} at once:"
    lines = [
        _line("prompt, tokens", whole, pruned, "prompt"),
        _line("one at a time: first token, ms", whole, pruned, "alone_first_ms"),
        _line(f"{together} requests a second", whole, pruned, "requests_s", more=True),
        _line(f"{together} first token, {IN_BRACKETS}", whole, pruned, "first_50_ms", "first_95_ms", unit=1e3),
        _line(f"{together} whole request, {IN_BRACKETS}", whole, pruned, "whole_50_ms", "whole_95_ms", unit=1e3),
    ]
    head = ("", "all tokens", f"`keep` {pruned.keep:g}", "ratio")
    return f"{table(head, lines)}\n\nvLLM {pruned.vllm}, {pruned.threads} threads, {made(pruned, whole)}"


def _line(what: str, whole: Served, pruned: Served, *names: str, unit: float = 1, more: bool = False) -> list[str]:
    """A figure, maybe others in brackets. unit: what they are divided by; more: the larger is the better."""
    pairs = [(getattr(whole, name) / unit, getattr(pruned, name) / unit) for name in names]
    ratios = [float(f"{b / a if more else a / b:.2g}") for a, b in pairs]
    before, after = zip(*pairs, strict=True)
    return [what, _in_brackets(before), _in_brackets(after, "**"), _in_brackets(ratios)]


def _in_brackets(values: Iterable[float], mark: str = "") -> str:
    first, *others = map(short, values)
    return f"{mark}{first}{mark}" + "".join(f" ({value})" for value in others)
