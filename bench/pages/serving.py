"""The table of vLLM with all of an image's tokens and with a share of them, in the last run."""

from bench.serving.served import Served

from .markdown import NONE, made, short, table


def block(rows: list[Served]) -> str:
    """Figures as rows: all tokens, pruned, and how many times better that is."""
    if not rows:
        return NONE
    pruned, whole = sorted((row for row in rows if row.date == rows[-1].date), key=lambda row: row.keep)
    together = f"{pruned.requests} at once:"
    lines = [
        _line("prompt, tokens", [whole.prompt], [pruned.prompt]),
        _line("one at a time: first token, ms", [whole.alone_first_ms], [pruned.alone_first_ms]),
        _line(f"{together} requests a second", [whole.requests_s], [pruned.requests_s], more=True),
        _line(f"{together} first token, median (95th percentile), s", _first(whole), _first(pruned)),
        _line(f"{together} whole request, median (95th percentile), s", _whole(whole), _whole(pruned)),
    ]
    head = ("", "all tokens", f"`keep` {pruned.keep:g}", "ratio")
    return f"{table(head, lines)}\n\nvLLM {pruned.vllm}, {pruned.threads} threads, {made(pruned, whole)}"


def _first(row: Served) -> list[float]:
    return [row.first_50_ms / 1e3, row.first_95_ms / 1e3]


def _whole(row: Served) -> list[float]:
    return [row.whole_50_ms / 1e3, row.whole_95_ms / 1e3]


def _line(what: str, whole: list[float], pruned: list[float], more: bool = False) -> list[str]:
    """One figure or a figure and its percentile; more: the larger is the better."""
    ratios = [b / a if more else a / b for a, b in zip(whole, pruned, strict=True)]
    return [what, _in_brackets(whole), _in_brackets(pruned, "**"), _in_brackets([float(f"{r:.2g}") for r in ratios])]


def _in_brackets(values: list[float], mark: str = "") -> str:
    first, *others = map(short, values)
    return f"{mark}{first}{mark}" + "".join(f" ({value})" for value in others)
