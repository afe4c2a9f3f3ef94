"""Draws the pictures, and fills the tables of the documents, from what is kept in bench/results.

A block without figures says so.
"""

import argparse
import sys
from pathlib import Path

from bench import record

from . import documents, drawing, pictures, tables
from .kept import read

PAGES = ("benchmarks", "backends", "kernels", "kernels-cuda", "quality", "serving")
DOCUMENTS = (*(f"docs/{page}.md" for page in PAGES), "README.md")


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
        drawn = pictures.draw(kept.rows, kept.prefills, root / drawing.FOLDER)
        documents.fill_files(root, DOCUMENTS, tables.blocks(kept, drawn), "bench")
    except (ImportError, OSError, ValueError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    for path in drawn:
        print(f"drew {path}")
    return 0
