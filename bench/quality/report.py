"""Draws the pictures, and fills the tables of docs/quality.md and README.md, from the CSV files of the study.

python -m bench.quality.report
"""

import argparse
from pathlib import Path

from bench import record
from bench.pages import documents, drawing
from bench.quality import pictures, tables
from bench.quality.study import Accuracy, Specificity

DOCUMENTS = ("docs/quality.md", "README.md")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the CSV files")
    parser.add_argument("--root", type=Path, default=record.ROOT, help="of the checkout whose documents are filled")
    options = parser.parse_args()
    main_rows = record.read_if_there(options.results / "quality-test-accuracy.csv", Accuracy)
    varied = record.read_if_there(options.results / "quality-dev-accuracy.csv", Accuracy)
    specificity = record.read_if_there(options.results / "quality-test-specificity.csv", Specificity)
    for path in pictures.draw(main_rows, varied, options.root / drawing.FOLDER):
        print(f"drew {path}")
    ideas = record.read_if_there(options.results / "quality-ideas-accuracy.csv", Accuracy)
    null_word = record.read_if_there(options.results / "quality-null-word-accuracy.csv", Accuracy)
    blocks = tables.blocks(main_rows, specificity, varied, ideas, null_word)
    documents.fill_files(options.root, DOCUMENTS, blocks, "quality")


if __name__ == "__main__":
    main()
