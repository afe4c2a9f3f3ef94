"""The documented calls: thin covers of `torch.ops.mi_pruner.*`; the dense ones also take `keep` as a ratio.

Letters: B samples, N visual tokens, M text tokens, D coordinates, K picks. Features are float16, bfloat16, float32
(float64 on the CPU). All sums are float32 (float64 for float64 features). Logarithms are natural: scores and gains are
in nats. No output requires grad. docs/maths.md derives the quantities.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _checks


def count_from_ratio(ratio: float, tokens: int) -> int:
    """K = max(1, floor(ratio · tokens + 0.5)): how many of `tokens` a ratio in (0, 1] keeps."""
    if type(tokens) is int and not is_compiling():  # ten times as fast as what follows
        return int(ratio * tokens + 0.5) or 1
    # The minimum: for torch.export's prover alone.
    return torch.sym_min(tokens, torch.sym_max(1, torch.sym_int(ratio * tokens + 0.5)))


def _count_and_ratio(keep: int | float, ratio: float | None, visual: Tensor) -> tuple[int, float | None]:
    """`keep` as a count, and the ratio of its own valid tokens that bounds each sample."""
    _checks.check_keep(keep, ratio)
    if not isinstance(keep, float):
        return keep, ratio
    tokens: Any = None
    try:  # noqa: SIM105  a context manager costs more than all else here
        _, tokens, _ = visual.shape
    except (AttributeError, ValueError, RuntimeError):
        pass
    if type(tokens) is not int:  # a symbol, or nothing; all else about `visual` is the operator's to say
        _checks.check_visual(visual)
    return count_from_ratio(keep, tokens), keep


def _changed(**options: object) -> dict[str, object]:
    """The options that are not at their default: what is passed on costs the dispatcher time."""
    if is_compiling():  # costs nothing there, and constants have no identity
        return options
    return {
        name: value
        for name, value in options.items()
        if value is not (default := _DEFAULTS[name])
        and not (type(value) is type(default) is float and value == default)
    }


def mi_scores(
    visual: Tensor,
    text: Tensor,
    *,
    visual_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    bandwidth: float | None = None,
    marginal: str = "joint",
) -> Tensor:
    """The mutual information that each visual token has with the text.

    With cosines ⟨v̂_i, t̂_j⟩, priors π (visual) and w (text) normalised over the valid tokens,
    ℓ[i,j] = (⟨v̂_i, t̂_j⟩ − 1)/h² − log Σ_i' π_i' exp((⟨v̂_i', t̂_j⟩ − 1)/h²),  r = exp ℓ:

    * "joint":  the m valid text tokens are joined by a null word, of r = 1 and weight w'_0 = 1/(m + 1), beside which
      w'_j = w_j m/(m + 1). With q'_i = w'_0 + Σ_j w'_j r,  a_i = π_i Σ_j w'_j r (ℓ − log q'_i), without the null word's
      own term. Σ_i a_i is ≥ 0; a single a_i is less where every word speaks against the token alike.
    * "prior":  a_i = π_i Σ_j w_j r ℓ (MI-Pruner, arXiv 2604.03072, with its uniform prior).

    Args:
        visual: (B, N, D) visual tokens, after the multimodal projector.
        text: (B, M, D) embeddings of the instruction's tokens, of the same dtype and device. Without a question: the
            image's own tokens.
        visual_prior: (B, N) float or bool, p(v_i) up to scale, read in the dtype of the scores. A token is absent where
            it is not > 0 or its row is not finite: it enters no sum and scores 0. Default: uniform.
        text_prior: (B, M) float or bool, the same for the text.
        bandwidth: h of the kernel, 1e-3 <= h <= 1e3. None: h² is the standard deviation of the sample's cosines over
            its valid pairs, at least 1e-4.
        marginal: "joint" or "prior".

    Returns:
        (B, N) scores in nats, float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    return torch.ops.mi_pruner.mi_scores(
        visual,
        text,
        **_changed(
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=bandwidth,
            marginal=marginal,
        ),
    )


def greedy_select(
    scores: Tensor,
    visual: Tensor,
    keep: int | float,
    *,
    visual_prior: Tensor | None = None,
    visual_bandwidth: float = 0.63,
    redundancy: str = "mean",
    redundancy_weight: float = 1.0,
    budget: Tensor | None = None,
    min_gain: float | None = None,
    ratio: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Picks tokens one by one: at each step the one of largest marginal gain, the lowest index among equals.

    gain(i) = a_i − λ ρ_S(i) with a = `scores`, S the tokens picked so far, λ = `redundancy_weight` and
    R[i,s] = π_i r_vv[i,s] ℓ_vv[i,s], the density of `mi_scores` with the visual tokens in both roles; ρ = 0 while S is
    empty:

    * "mean":  ρ_S(i) = (1/|S|) Σ_{s∈S} R[i,s]
    * "chain":  ρ_S(i) = Σ_{s∈S} π_s R[i,s]
    * "max":  ρ_S(i) = max_{s∈S} R[i,s]
    * "none" (or λ = 0): the top-k of the scores.

    The picks for a smaller `keep` are the first picks of a larger one: select once, slice any smaller budget.

    Args:
        scores: (B, N) floating point; NaN counts as −inf, which can still be picked, last.
        visual: (B, N, D) visual tokens.
        keep: number of picks, 1 <= K <= N (int), or a ratio in (0, 1] (float): then K = max(1, floor(ratio·N + 0.5))
            and each sample keeps at most the same ratio of its own valid tokens.
        visual_prior: (B, N) float or bool, as in `mi_scores`; absent tokens are never picked.
        visual_bandwidth: h of the visual–visual kernel, 1e-3 <= h <= 1e3.
        redundancy: "mean", "chain", "max" or "none".
        redundancy_weight: λ, 0 <= λ <= 1e6.
        budget: (B,) int32 or int64, at most that many picks for a sample (clamped to [0, K]).
        min_gain: a sample stops for good at the first pick whose gain would be below it.
        ratio: in (0, 1]; at most max(1, floor(ratio·V + 0.5)) picks for a sample of V valid tokens, the product in
            float64. A float `keep` sets it.

    Returns:
        indices (B, K) int64 and gains (B, K) in nats, float32 (float64 for float64 features), in order of selection.
        Slots not used hold index −1 and gain −inf.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    count, ratio = _count_and_ratio(keep, ratio, visual)
    return torch.ops.mi_pruner.greedy_select(
        scores,
        visual,
        count,
        **_changed(
            visual_prior=visual_prior,
            visual_bandwidth=visual_bandwidth,
            redundancy=redundancy,
            redundancy_weight=redundancy_weight,
            budget=budget,
            min_gain=min_gain,
            ratio=ratio,
        ),
    )


def prune(
    visual: Tensor,
    text: Tensor,
    keep: int | float,
    *,
    visual_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    bandwidth: float | None = None,
    marginal: str = "joint",
    visual_bandwidth: float = 0.63,
    redundancy: str = "mean",
    redundancy_weight: float = 1.0,
    budget: Tensor | None = None,
    min_gain: float | None = None,
    ratio: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the visual tokens that say most about the text: `mi_scores`, then `greedy_select`, then a gather.

    The arguments are those of the two functions.

    Returns:
        tokens (B, K, D) in the dtype of `visual`, in their original order; their indices (B, K) int64, ascending; the
        gain (B, K) of each. Slots not used come last: zero tokens, index −1, gain −inf.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    count, ratio = _count_and_ratio(keep, ratio, visual)
    return torch.ops.mi_pruner.prune(
        visual,
        text,
        count,
        **_changed(
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=bandwidth,
            marginal=marginal,
            visual_bandwidth=visual_bandwidth,
            redundancy=redundancy,
            redundancy_weight=redundancy_weight,
            budget=budget,
            min_gain=min_gain,
            ratio=ratio,
        ),
    )


def mi_scores_varlen(
    visual: Tensor,
    text: Tensor,
    cu_seqlens_visual: Tensor,
    cu_seqlens_text: Tensor,
    max_seqlen_visual: int,
    max_seqlen_text: int,
    *,
    visual_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    bandwidth: float | None = None,
    marginal: str = "joint",
) -> Tensor:
    """`mi_scores` of samples of different sizes, packed one after another.

    Args:
        visual: (ΣN, D), text: (ΣM, D).
        cu_seqlens_visual, cu_seqlens_text: (B + 1,) int32 on the same device: sample b is rows cu[b] to cu[b + 1].
            Values out of range are clamped.
        max_seqlen_visual, max_seqlen_text: the longest sample's length; a longer sample is cut to it.
        visual_prior: (ΣN,), text_prior: (ΣM,), and the other options: as in `mi_scores`.

    Returns:
        (ΣN,) scores.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    return torch.ops.mi_pruner.mi_scores_varlen(
        visual,
        text,
        cu_seqlens_visual,
        cu_seqlens_text,
        max_seqlen_visual,
        max_seqlen_text,
        **_changed(
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=bandwidth,
            marginal=marginal,
        ),
    )


def greedy_select_varlen(
    scores: Tensor,
    visual: Tensor,
    cu_seqlens_visual: Tensor,
    cu_keep: Tensor,
    max_seqlen_visual: int,
    max_keep: int,
    total_keep: int,
    *,
    visual_prior: Tensor | None = None,
    visual_bandwidth: float = 0.63,
    redundancy: str = "mean",
    redundancy_weight: float = 1.0,
    min_gain: float | None = None,
    ratio: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`greedy_select` of samples of different sizes, packed one after another.

    Args:
        scores: (ΣN,), visual: (ΣN, D), visual_prior: (ΣN,).
        cu_seqlens_visual: (B + 1,) int32 on the same device, as in `mi_scores_varlen`.
        cu_keep: (B + 1,) int32 on the same device: sample b has cu_keep[b + 1] − cu_keep[b] picks, at cu_keep[b] of the
            outputs. Values out of range are clamped.
        max_seqlen_visual, max_keep: the longest sample's length, the largest number of picks.
        total_keep: length of the outputs, cu_keep[B].
        ratio, and the other options: as in `greedy_select`. A ratio bounds the picks within a sample's share.

    Returns:
        indices (total_keep,) int64, counted from each sample's own first token, and gains (total_keep,), in order of
        selection. Slots not used hold index −1 and gain −inf.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    return torch.ops.mi_pruner.greedy_select_varlen(
        scores,
        visual,
        cu_seqlens_visual,
        cu_keep,
        max_seqlen_visual,
        max_keep,
        total_keep,
        **_changed(
            visual_prior=visual_prior,
            visual_bandwidth=visual_bandwidth,
            redundancy=redundancy,
            redundancy_weight=redundancy_weight,
            min_gain=min_gain,
            ratio=ratio,
        ),
    )


def prune_varlen(
    visual: Tensor,
    text: Tensor,
    cu_seqlens_visual: Tensor,
    cu_seqlens_text: Tensor,
    cu_keep: Tensor,
    max_seqlen_visual: int,
    max_seqlen_text: int,
    max_keep: int,
    total_keep: int,
    *,
    visual_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    bandwidth: float | None = None,
    marginal: str = "joint",
    visual_bandwidth: float = 0.63,
    redundancy: str = "mean",
    redundancy_weight: float = 1.0,
    min_gain: float | None = None,
    ratio: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`prune` of samples of different sizes, packed one after another: no padding, one call.

    The arguments are those of `mi_scores_varlen` and `greedy_select_varlen`.

    Returns:
        tokens (total_keep, D), indices (total_keep,) int64, gains (total_keep,), packed by `cu_keep`; ascending
        indices in each sample, counted from its own first token; slots not used last: zero tokens, −1, −inf.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    return torch.ops.mi_pruner.prune_varlen(
        visual,
        text,
        cu_seqlens_visual,
        cu_seqlens_text,
        cu_keep,
        max_seqlen_visual,
        max_seqlen_text,
        max_keep,
        total_keep,
        **_changed(
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=bandwidth,
            marginal=marginal,
            visual_bandwidth=visual_bandwidth,
            redundancy=redundancy,
            redundancy_weight=redundancy_weight,
            min_gain=min_gain,
            ratio=ratio,
        ),
    )


def histogram_mi_scores(
    visual: Tensor,
    text: Tensor,
    *,
    visual_prior: Tensor | None = None,
    text_prior: Tensor | None = None,
    bins: int = 16,
) -> Tensor:
    """The mutual information between the coordinates of each visual token and of the text, from histograms.

    The D coordinates of a pair are D samples (v_i[d], t_j[d]) of two quantities, each counted in `bins` equal bins
    between its own extremes lo and hi, bin(x) = min(⌊(x − lo)·(bins/(hi − lo))⌋, bins − 1). With the counts c and
    p = c/D, averaged over the text by w, `text_prior` normalised:

        I[i,j] = Σ_xy p_xy log p_xy − Σ_x p_x log p_x − Σ_y p_y log p_y        score_i = Σ_j w_j I[i,j]

    The plug-in estimate is biased upwards by about (bins − 1)²/2D nats for large D, so for small D it tells little:
    independent vectors of D = 64 get about 1 nat with 16 bins. Scores of different D or `bins` don't compare.

    Args:
        visual: (B, N, D) visual tokens; their scale doesn't matter.
        text: (B, M, D) embeddings of the instruction's tokens, of the same dtype and device.
        visual_prior: (B, N) float or bool; only says which tokens are absent, as in `mi_scores`. They score 0.
        text_prior: (B, M) float or bool, p(t_j) up to scale. Default: uniform. No valid text: all scores are 0.
        bins: number of bins, 2 <= bins <= 64.

    Bins are computed in float32, of float64 features rounded to it, too. A vector falls into bin 0 as a whole, and has
    no information (exactly 0), where its extremes are equal or bins/(hi − lo) is no positive, finite float32.

    Returns:
        (B, N) scores in nats, float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    return torch.ops.mi_pruner.histogram_mi_scores(
        visual,
        text,
        **_changed(
            visual_prior=visual_prior,
            text_prior=text_prior,
            bins=bins,
        ),
    )


_DEFAULTS = {
    name: parameter.default
    for function in (greedy_select, prune, histogram_mi_scores)  # these have all options
    for name, parameter in inspect.signature(function).parameters.items()
}
