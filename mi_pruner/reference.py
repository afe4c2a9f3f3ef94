"""The reference: every operator in plain PyTorch, one sample at a time, readable against docs/maths.md.

All other backends are tested against it. It runs on any device; float64 features are computed in float64, all others
in float32. It takes all arguments of an operator, after `_checks` has seen them. The packed twins read the `cu_*`
tensors on the host (a synchronisation, on a GPU).

Letters: n visual tokens, m text tokens, d coordinates, k picks; all of one sample.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ._checks import accumulation_dtype


def _norms(rows: Tensor) -> Tensor:
    """‖row‖ (...) of rows (..., d) in the accumulation type; not finite where its square is not."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=accumulation_dtype(rows.dtype))


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, d) on the unit sphere, and which of them are finite (n,).

    A zero row (squared norm below the smallest normal number) stays zero; a row that is not finite becomes zero.
    """
    norm = _norms(rows)
    finite = norm.isfinite()
    positive = finite & (norm.square() >= torch.finfo(norm.dtype).tiny)
    return torch.where(positive[:, None], rows.to(norm.dtype) / norm[:, None], 0), finite


def normalised_prior(prior: Tensor | None, finite: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The prior (n,) normalised over the valid tokens, 0 elsewhere; and which tokens are valid (n,)."""
    if prior is None:
        prior = torch.ones_like(finite, dtype=dtype)
    prior = prior.to(dtype)
    valid = finite & (prior > 0)  # False for NaN
    weight = torch.where(valid, prior.clamp(max=torch.finfo(dtype).max), 0)
    weight = weight / weight.amax().clamp(min=torch.finfo(dtype).tiny)  # first to [0, 1]: the sum can't overflow
    return weight / weight.sum().clamp(min=torch.finfo(dtype).tiny), valid


def _first_equal(rows: Tensor, prior: Tensor) -> Tensor:
    """For each token (n,) the first one of equal unit row and normalised prior.

    A matrix product may sum equal rows in different orders, and exp may round differently at the end of a vector: equal
    tokens get equal bits because all take what was computed for the first of them.
    """
    keys = torch.cat([rows, prior[:, None]], dim=1)
    _, group = keys.unique(dim=0, return_inverse=True)
    place = torch.arange(len(group), device=group.device)
    return torch.full_like(group, len(group)).scatter_reduce(0, group, place, "amin")[group]


def _log_density(log_kernel: Tensor, log_prior: Tensor) -> Tensor:
    """ℓ[i, j] = log K(v_i, t_j) − log Σ_i' π_i' K(v_i', t_j), from log K (n, m) and log π (n,)."""
    return log_kernel - torch.logsumexp(log_kernel + log_prior[:, None], dim=0)


def _squared_bandwidth(cosines: Tensor, pairs: Tensor) -> Tensor:
    """h² = population standard deviation of the cosines over the valid pairs (n, m), at least 1e-4."""
    count = pairs.sum().clamp(min=1)
    mean = torch.where(pairs, cosines, 0).sum() / count
    variance = torch.where(pairs, (cosines - mean).square(), 0).sum() / count
    return variance.sqrt().clamp(min=1e-4)


def _sample_scores(
    visual: Tensor,
    text: Tensor,
    visual_prior: Tensor | None,
    text_prior: Tensor | None,
    bandwidth: float | None,
    marginal: str,
) -> Tensor:
    v, v_finite = unit_rows(visual)
    t, t_finite = unit_rows(text)
    prior, v_valid = normalised_prior(visual_prior, v_finite, v.dtype)
    weight, t_valid = normalised_prior(text_prior, t_finite, t.dtype)
    pairs = v_valid[:, None] & t_valid
    cosines = v @ t.T
    h2 = _squared_bandwidth(cosines, pairs) if bandwidth is None else bandwidth**2
    log_r = _log_density((cosines - 1) / h2, prior.log())
    conditional = torch.where(pairs, torch.exp(log_r + prior.log()[:, None]), 0)  # P[i|j]
    if marginal == "joint":
        words = t_valid.sum().to(v.dtype)
        weight = weight * (words / (words + 1))  # the null word has the rest
        null = -torch.log1p(words).expand(len(v), 1)
        log_q = torch.logsumexp(torch.cat([log_r + weight.log(), null], dim=1), dim=1, keepdim=True)
        log_ratio = log_r - log_q
    else:
        log_ratio = log_r
    return torch.where(pairs, weight * conditional * log_ratio, 0).sum(1)[_first_equal(v, prior)]


def _redundancies(visual: Tensor, prior: Tensor, valid: Tensor, bandwidth: float) -> Tensor:
    """R[i, s] = π_i r_vv[i, s] ℓ_vv[i, s] (n, n), from unit rows."""
    pairs = valid[:, None] & valid
    log_r = _log_density((visual @ visual.T - 1) / bandwidth**2, prior.log())
    table = torch.where(pairs, torch.exp(log_r + prior.log()[:, None]) * log_r, 0)
    return table[_first_equal(visual, prior)]


def _lowest_argmax(values: Tensor, available: Tensor) -> Tensor:
    """The lowest index of the largest value among the available ones (0-dim; 0 where none is)."""
    best = torch.where(available, values, -math.inf).amax()
    return (available & (values == best)).to(torch.uint8).argmax()  # argmax of equal values: the first


def _sample_select(
    scores: Tensor,
    visual: Tensor,
    keep: int,
    visual_prior: Tensor | None,
    budget: Tensor | None,
    *,
    visual_bandwidth: float,
    redundancy: str,
    redundancy_weight: float,
    min_gain: float | None,
    ratio: float | None,
) -> tuple[Tensor, Tensor]:
    indices = torch.full((keep,), -1, dtype=torch.int64, device=visual.device)
    gains = torch.full((keep,), -math.inf, dtype=accumulation_dtype(visual.dtype), device=visual.device)
    v, finite = unit_rows(visual)
    prior, available = normalised_prior(visual_prior, finite, v.dtype)
    scores = torch.where(scores.isnan(), -math.inf, scores.to(v.dtype))
    use_redundancy = redundancy != "none" and redundancy_weight != 0
    table = _redundancies(v, prior, available, visual_bandwidth) if use_redundancy else None
    rho = torch.zeros_like(scores)
    going = torch.ones((), dtype=torch.bool, device=visual.device)
    own = None if ratio is None else (available.sum().double() * ratio + 0.5).floor().clamp(min=1)
    for step in range(keep):
        gain = scores
        if table is not None and step > 0:
            gain = scores - redundancy_weight * (rho / step if redundancy == "mean" else rho)
        pick = _lowest_argmax(gain, available)
        going = going & available.any()
        if budget is not None:
            going = going & (step < budget)
        if own is not None:
            going = going & (step < own)
        if min_gain is not None:
            going = going & (gain[pick] >= min_gain)
        indices[step] = torch.where(going, pick, -1)
        gains[step] = torch.where(going, gain[pick], -math.inf)
        available = available & (torch.arange(len(scores), device=pick.device) != pick)
        if table is not None:
            row = table[:, pick] * (prior[pick] if redundancy == "chain" else 1)
            rho = torch.maximum(rho, row) if redundancy == "max" and step > 0 else row if step == 0 else rho + row
    return indices, gains


def _sample_tokens(visual: Tensor, indices: Tensor, gains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Picks in ascending order, unused slots (-1) last, and their tokens (k, d)."""
    order = torch.where(indices < 0, visual.shape[0], indices).argsort(stable=True)
    indices, gains = indices[order], gains[order]
    if visual.shape[0] == 0:
        return visual.new_zeros(len(indices), visual.shape[1]), indices, gains
    tokens = torch.where(indices[:, None] >= 0, visual[indices.clamp(min=0)], 0)
    return tokens, indices, gains


def _at(values: Tensor | None, sample: int | slice) -> Tensor | None:
    return None if values is None else values[sample]


def mi_scores(visual, text, *, visual_prior, text_prior, bandwidth, marginal) -> Tensor:
    scores = visual.new_zeros(visual.shape[:-1], dtype=accumulation_dtype(visual.dtype))
    for b in range(visual.shape[0]):
        scores[b] = _sample_scores(visual[b], text[b], _at(visual_prior, b), _at(text_prior, b), bandwidth, marginal)
    return scores


def greedy_select(scores, visual, keep, *, visual_prior, budget, **how) -> tuple[Tensor, Tensor]:
    picks = [
        _sample_select(scores[b], visual[b], keep, _at(visual_prior, b), _at(budget, b), **how)
        for b in range(visual.shape[0])
    ]
    if not picks:
        empty = visual.new_empty((0, keep), dtype=accumulation_dtype(visual.dtype))
        return empty.to(torch.int64), empty
    return torch.stack([indices for indices, _ in picks]), torch.stack([gains for _, gains in picks])


def prune(
    visual, text, keep, *, visual_prior, text_prior, bandwidth, marginal, budget, **how
) -> tuple[Tensor, Tensor, Tensor]:
    scores = mi_scores(
        visual, text, visual_prior=visual_prior, text_prior=text_prior, bandwidth=bandwidth, marginal=marginal
    )
    indices, gains = greedy_select(scores, visual, keep, visual_prior=visual_prior, budget=budget, **how)
    tokens = visual.new_empty((*indices.shape, visual.shape[-1]))
    for b in range(visual.shape[0]):
        tokens[b], indices[b], gains[b] = _sample_tokens(visual[b], indices[b], gains[b])
    return tokens, indices, gains


def _bin_indices(rows: Tensor, bins: int) -> Tensor:
    """The bin (n, d) int64 of each coordinate between the extremes of its row (n, d), in float32.

    0 for a whole row where they are equal, or where the scale is no positive, finite number.
    """
    rows = rows.float()
    low, high = rows.aminmax(dim=1, keepdim=True)
    scale = torch.full_like(low, bins) / (high - low)  # `bins / x` would be rounded twice: 1/x, times bins
    usable = (scale > 0) & (scale < math.inf)  # False for NaN
    return torch.where(usable, (rows - low) * scale, 0).floor().long().clamp(max=bins - 1)


def _sample_histogram_scores(
    visual: Tensor, text: Tensor, visual_prior: Tensor | None, text_prior: Tensor | None, bins: int
) -> Tensor:
    dtype = accumulation_dtype(visual.dtype)
    n, d = visual.shape
    weight, _ = normalised_prior(text_prior, _norms(text).isfinite(), dtype)
    scores = visual.new_zeros(n, dtype=dtype)
    if d == 0:
        return scores
    x, y = _bin_indices(visual, bins), _bin_indices(text, bins)
    for j in range(len(text)):
        cells = x * bins + y[j]
        counts = cells.new_zeros(n, bins * bins).scatter_add_(1, cells, torch.ones_like(cells))
        p_xy = (counts.to(dtype) / d).unflatten(1, (bins, bins))
        p_x, p_y = (counts.unflatten(1, (bins, bins)).sum(axis).to(dtype) / d for axis in (2, 1))
        of_x, of_y = (torch.xlogy(p, p).sum(1) for p in (p_x, p_y))
        information = torch.xlogy(p_xy, p_xy).sum((1, 2)) - of_x - of_y
        scores += weight[j] * torch.where((of_x == 0) | (of_y == 0), 0, information)  # one bin: exactly 0
    _, valid = normalised_prior(visual_prior, _norms(visual).isfinite(), dtype)
    return torch.where(valid, scores, 0)


def histogram_mi_scores(visual, text, *, visual_prior, text_prior, bins) -> Tensor:
    scores = visual.new_zeros(visual.shape[:-1], dtype=accumulation_dtype(visual.dtype))
    for b in range(visual.shape[0]):
        scores[b] = _sample_histogram_scores(visual[b], text[b], _at(visual_prior, b), _at(text_prior, b), bins)
    return scores


def _spans(cu: Tensor, total: int, longest: int) -> list[slice]:
    """The samples' places in a packed tensor.

    What `cu` says is clamped to [0, total], to be non-decreasing, and to the longest length.
    """
    ends = itertools.accumulate((min(max(end, 0), total) for end in cu.tolist()), max)
    return [slice(start, min(end, start + longest)) for start, end in itertools.pairwise(ends)]


def mi_scores_varlen(
    visual, text, cu_visual, cu_text, max_visual, max_text, *, visual_prior, text_prior, bandwidth, marginal
) -> Tensor:
    scores = visual.new_zeros(visual.shape[0], dtype=accumulation_dtype(visual.dtype))
    v_spans, t_spans = _spans(cu_visual, visual.shape[0], max_visual), _spans(cu_text, text.shape[0], max_text)
    for v, t in zip(v_spans, t_spans, strict=True):
        if v.start < v.stop and t.start < t.stop:
            scores[v] = _sample_scores(
                visual[v], text[t], _at(visual_prior, v), _at(text_prior, t), bandwidth, marginal
            )
    return scores


def greedy_select_varlen(
    scores, visual, cu_visual, cu_keep, max_visual, max_keep, total_keep, *, visual_prior, **how
) -> tuple[Tensor, Tensor]:
    indices = torch.full((total_keep,), -1, dtype=torch.int64, device=visual.device)
    gains = torch.full((total_keep,), -math.inf, dtype=accumulation_dtype(visual.dtype), device=visual.device)
    v_spans = _spans(cu_visual, visual.shape[0], max_visual)
    for v, k in zip(v_spans, _spans(cu_keep, total_keep, max_keep), strict=True):
        if v.start < v.stop:
            prior = _at(visual_prior, v)
            indices[k], gains[k] = _sample_select(scores[v], visual[v], k.stop - k.start, prior, None, **how)
    return indices, gains


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
    priors = {"visual_prior": visual_prior, "text_prior": text_prior}
    both = (visual, text, cu_visual, cu_text, max_visual, max_text)
    scores = mi_scores_varlen(*both, **priors, bandwidth=bandwidth, marginal=marginal)
    slots = (cu_visual, cu_keep, max_visual, max_keep, total_keep)
    indices, gains = greedy_select_varlen(scores, visual, *slots, visual_prior=visual_prior, **how)
    tokens = visual.new_zeros((total_keep, visual.shape[1]))
    v_spans = _spans(cu_visual, visual.shape[0], max_visual)
    for v, k in zip(v_spans, _spans(cu_keep, total_keep, max_keep), strict=True):
        tokens[k], indices[k], gains[k] = _sample_tokens(visual[v], indices[k], gains[k])
    return tokens, indices, gains
