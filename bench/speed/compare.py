"""Two result files, old and new: what got worse. The exit status is 1 if anything did.

Latency: what counts is the ratio of a competitor to plain PyTorch *in the same run* (the machine's mood cancels). It is
worse where the intervals don't overlap: p20 / p80 of the new one lies above p80 / p20 of the old one. Instruction
counts have no noise: worse is a rise of more than 1 %, on the same compiler.
"""

import argparse
import sys
from pathlib import Path

from bench import record
from bench.competitors import BASELINE, COMPETITORS, OURS

from .instructions import Count
from .rows import Row, full_name, newest

RISE = 1.01  # a library's copy or logarithm may differ by this much from one processor to the next


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m bench compare`."""
    parser.add_argument("old", type=Path, help="results of a run, or of instructions")
    parser.add_argument("new", type=Path, help="the same kind of file")


def main(options: argparse.Namespace) -> int:
    """Prints what both files have, line by line; 1 if something got worse, 2 if they can't be compared."""
    try:
        kind: type = Count if record.holds(options.old, Count) else Row
        old: list = record.read(options.old, kind)
        new: list = record.read(options.new, kind)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    lines = compare_counts(old, new) if kind is Count else compare_latency(old, new)
    if not lines:
        print("nothing in common: expected the same machine, cases and competitors in both files", file=sys.stderr)
        return 2
    for text, worse in lines:
        print(f"{'WORSE  ' if worse else '       '}{text}")
    for text in missing(old, new, kind):
        print(f"MISSING {text}: in the old file only")
    return int(any(worse for _, worse in lines))


def missing(old: list, new: list, kind: type) -> list[str]:
    """What the old file has and the new one has not."""
    names = ("workload", "isa", "compiler") if kind is Count else ("case", "competitor", "mode")
    before, after = ([tuple(getattr(record, name) for name in names) for record in kept] for kept in (old, new))
    return [", ".join(key) for key in dict.fromkeys(before) if key not in after]


def compare_latency(old: list[Row], new: list[Row]) -> list[tuple[str, bool]]:
    """(line, whether it got worse) for our backends in each case that both runs have, on one machine."""
    before, after = newest(old), newest(new)
    lines = []
    for key, row in after.items():
        base = after.get((row.case, BASELINE, row.mode))
        past, past_base = before.get(key), before.get((row.case, BASELINE, row.mode))
        known = COMPETITORS.get(row.competitor)
        if known is None or known.family != OURS or base is None or past is None or past_base is None:
            continue
        if (row.machine, row.threads, row.dtype) != (past.machine, past.threads, past.dtype):
            continue
        was, now = past.p50_ms / past_base.p50_ms, row.p50_ms / base.p50_ms
        worse = row.p20_ms / base.p80_ms > past.p80_ms / past_base.p20_ms
        lines.append((f"{row.case:24}{full_name(row):24} x plain: {was:.3f} -> {now:.3f}", worse))
    return lines


def compare_counts(old: list[Count], new: list[Count]) -> list[tuple[str, bool]]:
    """(line, whether it got worse) for each workload that both files have, of one compiler."""
    before = {(count.workload, count.isa, count.compiler): count for count in old}
    after = {(count.workload, count.isa, count.compiler): count for count in new}
    lines = []
    for key in after.keys() & before.keys():
        was, now = before[key].instructions, after[key].instructions
        lines.append((f"{key[0]:32}{was:16,} -> {now:16,}  ({now / was - 1:+.2%})", now > RISE * was))
    return sorted(lines)
