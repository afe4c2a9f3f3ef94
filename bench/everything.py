"""All of it: run, histograms, robustness, instructions, guesses, then pictures and tables from what was kept."""

import argparse
import sys

from . import record, robustness
from .pages import plot
from .speed import guess, histogram, instructions, run


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench all`: those of the run."""
    run.add_options(parser)


def main(options: argparse.Namespace) -> int:
    """The first exit status that is not 0. Where a part fails, the others go on.

    The checkout's documents show what is in its own folder of results: with another `--out` nothing is plotted.
    """
    options.results = options.out
    statuses = [part.main(options) for part in (run, histogram, robustness, instructions, guess)]
    if options.out.resolve() == record.RESULTS.resolve():
        statuses.append(plot.main(options))
    else:
        hint = f"python -m bench plot --results {options.out} --root FOLDER"
        print(f"not plotted, as the results are not in {record.RESULTS}: {hint}", file=sys.stderr)
    return next((status for status in statuses if status != 0), 0)
