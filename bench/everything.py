"""All of it: the run, the robustness table, instruction counts, then pictures and tables from what was kept."""

import argparse

from . import instructions, plot, robustness, run


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench all`: those of the run."""
    run.add_options(parser)


def main(options: argparse.Namespace) -> int:
    """The first exit status that is not 0."""
    options.results = options.out
    for part in (run, robustness, instructions, plot):
        status = part.main(options)
        if status != 0:
            return status
    return 0
