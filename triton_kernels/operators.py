"""The operators on Triton kernels: they size the launches and own the memory between them.

Each takes the arguments that `_dispatch` has brought into one form. Dense batches are packed ones whose samples lie at
equal distances, without `cu_*`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import densities, gather, greedy, similarity
from .tiles import Tile, tile

INTERPRETED = bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class _Tokens:
    """Tokens (B, count, D), or packed (total, D) with `cu` (B + 1,) and at most `longest` in a sample."""

    features: Tensor
    prior: Tensor | None
    cu: Tensor | None
    longest: int

    @property
    def samples(self) -> int:
        return self.features.shape[0] if self.cu is None else self.cu.shape[0] - 1

    @property
    def total(self) -> int:
        return self.features.shape[:-1].numel()

    @property
    def strides(self) -> tuple[int, int]:
        return (0 if self.cu is not None else self.features.stride(0)), self.features.stride(-2)

    def floats(self, *shape: int) -> Tensor:
        return self.features.new_empty(shape, dtype=torch.float32)


@dataclass(frozen=True)
class _Slots:
    """Where picks go: (B, longest), or packed by `cu` into `total`."""

    cu: Tensor | None
    longest: int
    total: int


@dataclass(frozen=True)
class _Similarities:
    """What `similarity_kernel` leaves."""

    tile: Tile
    visual_inverse: Tensor  # (total N,)
    text_inverse: Tensor  # (total M,)
    cosines: Tensor  # (total N, M)
    moments: Tensor  # (B, row tiles, text tiles, 3)
    gram: Tensor  # (total N, N)
    part_top: Tensor  # (row tiles, total N)
    part_sum: Tensor
    row_tiles: int
    text_tiles: int


def _samples_constant(tokens: _Tokens) -> int:
    return triton.next_power_of_2(tokens.samples + 1)


def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # the interpreter follows the tiles of a GPU
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _round_up(value: int, to: int) -> int:
    return triton.cdiv(value, to) * to


def _similarities(visual: _Tokens, text: _Tokens | None, gram: bool, visual_kappa: float) -> _Similarities:
    size = tile(visual.features.dtype, _architecture(visual.features.device))
    row_tiles = triton.cdiv(visual.longest, size.rows)
    text_longest = 0 if text is None else text.longest
    visual_tiles = triton.cdiv(visual.longest, size.columns) if gram else 0
    # One text tile, if an empty one, also takes the norms where nothing else does.
    text_tiles = (
        triton.cdiv(text_longest, size.columns)
        if gram and text is None
        else max(1, triton.cdiv(text_longest, size.columns))
    )
    text = text or _Tokens(visual.features, None, visual.cu, 0)
    found = _Similarities(
        size,
        visual.floats(visual.total),
        visual.floats(text.total),
        visual.floats(visual.total, _round_up(text_longest, 4)),
        visual.floats(visual.samples, row_tiles, text_tiles, 3),
        visual.floats(visual.total if gram else 0, _round_up(visual.longest, 4)),
        visual.floats(row_tiles if gram else 0, visual.total),
        visual.floats(row_tiles if gram else 0, visual.total),
        row_tiles,
        text_tiles,
    )
    grid = (visual.samples * row_tiles * (text_tiles + visual_tiles),)
    similarity.similarity_kernel[grid](
        visual.features,
        *visual.strides,
        visual.cu,
        visual.total,
        visual.longest,
        visual.prior,
        text.features,
        *text.strides,
        text.cu,
        text.total,
        text.longest,
        text.prior,
        visual.features.shape[-1],
        visual_kappa,
        found.visual_inverse,
        found.text_inverse,
        found.cosines,
        found.cosines.stride(0),
        found.moments,
        found.gram,
        found.gram.stride(0),
        found.part_top,
        found.part_sum,
        row_tiles,
        text_tiles,
        visual_tiles,
        SAMPLES=_samples_constant(visual),
        ROWS=size.rows,
        COLUMNS=size.columns,
        DEPTH=size.depth,
        WIDEN=INTERPRETED,
        PRECISION="tf32x3" if visual.features.dtype == torch.float32 else "ieee",
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return found


def _normalisers(visual: _Tokens, text: _Tokens | None, found: _Similarities, gram: bool, bandwidth: float | None):
    """(log Z of the text tokens, 1/h² (B,), log of the priors' sum (B,), log Z of the visual tokens)."""
    log_z = visual.floats(0 if text is None else text.total)
    kappa, log_total = visual.floats(visual.samples), visual.floats(visual.samples)
    visual_log_z = visual.floats(visual.total if gram else 0)
    text_programs = 0 if text is None else max(1, triton.cdiv(text.longest, densities.NORMALISER_COLUMNS))
    visual_programs = triton.cdiv(visual.longest, densities.NORMALISER_ROWS) if gram else 0
    text = text or _Tokens(visual.features, None, visual.cu, 0)
    densities.normaliser_kernel[(visual.samples * (text_programs + visual_programs),)](
        visual.cu,
        visual.total,
        visual.longest,
        visual.prior,
        text.cu,
        text.total,
        text.longest,
        found.visual_inverse,
        found.cosines,
        found.cosines.stride(0),
        found.moments,
        found.row_tiles,
        found.text_tiles,
        0.0 if bandwidth is None else bandwidth**-2,
        log_z,
        kappa,
        log_total,
        found.part_top,
        found.part_sum,
        visual_log_z,
        text_programs,
        visual_programs,
        SAMPLES=_samples_constant(visual),
        RULE=bandwidth is None,
        TILE_ROWS=found.tile.rows,
        TILE_COLUMNS=found.tile.columns,
        ROWS=densities.NORMALISER_ROWS,
        COLUMNS=densities.NORMALISER_COLUMNS,
    )
    return log_z, kappa, log_total, visual_log_z


def _score(visual: _Tokens, text: _Tokens, found: _Similarities, normalisers, marginal: str) -> Tensor:
    log_z, kappa, log_total, _ = normalisers
    shape = visual.features.shape[:-1]
    # Packed tokens that no sample owns score 0.
    scores = visual.floats(*shape) if visual.cu is None else visual.floats(*shape).zero_()
    programs = triton.cdiv(visual.longest, densities.SCORE_ROWS)
    densities.score_kernel[(visual.samples * programs,)](
        visual.cu,
        visual.total,
        visual.longest,
        visual.prior,
        text.cu,
        text.total,
        text.longest,
        text.prior,
        found.visual_inverse,
        found.text_inverse,
        found.cosines,
        found.cosines.stride(0),
        log_z,
        kappa,
        log_total,
        scores,
        programs,
        SAMPLES=_samples_constant(visual),
        JOINT=marginal == "joint",
        ROWS=densities.SCORE_ROWS,
        COLUMNS=densities.SCORE_COLUMNS,
    )
    return scores


@dataclass(frozen=True)
class _Selection:
    bandwidth: float
    redundancy: str
    weight: float
    budget: Tensor | None
    min_gain: float | None

    @property
    def greedy(self) -> bool:
        return self.redundancy != "none" and self.weight != 0

    @property
    def kappa(self) -> float:
        return self.bandwidth**-2


def _select(visual: _Tokens, scores: Tensor, found: _Similarities, log_z: Tensor, slots: _Slots, how: _Selection):
    """Indices and gains in the order of the picks."""
    shape = (slots.total,) if visual.cu is not None else (visual.samples, slots.longest)
    indices, gains = visual.features.new_empty(shape, dtype=torch.int64), visual.floats(*shape)
    if visual.cu is not None or not how.greedy:  # slots that no sample owns, or that no token takes
        indices.fill_(-1)
        gains.fill_(-math.inf)
    outputs = (slots.cu, slots.total, slots.longest, how.budget, how.min_gain or 0.0, indices, gains)
    inputs = (scores, visual.cu, visual.total, visual.longest, visual.prior, found.visual_inverse)
    options = {"SAMPLES": _samples_constant(visual), "STOPS": how.min_gain is not None}
    if not how.greedy:
        programs = triton.cdiv(visual.longest, 32)
        grid = (visual.samples * programs,)
        greedy.top_k_kernel[grid](*inputs, *outputs, programs, ROWS=32, CHUNK=256, **options)
        return indices, gains
    tokens = max(32, triton.next_power_of_2(visual.longest))
    greedy.greedy_kernel[(visual.samples,)](
        *inputs,
        found.gram,
        found.gram.stride(0),
        log_z,
        how.kappa,
        how.weight,
        *outputs,
        REDUNDANCY=how.redundancy,
        TOKENS=tokens,
        num_warps=min(16, max(1, tokens // 256)),
        **options,
    )
    return indices, gains


def _gather(visual: _Tokens, indices: Tensor, gains: Tensor, slots: _Slots) -> tuple[Tensor, Tensor, Tensor]:
    dim = visual.features.shape[-1]
    tokens = visual.features.new_empty((*indices.shape, dim))
    indices_out, gains_out = indices.clone(), gains.clone()
    if visual.cu is not None:
        tokens.zero_()
    else:
        indices_out, gains_out = torch.empty_like(indices), torch.empty_like(gains)
    picks = 1 if slots.longest <= 1024 else 16  # many programs for few picks; fewer counts for many
    programs = triton.cdiv(slots.longest, picks)
    gather.gather_kernel[(visual.samples * programs,)](
        visual.features,
        *visual.strides,
        visual.cu,
        visual.total,
        visual.longest,
        slots.cu,
        slots.total,
        slots.longest,
        indices,
        gains,
        dim,
        tokens,
        indices_out,
        gains_out,
        programs,
        SAMPLES=_samples_constant(visual),
        PICKS=picks,
        CHUNK=256,
        DEPTH=1024 // picks,
    )
    return tokens, indices_out, gains_out


def _no_work(visual: _Tokens, slots: _Slots | None = None) -> bool:
    return visual.samples == 0 or visual.longest == 0 or visual.total == 0 or (slots is not None and slots.total == 0)


def _empty_picks(visual: _Tokens, slots: _Slots) -> tuple[Tensor, Tensor]:
    shape = (slots.total,) if visual.cu is not None else (visual.samples, slots.longest)
    indices = visual.features.new_full(shape, -1, dtype=torch.int64)
    return indices, visual.features.new_full(shape, -math.inf, dtype=torch.float32)


def _run_scores(visual: _Tokens, text: _Tokens, bandwidth: float | None, marginal: str) -> Tensor:
    if _no_work(visual):
        return visual.features.new_zeros(visual.features.shape[:-1], dtype=torch.float32)
    with torch.cuda.device_of(visual.features):
        found = _similarities(visual, text, False, 0.0)
        return _score(visual, text, found, _normalisers(visual, text, found, False, bandwidth), marginal)


def _run_select(scores: Tensor, visual: _Tokens, slots: _Slots, how: _Selection) -> tuple[Tensor, Tensor]:
    if _no_work(visual, slots):
        return _empty_picks(visual, slots)
    with torch.cuda.device_of(visual.features):
        found = _similarities(visual, None, how.greedy, how.kappa)
        log_z = _normalisers(visual, None, found, True, None)[-1] if how.greedy else found.visual_inverse
        return _select(visual, scores, found, log_z, slots, how)


def _run_prune(visual: _Tokens, text: _Tokens, slots: _Slots, bandwidth: float | None, marginal: str, how: _Selection):
    if _no_work(visual, slots):
        indices, gains = _empty_picks(visual, slots)
        return visual.features.new_zeros((*indices.shape, visual.features.shape[-1])), indices, gains
    with torch.cuda.device_of(visual.features):
        found = _similarities(visual, text, how.greedy, how.kappa)
        normalisers = _normalisers(visual, text, found, how.greedy, bandwidth)
        scores = _score(visual, text, found, normalisers, marginal)
        indices, gains = _select(visual, scores, found, normalisers[-1], slots, how)
        return _gather(visual, indices, gains, slots)


def _dense(features: Tensor, prior: Tensor | None) -> _Tokens:
    return _Tokens(features, prior, None, features.shape[1])


def mi_scores(visual, text, *, visual_prior=None, text_prior=None, bandwidth=None, marginal="joint") -> Tensor:
    return _run_scores(_dense(visual, visual_prior), _dense(text, text_prior), bandwidth, marginal)


def greedy_select(
    scores,
    visual,
    keep,
    *,
    visual_prior=None,
    visual_bandwidth=0.63,
    redundancy="mean",
    redundancy_weight=1.0,
    budget=None,
    min_gain=None,
) -> tuple[Tensor, Tensor]:
    how = _Selection(visual_bandwidth, redundancy, redundancy_weight, budget, min_gain)
    return _run_select(scores, _dense(visual, visual_prior), _Slots(None, keep, visual.shape[0] * keep), how)


def prune(
    visual,
    text,
    keep,
    *,
    visual_prior=None,
    text_prior=None,
    bandwidth=None,
    marginal="joint",
    visual_bandwidth=0.63,
    redundancy="mean",
    redundancy_weight=1.0,
    budget=None,
    min_gain=None,
) -> tuple[Tensor, Tensor, Tensor]:
    how = _Selection(visual_bandwidth, redundancy, redundancy_weight, budget, min_gain)
    slots = _Slots(None, keep, visual.shape[0] * keep)
    return _run_prune(_dense(visual, visual_prior), _dense(text, text_prior), slots, bandwidth, marginal, how)


def mi_scores_varlen(
    visual,
    text,
    cu_seqlens_visual,
    cu_seqlens_text,
    max_seqlen_visual,
    max_seqlen_text,
    *,
    visual_prior=None,
    text_prior=None,
    bandwidth=None,
    marginal="joint",
) -> Tensor:
    return _run_scores(
        _Tokens(visual, visual_prior, cu_seqlens_visual, max_seqlen_visual),
        _Tokens(text, text_prior, cu_seqlens_text, max_seqlen_text),
        bandwidth,
        marginal,
    )


def greedy_select_varlen(
    scores,
    visual,
    cu_seqlens_visual,
    cu_keep,
    max_seqlen_visual,
    max_keep,
    total_keep,
    *,
    visual_prior=None,
    visual_bandwidth=0.63,
    redundancy="mean",
    redundancy_weight=1.0,
    min_gain=None,
) -> tuple[Tensor, Tensor]:
    how = _Selection(visual_bandwidth, redundancy, redundancy_weight, None, min_gain)
    tokens = _Tokens(visual, visual_prior, cu_seqlens_visual, max_seqlen_visual)
    return _run_select(scores, tokens, _Slots(cu_keep, max_keep, total_keep), how)


def prune_varlen(
    visual,
    text,
    cu_seqlens_visual,
    cu_seqlens_text,
    cu_keep,
    max_seqlen_visual,
    max_seqlen_text,
    max_keep,
    total_keep,
    *,
    visual_prior=None,
    text_prior=None,
    bandwidth=None,
    marginal="joint",
    visual_bandwidth=0.63,
    redundancy="mean",
    redundancy_weight=1.0,
    min_gain=None,
) -> tuple[Tensor, Tensor, Tensor]:
    how = _Selection(visual_bandwidth, redundancy, redundancy_weight, None, min_gain)
    return _run_prune(
        _Tokens(visual, visual_prior, cu_seqlens_visual, max_seqlen_visual),
        _Tokens(text, text_prior, cu_seqlens_text, max_seqlen_text),
        _Slots(cu_keep, max_keep, total_keep),
        bandwidth,
        marginal,
        how,
    )
