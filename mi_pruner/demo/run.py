"""The `demo` command: questions about a picture, answered with all visual tokens and with the pruned ones."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from .. import mi_scores, prune
from .._errors import InputError
from ..command_input import check_out, read_keep
from ..viz import Selection, save_selections
from .checkpoint import load_model, pixels_of
from .input import chosen_scene, read_picture, truth
from .model import TOKENS, DigitVLM
from .scenes import GRID, Scene
from .vocabulary import WORDS, encode_question

_RUNS = 30  # timed runs of each part, of which the medians are shown
_WARM_UP = 3
_LARGE_DECODER = 7e9  # weights of a common large decoder, to compare this one with


@dataclass(frozen=True)
class Reading:
    """A question and what came of it. scores: (81,); kept: the K indices; times in milliseconds."""

    question: str
    dense_answer: str
    pruned_answer: str
    scores: np.ndarray
    kept: list[int]
    dense_ms: float
    pruned_ms: float
    selection_ms: float

    @property
    def share(self) -> float:
        """Of the selection in the time of selection and decoder."""
        return self.selection_ms / (self.selection_ms + self.pruned_ms)


def run_demo(questions: list[str] | None, keep: str, image: Path | None, seed: int | None, out: Path) -> None:
    """Answers, prints the answers and the times, and writes the picture to `out`.

    Raises:
        InputError: for an image, question, keep or output file that cannot be used.
    """
    kept = read_keep(keep, TOKENS)
    check_out(out)
    if image is not None and seed is not None:
        raise InputError("--seed: chooses a generated scene, and --image asks for none: give one of them")
    questions = [" ".join(question.split()) for question in questions or []]
    for question in questions:
        encode_question(question)  # complains before anything slow happens
    scene: Scene | None = None
    if image is None:
        scene, questions = chosen_scene(questions, seed)
        picture = scene.pixels
    else:
        picture = read_picture(image)
        questions = questions or ["what digit is red", "how many digits are there"]
    model, _ = load_model()
    with torch.inference_mode(), _one_thread():
        visual = model.encode_image(pixels_of(picture)[None])
        readings = [read(model, visual, question, kept) for question in questions]
    _report_answers(readings, scene)
    _report_times(readings, sum(value.numel() for value in model.decoder.parameters()))
    _draw(readings, scene, picture, out)
    print(f"\npicture: {out.resolve()}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """For steps of a millisecond: more threads would mostly wait for each other, and blur the times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read(model: DigitVLM, visual: Tensor, question: str, keep: int | float) -> Reading:
    """Answers one question about visual tokens (1, 81, WIDTH) with all of them and with those kept."""
    text = model.embed_text(torch.tensor([encode_question(question)]))
    everywhere = torch.arange(TOKENS)[None]
    tokens, indices, _ = prune(visual, text, keep)
    (dense, dense_ms), (pruned, pruned_ms), (_, selection_ms) = _timed(
        lambda: model.answer(visual, everywhere, text),
        lambda: model.answer(tokens, indices, text),
        lambda: prune(visual, text, keep)[0],
    )
    return Reading(
        question=question.rstrip(" ?"),
        dense_answer=WORDS[int(dense.argmax())],
        pruned_answer=WORDS[int(pruned.argmax())],
        scores=mi_scores(visual, text)[0].numpy(),
        kept=indices[0].tolist(),
        dense_ms=dense_ms,
        pruned_ms=pruned_ms,
        selection_ms=selection_ms,
    )


def _timed(*parts: Callable[[], Tensor]) -> list[tuple[Tensor, float]]:
    """Result and median milliseconds of each part; the parts take turns, so that a disturbance meets them all."""
    results = [part() for part in parts]
    times: list[list[float]] = [[] for _ in parts]
    for turn in range(_WARM_UP + _RUNS):
        for part, of_part in zip(parts, times, strict=True):
            start = time.perf_counter()
            part()
            if turn >= _WARM_UP:
                of_part.append(1e3 * (time.perf_counter() - start))
    return [(result, median(of_part)) for result, of_part in zip(results, times, strict=True)]


def _report_answers(readings: list[Reading], scene: Scene | None) -> None:
    if scene is None:
        print("The model knows only coloured digits: on another picture its answers mean little.")
    for reading in readings:
        print(f"\n{reading.question}?")
        for label, answer in _answers(reading, scene).items():
            print(f"  {label:>13}: {answer}")


def _answers(reading: Reading, scene: Scene | None) -> dict[str, str]:
    """The answers to a question and, in a generated scene, the truth."""
    answers = {f"all {TOKENS} tokens": reading.dense_answer, f"{len(reading.kept)} tokens": reading.pruned_answer}
    return answers if scene is None else {**answers, "the truth": truth(scene, reading.question)}


def _report_times(readings: list[Reading], weights: int) -> None:
    """weights: how many the decoder has."""
    dense, pruned, selection, share = (
        median(getattr(reading, part) for reading in readings)
        for part in ("dense_ms", "pruned_ms", "selection_ms", "share")
    )
    print(f"\n{'':8}{'tokens':>8}{'decoder':>12}{'selection':>12}{'its share':>12}")
    print(f"{'all':8}{TOKENS:8d}{dense:9.2f} ms{'-':>12}{'-':>12}")
    print(f"{'pruned':8}{len(readings[0].kept):8d}{pruned:9.2f} ms{selection:9.2f} ms{share:12.0%}")
    larger = round(_LARGE_DECODER / weights, -3)
    print(f"Medians of {_RUNS} runs on one CPU thread. A decoder of {weights / 1e6:.2f} M weights is tiny: one of")
    print(f"7 B has {larger:,.0f} times as many, so there the selection's share is far smaller.")


def _draw(readings: list[Reading], scene: Scene | None, picture: np.ndarray, out: Path) -> None:
    selections = [
        Selection(
            title=f"{reading.question}?",
            subtitle="   ·   ".join(f"{label}: {answer}" for label, answer in _answers(reading, scene).items()),
            picture=picture,
            scores=reading.scores,
            kept=reading.kept,
            grid=(GRID, GRID),
        )
        for reading in readings
    ]
    try:
        save_selections(selections, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; pass another file with --out") from error
