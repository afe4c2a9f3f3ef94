"""The same algorithm in plain PyTorch, made as fast as plain PyTorch allows: the rival that the kernels must beat.

Three pruners, one answer (that of `mi_pruner.prune`, in every mode):

* `prune`: the full visual-visual product in one `bmm`, everything that does not change hoisted out of the greedy loop,
  five small operators a step;
* `prune_symmetric`: the same, but as the product is symmetric, only its upper triangle is computed, band by band;
* `prune_compiled`: the `torch.compile` twin of `prune_symmetric`: scores, density and loop compiled, products not.

Variants that lost to what stands here (2 CPU cores, float32, N = 576 / 2880 / 10000):

* normalised features instead of a rescaled product: one more (N, D) array, and its page faults;
* the density of the whole (N, N) matrix at once: up to 4 times slower than bands that stay in the cache;
* the triangle by recursive halving: level with bands;
* `gather` or `rows[index]` instead of `index_select(out=)` in the loop: 1.1 to 1.5 times slower;
* `torch.compile` of a single greedy step: twice as slow as the eager step, since a compiled call costs more than five
  operators. Eight steps unrolled in one compiled call are 1.2 to 1.8 times faster than eager: that is the twin.

Nothing synchronises with the host and no shape depends on data: a CUDA graph can capture each pruner. Half types
accumulate in float32. Not covered: rows that are not finite (padding has a zero prior, and holds numbers), `budget`,
`min_gain`, `keep` as a ratio.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .cosines import accumulable, accumulator, inverse_norms, product

CPU_BAND = 128  # rows of the density made at once: 128 x 10000 float32 is 5 MB, near enough to the cores
TRIANGLE_BANDS = 16  # skip 47 % of the product; more, thinner bands cost the GEMM what they save
CPU_TRIANGLE_BAND = 192  # the fewest rows that keep the GEMM near its full rate
CUDA_BAND_ELEMENTS = 1 << 26  # 256 MB of float32: few launches
CUDA_TRIANGLE_BAND = 2048  # each band must still fill the device
STEPS = 8  # greedy steps in one compiled call; more only lengthen the compilation

GreedyLoop = Callable[[Tensor, Tensor, int, str, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PlainPruner:
    """The pipeline; each stage can be exchanged for a twin of the same meaning."""

    scores: Callable[..., Tensor]
    gram: Callable[[Tensor], Tensor]
    density: Callable[..., None]
    loop: GreedyLoop

    def __call__(
        self,
        visual: Tensor,
        text: Tensor,
        keep: int,
        *,
        visual_prior: Tensor | None = None,
        text_prior: Tensor | None = None,
        bandwidth: float | None = None,
        marginal: str = "joint",
        visual_bandwidth: float = 0.63,
        redundancy: str = "mean",
        redundancy_weight: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """visual (B, N, D), text (B, M, D) -> tokens (B, K, D), indices (B, K) ascending, gains (B, K)."""
        wide = accumulable(visual)
        inverse = inverse_norms(wide)
        scores = self.scores(
            wide,
            accumulable(text),
            inverse,
            visual_prior=visual_prior,
            text_prior=text_prior,
            bandwidth=bandwidth,
            marginal=marginal,
        )
        prior = _normalised(visual_prior, scores)
        if visual_prior is not None:
            scores = scores.masked_fill(prior == 0, -torch.inf)
        if redundancy == "none" or redundancy_weight == 0:
            ordered, order = scores.sort(dim=1, descending=True, stable=True)
            indices, gains = order[:, :keep], ordered[:, :keep]
        else:
            rows = self._redundancy_rows(wide, inverse, prior, visual_bandwidth**2, redundancy == "chain")
            indices, gains = self.loop(scores, rows, keep, redundancy, redundancy_weight)
        return _gather(visual, indices, gains, padded=visual_prior is not None)

    def _redundancy_rows(self, wide: Tensor, inverse: Tensor, prior: Tensor, variance: float, chain: bool) -> Tensor:
        """rows[s, i] = R[i, s] = pi_i r_vv[i, s] l_vv[i, s], times pi_s for `chain`: (B, N, N), s first, so that the
        loop reads contiguous rows. Made in place of the product."""
        rows = self.gram(wide)
        batch, count, _ = rows.shape
        band = CUDA_BAND_ELEMENTS // (batch * count) + 1 if rows.is_cuda else CPU_BAND
        for start in range(0, count, band):
            stop = min(start + band, count)
            self.density(rows[:, start:stop], inverse[:, start:stop], inverse, prior, variance)
            if chain:
                rows[:, start:stop].mul_(prior[:, start:stop, None])
        return rows


def mi_scores(
    visual: Tensor,
    text: Tensor,
    inverse: Tensor,
    *,
    visual_prior: Tensor | None,
    text_prior: Tensor | None,
    bandwidth: float | None,
    marginal: str,
) -> Tensor:
    """visual (B, N, D), its inverse norms (B, N), text (B, M, D) -> a (B, N), in nats; 0 for absent tokens."""
    cosines = product(visual, text) * inverse[:, :, None] * inverse_norms(text)[:, None, :]
    pi = _normalised(visual_prior, cosines[:, :, 0])[:, :, None]
    weights = _normalised(text_prior, cosines[:, 0, :])[:, :, None]
    if bandwidth is None:
        variance = _cosine_deviation(cosines, pi, weights, visual_prior is not None or text_prior is not None)
        logits = (cosines - 1) / variance[:, None, None]
    else:
        logits = (cosines - 1) / bandwidth**2
    log_ratio = logits - torch.logsumexp(logits + pi.log(), dim=1, keepdim=True)
    ratio = log_ratio.exp()
    if marginal == "joint":
        null = 1 / ((weights > 0).sum(dim=1, keepdim=True) + 1)  # of the null word, beside the valid text tokens
        weights = weights * (1 - null)
    information = torch.bmm(ratio * log_ratio, weights)
    if marginal == "joint":
        mixture = torch.bmm(ratio, weights)
        information = information - mixture * (mixture + null).log()
    scores = (pi * information).squeeze(2)
    return scores if visual_prior is None else scores.masked_fill(pi.squeeze(2) == 0, 0)


def full_gram(visual: Tensor) -> Tensor:
    """(B, N, D) -> inner products (B, N, N)."""
    return product(visual, visual)


def triangle_gram(visual: Tensor) -> Tensor:
    """(B, N, D) -> inner products (B, N, N), half of them by transposition."""
    batch, count, _ = visual.shape
    band = max(count // TRIANGLE_BANDS, CUDA_TRIANGLE_BAND if visual.is_cuda else CPU_TRIANGLE_BAND)
    gram = visual.new_empty((batch, count, count), dtype=accumulator(visual))
    for start in range(0, count, band):
        stop = min(start + band, count)
        gram[:, start:stop, start:] = product(visual[:, start:stop], visual[:, start:])
        gram[:, stop:, start:stop] = gram[:, start:stop, stop:].mT
    return gram


def density_inplace(band: Tensor, inverse_rows: Tensor, inverse: Tensor, prior: Tensor, variance: float) -> None:
    """Inner products (B, b, N) of rows s with all i -> pi_i r l of the density of i given s, in place.

    K(s, s) = 1 bounds the sum from below and no exponent exceeds 0: no maximum need be taken out.
    """
    logits = band.mul_((inverse / variance)[:, None, :]).mul_(inverse_rows[:, :, None]).sub_(1 / variance)
    kernel = logits.exp()
    total = torch.bmm(kernel, prior[:, :, None])
    logits.sub_(total.log()).mul_(kernel.mul_(prior[:, None, :]).div_(total))


def density_fused(band: Tensor, inverse_rows: Tensor, inverse: Tensor, prior: Tensor, variance: float) -> None:
    """`density_inplace` as expressions, for the compiler to fuse."""
    logits = (band * inverse[:, None, :] * inverse_rows[:, :, None] - 1) / variance
    kernel = logits.exp() * prior[:, None, :]
    total = kernel.sum(dim=2, keepdim=True)
    band.copy_(kernel / total * (logits - total.log()))


def greedy_loop(scores: Tensor, rows: Tensor, keep: int, redundancy: str, weight: float) -> tuple[Tensor, Tensor]:
    """scores (B, N), -inf where absent, rows (B, N, N) -> indices (B, K) in selection order, gains (B, K)."""
    batch, count = scores.shape
    flat = rows.flatten(0, 1)
    first_row = torch.arange(0, batch * count, count, device=scores.device)
    left = scores.clone()
    penalty, gain, row = torch.zeros_like(left), torch.empty_like(left), torch.empty_like(left)
    indices = torch.empty((keep, batch), dtype=torch.int64, device=scores.device)
    gains = torch.empty((keep, batch), dtype=scores.dtype, device=scores.device)
    slots = zip(indices.unbind(), gains.unbind(), indices[:, :, None].unbind(), strict=True)
    for step, (index, value, column) in enumerate(slots):
        torch.sub(left, penalty, alpha=weight / max(step, 1) if redundancy == "mean" else weight, out=gain)
        torch.max(gain, 1, out=(value, index))
        left.scatter_(1, column, -torch.inf)
        torch.index_select(flat, 0, index if batch == 1 else index + first_row, out=row)
        if redundancy != "max":
            penalty.add_(row)
        elif step == 0:
            penalty.copy_(row)
        else:
            torch.maximum(penalty, row, out=penalty)
    return indices.mT, gains.mT


def _steps(
    left: Tensor, penalty: Tensor, flat: Tensor, first_row: Tensor, rates: Tensor, redundancy: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`STEPS` greedy steps: left and penalty (B, N) after them, indices (B, STEPS), gains (B, STEPS)."""
    picked, values = [], []
    for rate in rates.unbind():
        rho = torch.where(penalty.isneginf(), 0, penalty) if redundancy == "max" else penalty
        value, index = (left - rate * rho).max(dim=1)
        left = left.scatter(1, index[:, None], -torch.inf)
        row = flat[index + first_row]
        penalty = torch.maximum(penalty, row) if redundancy == "max" else penalty + row
        picked.append(index)
        values.append(value)
    return left, penalty, torch.stack(picked, 1), torch.stack(values, 1)


@cache
def _compiled_steps() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    return torch.compile(_steps, dynamic=False, fullgraph=True)


def compiled_loop(scores: Tensor, rows: Tensor, keep: int, redundancy: str, weight: float) -> tuple[Tensor, Tensor]:
    """`greedy_loop`, `STEPS` steps at a time. The last call may run past `keep`; what it picks there is cut off."""
    batch, count = scores.shape
    calls = -(-keep // STEPS)
    first_row = torch.arange(0, batch * count, count, device=scores.device)
    rates = torch.full((calls * STEPS,), weight, dtype=scores.dtype, device=scores.device)
    if redundancy == "mean":
        rates /= torch.arange(calls * STEPS, device=scores.device).clamp(min=1)
    left, penalty = scores, torch.full_like(scores, -torch.inf if redundancy == "max" else 0)
    picked, values = [], []
    flat, steps = rows.flatten(0, 1), _compiled_steps()
    for chunk in rates.view(calls, STEPS).unbind():
        left, penalty, index, value = steps(left, penalty, flat, first_row, chunk, redundancy)
        picked.append(index)
        values.append(value)
    return torch.cat(picked, 1)[:, :keep], torch.cat(values, 1)[:, :keep]


def _gather(visual: Tensor, indices: Tensor, gains: Tensor, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Selection order -> tokens, indices ascending, gains; slots that found no valid token last, with index -1."""
    batch, count, width = visual.shape
    if padded:
        indices = indices.masked_fill(gains.isneginf(), count)
    indices, order = indices.sort(dim=1)
    gains = gains.gather(1, order)
    rows = indices.clamp(max=count - 1) if padded else indices
    first_row = torch.arange(0, batch * count, count, device=visual.device)[:, None]
    tokens = visual.flatten(0, 1).index_select(0, (rows + first_row).flatten()).view(batch, -1, width)
    if padded:
        unused = indices == count
        tokens, indices = tokens.masked_fill(unused[:, :, None], 0), indices.masked_fill(unused, -1)
    return tokens, indices, gains


def _normalised(prior: Tensor | None, like: Tensor) -> Tensor:
    """A prior (B, n) up to scale, None for uniform -> one that sums to 1, 0 for absent tokens; all 0 if all absent."""
    if prior is None:
        return torch.full_like(like, 1 / like.shape[1])
    prior = prior.to(like.dtype)
    prior = torch.where(prior > 0, prior, 0)
    return prior / prior.sum(dim=1, keepdim=True).clamp(min=torch.finfo(like.dtype).tiny)


def _cosine_deviation(cosines: Tensor, pi: Tensor, weights: Tensor, masked: bool) -> Tensor:
    """Population standard deviation of the cosines (B, N, M) over the valid pairs -> (B,), at least 1e-4."""
    if not masked:
        return cosines.flatten(1).std(dim=1, correction=0).clamp(min=1e-4)
    valid = (pi > 0) & (weights > 0).mT
    pairs = valid.sum(dim=(1, 2)).clamp(min=1)
    mean = (cosines * valid).sum(dim=(1, 2)) / pairs
    squares = ((cosines - mean[:, None, None]).square() * valid).sum(dim=(1, 2))
    return (squares / pairs).sqrt().clamp(min=1e-4)


prune = PlainPruner(mi_scores, full_gram, density_inplace, greedy_loop)
prune_symmetric = PlainPruner(mi_scores, triangle_gram, density_inplace, greedy_loop)


def prune_compiled(visual: Tensor, text: Tensor, keep: int, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`prune_symmetric`, compiled for each new shape."""
    return _compiled()(visual, text, keep, **options)


@cache  # made on first use: the compiler takes seconds to import
def _compiled() -> PlainPruner:
    return PlainPruner(
        torch.compile(mi_scores, dynamic=False, fullgraph=True),
        triangle_gram,
        torch.compile(density_fused, dynamic=False, fullgraph=True),
        compiled_loop,
    )
