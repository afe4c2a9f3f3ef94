"""What is left of a real checkpoint's answers when its visual tokens are pruned: your pictures, your questions.

    python -m bench.quality.checkpoint --model ID_OR_PATH --data FOLDER --keep 0.5 0.25 0.1 --out results.csv

FOLDER holds pictures and questions.json: [{"image": "a.jpg", "question": "...", "answer": "..." or ["...", ...]}, ...].
An answer is exact if it is one of the given ones, letters' case, punctuation and articles aside; it contains the truth
if the words of one of them stand in it. "same as dense" needs no truth: the share of answers that pruning left alone.
"""

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from bench.quality.selectors import selectors
from bench.record import this_run
from mi_pruner._errors import InputError
from mi_pruner.command_input import open_picture, read_keep
from mi_pruner.integrations.checkpoint import Checkpoint, load_checkpoint
from mi_pruner.integrations.transformers import encode_inputs, rewrite_inputs

_BRIEF = "Answer the question using a single word or phrase."  # LLaVA's, for short answers


@dataclass(frozen=True)
class Question:
    """A question about a picture, and its accepted answers."""

    image: Path
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """Of one selector at one keep, over `questions` questions; shares in 0 .. 1, tokens and times are means."""

    selector: str
    keep: str
    questions: int
    exact: float
    contains: float
    same_as_dense: float
    visual_tokens: float
    prompt_tokens: float
    answer_ms: float  # selection, prefill and decoding; not the vision encoder


@dataclass(frozen=True)
class _Answer:
    text: str
    visual_tokens: int
    prompt_tokens: int
    milliseconds: float


def read_questions(folder: Path) -> list[Question]:
    """The questions of FOLDER/questions.json.

    Raises:
        InputError: for a file that is absent or of another form, or a picture that is absent or cannot be read.
    """
    path = folder / "questions.json"
    form = '[{"image": "a.jpg", "question": "...", "answer": "..." or ["...", ...]}, ...]'
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        made = [
            Question(
                folder / entry["image"],
                entry["question"],
                (entry["answer"],) if isinstance(entry["answer"], str) else tuple(map(str, entry["answer"])),
            )
            for entry in entries
        ]
    except OSError as error:
        raise InputError(f"--data: cannot read {path}: {error.strerror}; expected {form}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--data: {path}: expected {form}, got {type(error).__name__}: {error}") from error
    absent = [question.image for question in made if not question.image.is_file()]
    if absent or not made:
        raise InputError(f"--data: no picture {absent[0]}" if absent else f"--data: no questions in {path}")
    for image in dict.fromkeys(question.image for question in made):
        open_picture(image, "--data")
    return made


def evaluate(
    checkpoint: Checkpoint, questions: Sequence[Question], keeps: Sequence[str], brief: str, new_tokens: int
) -> list[Figures]:
    """Every selector at every keep; the vision encoder runs once for each question."""
    jobs = [("dense", "1.0"), *((name, keep) for keep in keeps for name in selectors(read_keep(keep), 0))]
    answers: dict[tuple[str, str], list[_Answer]] = {job: [] for job in jobs}
    for number, question in enumerate(tqdm(questions, unit="question")):
        for job, answer in zip(jobs, _answers(checkpoint, question, number, jobs, brief, new_tokens), strict=True):
            answers[job].append(answer)
    return [_figures(name, keep, answers[name, keep], answers[jobs[0]], questions) for name, keep in jobs]


def _answers(
    checkpoint: Checkpoint, question: Question, number: int, jobs: list[tuple[str, str]], brief: str, new_tokens: int
) -> list[_Answer]:
    """The answer of each job, a selector and its keep."""
    try:
        encoded, scored = _asked(checkpoint, question, brief)
        if number == 0:  # the first generation pays for caches
            _answer(checkpoint, encoded, scored, "dense", 1.0, number, new_tokens)
        return [_answer(checkpoint, encoded, scored, name, read_keep(keep), number, new_tokens) for name, keep in jobs]
    except (ValueError, TypeError) as error:
        raise InputError(f"question {number + 1} ({question.image}, {question.text!r}): {error}") from error


def _asked(checkpoint: Checkpoint, question: Question, brief: str) -> tuple[dict[str, Any], torch.Tensor]:
    """The encoded inputs, and the mask (1, L) of what is scored: the question, without the brief that follows it."""
    picture = open_picture(question.image, "--data")
    inputs = checkpoint.ask(picture, f"{question.text}\n{brief}".strip())
    ids, alone = inputs["input_ids"], checkpoint.ask(picture, question.text)["input_ids"]
    length = min(ids.shape[1], alone.shape[1])
    same = torch.zeros_like(ids, dtype=torch.bool)
    same[:, :length] = (ids[:, :length] == alone[:, :length]).cumprod(1).bool()
    place = torch.arange(ids.shape[1], device=ids.device)
    last_visual = place[(ids == checkpoint.model.config.image_token_id)[0]].amax()
    return encode_inputs(checkpoint.model, inputs), same & (place > last_visual)


def _answer(
    checkpoint: Checkpoint,
    encoded: dict[str, Any],
    scored: torch.Tensor,
    name: str,
    keep: int | float,
    seed: int,
    new_tokens: int,
) -> _Answer:
    start = time.perf_counter()
    inputs, kept = encoded, int((encoded["input_ids"] == checkpoint.model.config.image_token_id).sum())
    if name != "dense":
        select = selectors(keep, seed)[name]
        inputs = rewrite_inputs(
            checkpoint.model, encoded, keep, select, processor=checkpoint.processor, text_mask=scored
        )
        kept = sum(len(image.rows) for image in inputs.images)
    prompt = inputs["input_ids"].shape[1]
    made = checkpoint.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0, prompt:].tolist()
    milliseconds = 1e3 * (time.perf_counter() - start)
    tokenizer = getattr(checkpoint.processor, "tokenizer", checkpoint.processor)
    return _Answer(tokenizer.decode(made, skip_special_tokens=True), kept, prompt, milliseconds)


def plain(text: str) -> str:
    """Lower case, without punctuation and articles: what answers are compared in."""
    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the"))


def _contains(answer: str, truth: str) -> bool:
    return f" {plain(truth)} " in f" {plain(answer)} "


def _figures(
    name: str, keep: str, answers: list[_Answer], dense: list[_Answer], questions: Sequence[Question]
) -> Figures:
    pairs = list(zip(answers, questions, strict=True))
    return Figures(
        selector=name,
        keep=keep,
        questions=len(answers),
        exact=fmean(any(plain(a.text) == plain(truth) for truth in q.answers) for a, q in pairs),
        contains=fmean(any(_contains(a.text, truth) for truth in q.answers) for a, q in pairs),
        same_as_dense=fmean(plain(a.text) == plain(d.text) for a, d in zip(answers, dense, strict=True)),
        visual_tokens=fmean(answer.visual_tokens for answer in answers),
        prompt_tokens=fmean(answer.prompt_tokens for answer in answers),
        answer_ms=fmean(answer.milliseconds for answer in answers),
    )


def _print_table(rows: list[Figures]) -> None:
    names = [field.name for field in fields(Figures)]
    print(" ".join(f"{name:>{max(9, len(name))}}" for name in names))
    for row in rows:
        cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in astuple(row))
        print(" ".join(f"{cell:>{max(9, len(name))}}" for cell, name in zip(cells, names, strict=True)))


def _write(rows: list[Figures], path: Path, model: str, device: str) -> None:
    """The figures with what made them: date, commit, machine, versions, command, checkpoint."""
    origin = {**asdict(this_run(device, "bench.quality.checkpoint")), "model": model}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(field.name for field in fields(Figures)), *origin])
        writer.writeheader()
        for row in rows:
            figures = {name: f"{v:.4f}" if isinstance(v, float) else v for name, v in asdict(row).items()}
            writer.writerow({**figures, **origin})


def _check_options(options: argparse.Namespace) -> None:
    """Refuses, before the run of hours, what would fail in it or after it."""
    if options.new_tokens < 1:
        raise InputError(f"--new-tokens: expected at least 1, got {options.new_tokens}")
    if options.out is not None:
        try:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            absent = not options.out.exists()
            options.out.open("a").close()
            if absent:
                options.out.unlink()
        except OSError as error:
            raise InputError(f"--out: cannot write {options.out}: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or an id on the hub")
    parser.add_argument("--data", required=True, type=Path, help="the folder of pictures and questions.json")
    parser.add_argument("--keep", nargs="+", default=["0.5", "0.25", "0.1"], help="ratios, or counts")
    parser.add_argument(
        "--brief", default=_BRIEF, help="added to every question, and not scored (default: %(default)s)"
    )
    parser.add_argument("--new-tokens", type=int, default=16, help="the longest answer (default: %(default)s)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    options = parser.parse_args(arguments)
    try:
        _check_options(options)
        questions = read_questions(options.data)
        for keep in options.keep:
            read_keep(keep)
        checkpoint = load_checkpoint(options.model, options.device)
        with torch.inference_mode():
            rows = evaluate(checkpoint, questions, options.keep, options.brief, options.new_tokens)
    except InputError as error:
        print(f"bench.quality.checkpoint: {error}", file=sys.stderr)
        return 2
    _print_table(rows)
    if options.out is not None:
        _write(rows, options.out, options.model, checkpoint.model.device.type)
    return 0


if __name__ == "__main__":
    sys.exit(main())
