"""Draws the pictures, and fills the tables of the documents, from what is kept in bench/results.

A file holds blocks between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what stands between them is replaced, so
no number there is typed by hand. A block without figures says so.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import goals, instructions, pictures, prefill, record, robustness, tables
from .rows import Row

DOCUMENTS = ("docs/benchmarks.md", "docs/kernels.md", "docs/kernels-cuda.md", "README.md")
PICTURES = "docs/images"


@dataclass(frozen=True)
class Kept:
    """Everything in a folder of results; of latencies, those of the machine of each device that was measured last."""

    rows: dict[str, list[Row]]  # device -> rows
    verdicts: list[robustness.Verdict]
    counts: list[instructions.Count]
    prefills: list[prefill.Prefill]
    figures: list[goals.Figure]
    kernels: list[goals.KernelTime]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench plot`."""
    where = "default: bench/results"
    parser.add_argument("--results", type=Path, default=record.RESULTS, metavar="FOLDER", help=where)
    parser.add_argument("--root", type=Path, default=record.ROOT, help="of the checkout whose documents are filled")


def main(options: argparse.Namespace) -> int:
    """Writes pictures and documents; 2 if matplotlib or a document is missing."""
    root = getattr(options, "root", record.ROOT)
    kept = read(options.results)
    try:
        drawn = pictures.draw(kept.rows, kept.prefills, root / PICTURES)
        blocks = tables.blocks(kept, drawn)
        for name in DOCUMENTS:
            path = root / name
            path.write_text(fill(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
            print(f"filled {path}")
    except (ImportError, OSError, ValueError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(f"drew {path}")
    return 0


def read(folder: Path) -> Kept:
    """All results of a folder; files with other columns are passed over."""
    rows: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("*.csv")):
        found = record.read(path, Row) if record.holds(path, Row) else []
        if found:
            device = found[0].device
            if device not in rows or rows[device][-1].date < found[-1].date:
                rows[device] = found
    return Kept(
        rows,
        _records(folder / robustness.FILE, robustness.Verdict),
        _records(folder / instructions.FILE, instructions.Count),
        _records(folder / prefill.FILE, prefill.Prefill),
        _records(folder / goals.FILE, goals.Figure),
        _records(folder / goals.KERNELS_FILE, goals.KernelTime),
    )


def _records(path: Path, of: type) -> list[Any]:
    return record.read(path, of) if path.exists() else []


def fill(text: str, blocks: dict[str, str], prefix: str = "bench") -> str:
    """The document with its blocks of this prefix replaced.

    Raises:
        ValueError: for a block of a name that no one fills.
    """

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name not in blocks:
            raise ValueError(f"block {name}: expected one of {', '.join(blocks)}")
        return f"<!-- {prefix}:{name} -->\n{blocks[name].strip()}\n<!-- /{prefix}:{name} -->"

    pattern = rf"<!-- {prefix}:([\w-]+) -->.*?<!-- /{prefix}:\1 -->"
    return re.sub(pattern, replacement, text, flags=re.DOTALL)
