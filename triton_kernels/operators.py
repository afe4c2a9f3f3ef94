"""The operators on Triton kernels: which launches follow one another.

Each takes the arguments that `_dispatch` has brought into one form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import histogram_launches, launches, long_launches
from .launches import Selection, Slots, Tokens


def _dense(features: Tensor, prior: Tensor | None) -> Tokens:
    if features.dtype == torch.float64:  # CPU tensors: in the interpreter
        raise TypeError("visual: expected float16, bfloat16 or float32 for the Triton kernels, got float64")
    return Tokens(features, prior, None, features.shape[1])


def _dense_slots(visual: Tensor, keep: int) -> Slots:
    return Slots(None, keep, visual.shape[0] * keep)


def _no_work(visual: Tokens, slots: Slots | None = None) -> bool:
    return visual.samples == 0 or visual.longest == 0 or visual.total == 0 or (slots is not None and slots.total == 0)


def _empty_picks(visual: Tokens, slots: Slots) -> tuple[Tensor, Tensor]:
    indices, gains = launches.empty_slots(visual, slots)
    return indices.fill_(-1), gains.fill_(-math.inf)


def _run_scores(visual: Tokens, text: Tokens, bandwidth: float | None, marginal: str) -> Tensor:
    if _no_work(visual):
        return visual.features.new_zeros(visual.features.shape[:-1], dtype=torch.float32)
    with torch.cuda.device_of(visual.features):
        found = launches.similarities(visual, text, 0, 0.0)
        left = launches.normalisers(visual, text, found, bandwidth)
        return launches.scores(visual, text, found, left, marginal)


def _picks(visual: Tokens, ranks: Tensor, found, left, slots: Slots, how: Selection) -> tuple[Tensor, Tensor]:
    path = how.path(visual.longest)
    if path == "top-k":
        return launches.top_k_picks(visual, ranks, found.visual_inverse, slots, how)
    if path == "gram":
        return launches.gram_picks(visual, ranks, found, left, slots, how)
    return long_launches.long_picks(visual, ranks, slots, how)


def _run_select(scores: Tensor, visual: Tokens, slots: Slots, how: Selection) -> tuple[Tensor, Tensor]:
    if _no_work(visual, slots):
        return _empty_picks(visual, slots)
    path = how.path(visual.longest)
    with torch.cuda.device_of(visual.features):
        if path == "long":  # norms, too, are found a sample at a time
            return long_launches.long_picks(visual, scores, slots, how)
        found = launches.similarities(visual, None, visual.total if path == "gram" else 0, how.kappa)
        left = launches.normalisers(visual, None, found, None) if path == "gram" else None
        return _picks(visual, scores, found, left, slots, how)


def _run_prune(visual: Tokens, text: Tokens, slots: Slots, bandwidth: float | None, marginal: str, how: Selection):
    if _no_work(visual, slots):
        indices, gains = _empty_picks(visual, slots)
        return visual.features.new_zeros((*indices.shape, visual.features.shape[-1])), indices, gains
    gram_rows = visual.total if how.path(visual.longest) == "gram" else 0
    with torch.cuda.device_of(visual.features):
        found = launches.similarities(visual, text, gram_rows, how.kappa)
        left = launches.normalisers(visual, text, found, bandwidth)
        scores = launches.scores(visual, text, found, left, marginal)
        indices, gains = _picks(visual, scores, found, left, slots, how)
        return launches.gathered(visual, indices, gains, slots)


def mi_scores(visual, text, *, visual_prior, text_prior, bandwidth, marginal) -> Tensor:
    return _run_scores(_dense(visual, visual_prior), _dense(text, text_prior), bandwidth, marginal)


def greedy_select(scores, visual, keep, *, visual_prior, **how) -> tuple[Tensor, Tensor]:
    return _run_select(scores, _dense(visual, visual_prior), _dense_slots(visual, keep), Selection(**how))


def prune(visual, text, keep, *, visual_prior, text_prior, bandwidth, marginal, **how) -> tuple[Tensor, Tensor, Tensor]:
    tokens, words = _dense(visual, visual_prior), _dense(text, text_prior)
    return _run_prune(tokens, words, _dense_slots(visual, keep), bandwidth, marginal, Selection(**how))


def mi_scores_varlen(
    visual, text, cu_visual, cu_text, max_visual, max_text, *, visual_prior, text_prior, bandwidth, marginal
) -> Tensor:
    tokens, words = Tokens(visual, visual_prior, cu_visual, max_visual), Tokens(text, text_prior, cu_text, max_text)
    return _run_scores(tokens, words, bandwidth, marginal)


def greedy_select_varlen(
    scores, visual, cu_visual, cu_keep, max_visual, max_keep, total_keep, *, visual_prior, **how
) -> tuple[Tensor, Tensor]:
    tokens = Tokens(visual, visual_prior, cu_visual, max_visual)
    return _run_select(scores, tokens, Slots(cu_keep, max_keep, total_keep), Selection(**how))


def prune_varlen(
    visual,
    text,
    cu_visual,
    cu_text,
    cu_keep,
    max_visual,
    max_text,
    max_keep,
    total_keep,
    *,
    visual_prior,
    text_prior,
    bandwidth,
    marginal,
    **how,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, words = Tokens(visual, visual_prior, cu_visual, max_visual), Tokens(text, text_prior, cu_text, max_text)
    return _run_prune(tokens, words, Slots(cu_keep, max_keep, total_keep), bandwidth, marginal, Selection(**how))


def histogram_mi_scores(visual, text, *, visual_prior, text_prior, bins) -> Tensor:
    tokens, words = _dense(visual, visual_prior), _dense(text, text_prior)
    if _no_work(tokens) or visual.shape[-1] == 0:
        return visual.new_zeros(visual.shape[:-1], dtype=torch.float32)
    with torch.cuda.device_of(visual):
        return histogram_launches.histogram_scores(tokens, words, bins)
