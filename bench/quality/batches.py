"""Scenes and questions as tensors, and the accuracy of a model over them."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from mi_pruner.demo.checkpoint import pixels_of
from mi_pruner.demo.model import DigitVLM
from mi_pruner.demo.questions import KINDS, Question, questions_about
from mi_pruner.demo.scenes import GRID, make_scene
from mi_pruner.demo.sources import Split
from mi_pruner.demo.vocabulary import COLOURS, MAX_QUESTION, PAD_ID, WORD_ID, encode_question


@dataclass(frozen=True)
class Batch:
    """B scenes with Q questions each.

    pixels (B, 3, 6 G, 6 G) float32; owner, value, colour (B, G * G) int64: index, value 0 .. 9 and colour number of the
    digit that owns a patch, -1 for none; text (B, Q, M) int64 and text_mask (B, Q, M) bool; answer, kind, asked
    (B, Q) int64: answer word, number of the question's kind, index of the digit it names or -1.
    """

    pixels: Tensor
    owner: Tensor
    value: Tensor
    colour: Tensor
    text: Tensor
    text_mask: Tensor
    answer: Tensor
    kind: Tensor
    asked: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def make_batch(
    split: Split, seeds: Iterable[int], augment: bool = False, questions: int | None = None, grid: int = GRID
) -> Batch:
    """The scenes of these seeds; for each, `questions` random ones or, by default, one of each kind.

    A kind that a scene does not offer (nothing is left of anything) is replaced by another random question.
    """
    rows = []
    for seed in seeds:
        scene = make_scene(split, seed, augment, grid)
        rows.append((scene, _choose(questions_about(scene), seed, questions)))
    owner = torch.tensor(np.stack([scene.owner.reshape(-1) for scene, _ in rows]), dtype=torch.int64)
    text = torch.tensor([[_padded(question) for question in asked] for _, asked in rows])
    return Batch(
        pixels=torch.stack([pixels_of(scene.pixels) for scene, _ in rows]),
        owner=owner,
        value=_per_patch(owner, [[digit.value for digit in scene.digits] for scene, _ in rows]),
        colour=_per_patch(owner, [[list(COLOURS).index(digit.colour) for digit in scene.digits] for scene, _ in rows]),
        text=text,
        text_mask=text != PAD_ID,
        answer=torch.tensor([[WORD_ID[question.answer] for question in asked] for _, asked in rows]),
        kind=torch.tensor([[KINDS.index(question.kind) for question in asked] for _, asked in rows]),
        asked=torch.tensor([[-1 if q.asked is None else q.asked for q in asked] for _, asked in rows]),
    )


def _choose(offered: list[Question], seed: int, count: int | None) -> list[Question]:
    """Random questions, each kind as likely as another."""
    rng = np.random.default_rng((7, seed))  # 7: not the stream that drew the scene
    kinds = sorted({question.kind for question in offered}, key=KINDS.index)
    each = kinds if count is None else []
    wanted = [*each, *rng.choice(kinds, (count or len(KINDS)) - len(each))]
    by_kind = {kind: [question for question in offered if question.kind == kind] for kind in kinds}
    return [by_kind[kind][int(rng.integers(len(by_kind[kind])))] for kind in wanted]


def _padded(question: Question) -> list[int]:
    ids = encode_question(question.text)
    return ids + [PAD_ID] * (MAX_QUESTION - len(ids))


def _per_patch(owner: Tensor, of_digit: list[list[int]]) -> Tensor:
    """(B, G * G) owners and a number for each digit of each scene -> (B, G * G): the owner's number, -1 for none."""
    rows = [torch.tensor([*numbers, -1])[row] for row, numbers in zip(owner, of_digit, strict=True)]
    return torch.stack(rows)


@torch.inference_mode()
def dense_accuracy(model: DigitVLM, split: Split, scenes: int, device: torch.device) -> dict[str, float]:
    """Share of right answers with all tokens, over one question of each kind for each scene: by kind and "all"."""
    right, kinds = [], []
    for start in range(0, scenes, 100):
        batch = make_batch(split, range(start, min(start + 100, scenes)), grid=isqrt(model.tokens)).to(device)
        visual = model.encode_image(batch.pixels)
        positions = torch.arange(model.tokens, device=device).expand(len(visual), -1)
        logits = model.answer_many(visual, positions, model.embed_text(batch.text), batch.text_mask)
        right.append((logits.argmax(-1) == batch.answer).flatten().float())
        kinds.append(batch.kind.flatten())
    hit, kind = torch.cat(right), torch.cat(kinds)
    by_kind = {name: hit[kind == number].mean().item() for number, name in enumerate(KINDS)}
    return {"all": hit.mean().item(), **by_kind}
