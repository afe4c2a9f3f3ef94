"""``python -m bench``: the benchmarks. Without a command: measures the competitors on each case."""

import argparse
import importlib
import sys

COMMANDS = {  # name -> (module, what it does); imported when called: a run needs no matplotlib
    "run": ("speed.run", "measure the competitors on each case (the default)"),
    "robustness": ("robustness", "what each competitor does with duplicates, batches and padding"),
    "histogram": ("speed.histogram", "the histogram estimator against plain PyTorch"),
    "instructions": ("speed.instructions", "instructions that the CPU kernels execute, by valgrind"),
    "guess": ("speed.guess", "how many rows a selection computes for a pick, guessed by gain and by a draft"),
    "waits": ("speed.waits", "how long a selection on rows waits for them on a GPU, simulated"),
    "repeats": ("repeats", "which cosine makes a token of a video a repeat: thresholds, on videos of each kind"),
    "host": ("speed.host", "what a call costs beside its work, in times of a layer_norm"),
    "busy": ("speed.busy", "on a CPU: what a call takes alone, and beside busy processes"),
    "machine-code": ("speed.machine_code", "what a turn of the CUDA kernels' loops costs, from their machine code"),
    "goals": ("speed.goals", "on a GPU: the performance goals, a line each, and the time of every kernel"),
    "smoke": ("smoke", "on a GPU: one way through the kernels against the reference"),
    "prefill": ("speed.prefill", "on a GPU: a decoder stack of each model's size, all tokens against the kept ones"),
    "shared": ("speed.shared", "on a GPU: what a call takes alone, beside a busy process, and under MPS"),
    "photographs": ("photographs.make", "make anew the features of photographs that some cases have"),
    "plot": ("pages.plot", "draw the pictures, and fill the tables of docs/ and README.md"),
    "compare": ("speed.compare", "two result files: what got worse beyond the spread"),
    "all": ("everything", "run, histogram, robustness, instructions, guess, plot"),
}


def main(arguments: list[str] | None = None) -> int:
    """Calls the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    if not arguments or (arguments[0] not in COMMANDS and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        if arguments[0] == name:
            importlib.import_module(f"bench.{module}").add_options(command)
    options = parser.parse_args(arguments)
    return importlib.import_module(f"bench.{COMMANDS[options.command][0]}").main(options)


if __name__ == "__main__":
    sys.exit(main())
