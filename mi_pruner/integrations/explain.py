"""The `explain` command: which visual tokens of a picture or video a model keeps for a question, what that saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from .. import MIPruner
from .._errors import InputError
from ..command_input import Clip, check_out, open_clip, open_picture, read_keep
from ..viz import frames_figure, views_figure
from .checkpoint import Checkpoint, load_checkpoint
from .model_inputs import KeptImage, ModelInputs, PrunedInputs
from .transformers import encode_inputs, prune_inputs
from .views import image_views

_RUNS = 3  # timed runs of each part, of which the medians are shown; a large model's prefill on a CPU takes a minute


def explain(
    name: str, path: Path, question: str, keep: str, device: str | None, out: Path, video: bool = False
) -> None:
    """Prints tokens and times, and writes the picture to `out`; path: of a picture, or of a video (`open_clip`).

    Raises:
        InputError: for a checkpoint, picture, video, question, keep or output file that cannot be used.
    """
    shown = open_clip(path) if video else open_picture(path)
    check_out(out)
    if not question.strip():
        raise InputError("--text: the question is empty")
    pruner = MIPruner(keep=read_keep(keep))
    checkpoint = load_checkpoint(name, device, video)
    try:
        inputs = checkpoint.ask(shown, question)
        encoded = encode_inputs(checkpoint.model, inputs)
        pruned = prune_inputs(checkpoint.model, encoded, pruner, processor=checkpoint.processor)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: {error}") from error
    if len(pruned.images) != 1:
        raise InputError(f"{name}: expected one picture or video in the prompt, found {len(pruned.images)} images")
    (image,) = pruned.images
    print(f"{question}\n")
    if isinstance(shown, Clip):
        given = len(shown.frames)
        merged = "" if image.frames == given else f", merged to {image.frames} by the model"
        print(f"{given} frames{merged}; {int(image.repeats.sum())} of {image.tokens} tokens repeat an earlier frame\n")
    _report(checkpoint, encoded, pruned, pruner)
    width, height = shown.frames[0].size if isinstance(shown, Clip) else shown.size
    figure = _figure(checkpoint, inputs, image, (height, width), question)
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}; pass another file with --out") from error
    print(f"\npicture: {out.resolve()}")


def _report(checkpoint: Checkpoint, encoded: ModelInputs, pruned: PrunedInputs, pruner: MIPruner) -> None:
    """Tokens and times: dense and pruned prefill, and the selection between encoder and prefill."""
    model = checkpoint.model

    def prefill(inputs: ModelInputs) -> Callable[[], Any]:
        return lambda: model(**{**inputs, "use_cache": True}, logits_to_keep=1)

    with torch.inference_mode():
        dense_ms, pruned_ms, selection_ms = _timed(
            [
                prefill(encoded),
                prefill(pruned),
                lambda: prune_inputs(model, encoded, pruner, processor=checkpoint.processor),
            ],
            model.device,
        )
    (image,) = pruned.images
    lengths = [int(inputs["input_ids"].shape[1]) for inputs in (encoded, pruned)]
    print(f"{'':8}{'visual tokens':>15}{'prompt':>9}{'prefill':>14}{'selection':>14}{'its share':>11}")
    print(f"{'all':8}{image.tokens:15d}{lengths[0]:9d}{dense_ms:11.1f} ms{'-':>14}{'-':>11}")
    share = selection_ms / (selection_ms + pruned_ms)
    print(f"{'pruned':8}{len(image.rows):15d}{lengths[1]:9d}{pruned_ms:11.1f} ms{selection_ms:11.1f} ms{share:11.0%}")
    where = f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}"
    threads = f", {torch.get_num_threads()} threads" if model.device.type == "cpu" else ""
    print(f"Medians of {_RUNS} runs ({where}{threads}). Selection: choosing the tokens and rewriting the inputs;")
    print("the vision encoder, which both need, is not in these times.")


def _timed(parts: list[Callable[[], Any]], device: torch.device) -> list[float]:
    """Median milliseconds of each part; the parts take turns, so that a disturbance meets them all."""
    times: list[list[float]] = [[] for _ in parts]
    for turn in range(1 + _RUNS):
        for part, of_part in zip(parts, times, strict=True):
            start = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                of_part.append(1e3 * (time.perf_counter() - start))
    return [median(of_part) for of_part in times]


def _figure(
    checkpoint: Checkpoint, inputs: dict[str, Any], image: KeptImage, size: tuple[int, int], question: str
) -> Figure:
    """The views of the picture or video; size: (H, W) of the original."""
    model = checkpoint.model
    structural = torch.zeros(image.tokens, dtype=torch.bool)
    structural[image.rows] = True  # kept without having been selected
    structural[image.order] = False
    try:
        views = image_views(model, inputs, checkpoint.processor, image.tokens, structural.numpy(), size, image.frames)
    except ValueError as error:
        raise InputError(f"no picture of this model's patches can be drawn: {error}") from error
    ends = f", line ends among them: {int(structural.sum())}" if structural.any() else ""
    subtitle = f"{model.config.model_type}: {len(image.rows)} of {image.tokens} visual tokens kept{ends}"
    scores, rows, order = image.scores.float().numpy(), image.rows.tolist(), image.order.tolist()
    if image.frames == 1:
        return views_figure(views, scores, rows, order, question, subtitle)
    return frames_figure(views, scores, image.repeats.numpy(), rows, order, question, subtitle)
