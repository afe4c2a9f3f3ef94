"""The command line: `python -m mi_pruner <command>`. What a command needs is imported only when it runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from ._errors import InputError

_BAD_INPUT = 2  # exit code
_EXTRAS = {  # module -> the extra that brings it
    "numpy": "demo",
    "PIL": "demo",
    "matplotlib": "demo",
    "safetensors": "demo",
    "sklearn": "demo",
    "transformers": "transformers",
}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 2 with one line on stderr for an input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _complain(f"{error.name} is not installed: pip install 'mi_pruner[{extra}]'")
    return 0


def _complain(message: str) -> int:
    print(f"mi_pruner: {message}", file=sys.stderr)
    return _BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mi_pruner", description="Prunes the visual tokens of multimodal language models.")
    parser.add_argument("--version", action="version", version=f"mi_pruner {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_explain(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[_Parser]") -> None:
    demo = commands.add_parser(
        "demo",
        help="a small vision-language model answers questions about a picture with pruned tokens",
        description="A small vision-language model answers questions about a picture, with all and with pruned tokens.",
    )
    demo.add_argument(
        "--text",
        action="append",
        metavar="QUESTION",
        help='the question, e.g. "what digit is red"; give it twice to compare two (default: two about the scene)',
    )
    demo.add_argument(
        "--keep",
        default="0.25",
        help="what to keep of the 81 visual tokens: a ratio such as 0.25 or a count such as 20 (default: %(default)s)",
    )
    demo.add_argument("--image", type=Path, metavar="FILE", help="your own picture (default: a generated scene)")
    demo.add_argument("--seed", type=int, help="of the scene (default: the first scene that fits the questions)")
    demo.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("mi_pruner_demo.png"), help="the PNG (default: %(default)s)"
    )
    demo.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> None:
    from .demo.run import run_demo

    run_demo(options.text, options.keep, options.image, options.seed, options.out)


def _add_explain(commands: "argparse._SubParsersAction[_Parser]") -> None:
    explain = commands.add_parser(
        "explain",
        help="which visual tokens of a picture or video a transformers model keeps for a question",
        description="Draws which visual tokens of a picture or video are kept for a question, and times the prefill.",
    )
    explain.add_argument("--model", required=True, metavar="ID_OR_PATH", help="a checkpoint that transformers loads")
    shown = explain.add_mutually_exclusive_group(required=True)
    shown.add_argument("--image", type=Path, metavar="FILE", help="the picture", action="append")
    shown.add_argument(
        "--video",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="the video's frames: a folder of pictures, in the order of their names, or an animation (GIF, WebP, PNG)",
        action="append",
    )
    explain.add_argument("--text", required=True, metavar="QUESTION", help="the question")
    explain.add_argument(
        "--keep",
        default="0.25",
        help="what to keep of the visual tokens: a ratio such as 0.25 or a count such as 144 (default: %(default)s)",
    )
    explain.add_argument("--device", help="where the model runs (default: cuda where there is one, else cpu)")
    explain.add_argument(
        "--out", type=Path, metavar="FILE", default=Path("mi_pruner_explain.png"), help="the PNG (default: %(default)s)"
    )
    explain.set_defaults(run=_run_explain)


def _run_explain(options: argparse.Namespace) -> None:
    from .integrations.explain import explain

    for option, what, given in (("--image", "picture", options.image), ("--video", "video", options.video)):
        if given and len(given) != 1:
            raise InputError(f"{option}: expected one {what}, got {len(given)}: explain them one by one")
    (path,) = options.video or options.image
    explain(options.model, path, options.text, options.keep, options.device, options.out, bool(options.video))
