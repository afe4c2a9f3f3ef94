"""What the methods of the study are given: questions about pictures, inside a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from bench.quality.batches import Batch, make_batch
from mi_pruner.demo.model import DigitVLM
from mi_pruner.demo.questions import KINDS
from mi_pruner.demo.sources import Split
from mi_pruner.demo.vocabulary import DIGITS, WORD_ID


@dataclass(frozen=True)
class Asked:
    """Q questions of M tokens each, so that nothing is padding.

    visual (Q, N, D), text (Q, M, D): the model's tokens; saliency (Q, N): the vision encoder's attention, for those
    methods that take it; owner (Q, N) int64: the digit a patch belongs to, -1 for none; named, needed (Q, N) bool: the
    patches of the digit that the question names, and all that its answer rests on; kind, answer, scene (Q,) int64.
    """

    model: DigitVLM
    visual: Tensor
    text: Tensor
    saliency: Tensor
    owner: Tensor
    named: Tensor
    needed: Tensor
    kind: Tensor
    answer: Tensor
    scene: Tensor

    def rows(self, which: Tensor, length: int) -> "Asked":
        """Some of the questions, with the first `length` of their text tokens."""
        chosen = {name: value[which] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Asked(self.model, **{**chosen, "text": chosen["text"][:, :length]})


def questions(model: DigitVLM, split: Split, scenes: range, step: int = 100) -> Iterator[Asked]:
    """One question of each kind for each scene, grouped by length."""
    for start in range(scenes.start, scenes.stop, step):
        seeds = range(start, min(start + step, scenes.stop))
        batch = make_batch(split, seeds, grid=isqrt(model.tokens))
        every = _flattened(model, batch, seeds)
        lengths = batch.text_mask.sum(dim=2).flatten()
        for length in lengths.unique().tolist():
            yield every.rows((lengths == length).nonzero()[:, 0], length)


def _flattened(model: DigitVLM, batch: Batch, seeds: range) -> Asked:
    each = batch.text.shape[1]
    owner, value = batch.owner.repeat_interleave(each, 0), batch.value.repeat_interleave(each, 0)
    kind, answer, asked = batch.kind.flatten(), batch.answer.flatten(), batch.asked.flatten()
    named = (owner == asked[:, None]) & (owner >= 0)
    digit = torch.tensor([WORD_ID[name] for name in DIGITS] + [-1])[value]  # value -1: the last one
    neighbour = (digit == answer[:, None]) & (kind == KINDS.index("left"))[:, None]
    counted = (owner >= 0) & (kind == KINDS.index("count"))[:, None]
    return Asked(
        model=model,
        visual=model.encode_image(batch.pixels).repeat_interleave(each, 0),
        text=model.embed_text(batch.text).flatten(0, 1),
        saliency=model.encoder.attention(batch.pixels).repeat_interleave(each, 0),
        owner=owner,
        named=named,
        needed=named | neighbour | counted,
        kind=kind,
        answer=answer,
        scene=torch.tensor(seeds).repeat_interleave(each),
    )
