"""How tables and figures are written in Markdown."""

from collections.abc import Iterable

from bench import record

NONE = "*Not measured yet.*"


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(header)
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines)])


def ms(value: float) -> str:
    """Milliseconds to three digits."""
    digits = 2 if value < 1 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """A share to two digits."""
    return f"{100 * share:.2g} %"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def made(*runs: record.Run) -> str:
    """Where a record is from, or one of several runs on a machine."""
    runs = tuple(sorted(runs, key=lambda run: run.date))
    last = runs[-1]
    commits, days, commands = (
        " and ".join(dict.fromkeys(parts))
        for parts in zip(*((run.commit, run.date[:10], f"`{run.command}`") for run in runs), strict=True)
    )
    return f"{last.machine}, torch {last.torch}, commit {commits}, {days}, by {commands}."
