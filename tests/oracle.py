"""The specification in scalar float64 loops, one sample at a time, and the check of a greedy sequence of picks.

Nothing here is shared with the package: it says what the answers are, slowly. n visual tokens, m text tokens, d
coordinates; all arrays are numpy float64.
"""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

import numpy as np


def is_valid(rows, prior=None):
    """Which rows (n, d) are tokens at all: prior > 0 (False for NaN), finite row, finite squared norm."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(rows).all(axis=1) & np.isfinite((rows * rows).sum(axis=1))
    return finite if prior is None else finite & (np.asarray(prior, np.float64) > 0)


def normalise(prior, valid):
    """The prior over the valid tokens, summing to 1; infinite entries, where there are any, share all the mass."""
    weights = np.ones(len(valid)) if prior is None else np.asarray(prior, np.float64)
    weights = np.where(valid, weights, 0.0)
    if np.isinf(weights).any():
        weights = np.isinf(weights).astype(np.float64)
    if weights.any():
        weights = weights / weights.max()  # denormal weights would lose their digits in the next line
        weights = weights / math.fsum(weights)
    return weights


def unit(row):
    norm = math.sqrt(math.fsum(float(x) * float(x) for x in row))
    return [float(x) / norm if norm > 0 else 0.0 for x in row]


def cosines_of(visual, text, rows, columns):
    """{(i, j): ⟨v̂_i, t̂_j⟩} over the valid pairs."""
    v, t = {i: unit(visual[i]) for i in rows}, {j: unit(text[j]) for j in columns}
    return {(i, j): math.fsum(x * y for x, y in zip(v[i], t[j], strict=True)) for i in rows for j in columns}


def log_mean_exp(logs, weights):
    """log Σ w exp(logs), over the entries of positive weight."""
    top = max(x for x, w in zip(logs, weights, strict=True) if w > 0)
    return top + math.log(math.fsum(w * math.exp(x - top) for x, w in zip(logs, weights, strict=True) if w > 0))


@dataclass
class Density:
    """The conditional density of one sample: everything that the scores are made of."""

    visual_prior: np.ndarray  # (n,) π
    text_prior: np.ndarray  # (m,) w
    visual_valid: np.ndarray  # (n,) bool
    text_valid: np.ndarray  # (m,) bool
    squared_bandwidth: float
    log_r: np.ndarray  # (n, m) ℓ, 0 where a token is absent

    @property
    def conditional(self):
        """P[i|j] (n, m)."""
        return self.visual_prior[:, None] * np.exp(self.log_r) * (self.visual_valid[:, None] & self.text_valid)

    @property
    def null_weight(self):
        """w'_0 of the null word: that of an average word among the valid text tokens and itself."""
        return 1 / (int(self.text_valid.sum()) + 1)

    @property
    def word_weights(self):
        """w'_1 … w'_m, then w'_0 (m + 1,)."""
        return np.append((1 - self.null_weight) * self.text_prior, self.null_weight)

    @property
    def mixture(self):
        """Σ_j w'_j P[i|j] (n,), the null word among them, whose density is the prior."""
        return np.column_stack([self.conditional, self.visual_prior]) @ self.word_weights


def density(visual, text, visual_prior=None, text_prior=None, bandwidth=None) -> Density:
    v_valid, t_valid = is_valid(visual, visual_prior), is_valid(text, text_prior)
    prior, weight = normalise(visual_prior, v_valid), normalise(text_prior, t_valid)
    rows, columns = np.flatnonzero(v_valid), np.flatnonzero(t_valid)
    cosines = cosines_of(visual, text, rows.tolist(), columns.tolist())
    if bandwidth is not None:
        h2 = bandwidth * bandwidth
    elif cosines:
        mean = math.fsum(cosines.values()) / len(cosines)
        h2 = max(math.sqrt(math.fsum((c - mean) ** 2 for c in cosines.values()) / len(cosines)), 1e-4)
    else:
        h2 = 1e-4
    log_r = np.zeros((len(visual), len(text)))
    if len(rows):
        for j in columns:
            logs = [(cosines[i, j] - 1) / h2 for i in rows]
            normaliser = log_mean_exp(logs, prior[rows])
            for i, log_kernel in zip(rows, logs, strict=True):
                log_r[i, j] = log_kernel - normaliser
    return Density(prior, weight, v_valid, t_valid, h2, log_r)


def scores(visual, text, visual_prior=None, text_prior=None, bandwidth=None, marginal="joint"):
    """a (n,) of `mi_scores`."""
    p = density(visual, text, visual_prior, text_prior, bandwidth)
    null = p.null_weight if marginal == "joint" else 0.0  # of r = 1
    a = np.zeros(len(visual))
    for i in np.flatnonzero(p.visual_valid):
        mean_r_log_r, q = 0.0, 0.0
        for j in np.flatnonzero(p.text_valid):
            # exp overflows only where π = 0 beside an infinite prior: there π r is 0, and is left out of the sum
            r = math.exp(p.log_r[i, j]) if p.visual_prior[i] > 0 else 0.0
            mean_r_log_r += (1 - null) * p.text_prior[j] * r * p.log_r[i, j]
            q += (1 - null) * p.text_prior[j] * r
        q_log_q = q * math.log(q + null) if q > 0 else 0.0
        a[i] = p.visual_prior[i] * (mean_r_log_r - (q_log_q if marginal == "joint" else 0.0))
    return a


def bins_of(row, bins):
    """The bin of each coordinate of a row: the formula of the specification in float32, the rest in Python."""
    row = np.asarray(row, np.float64).astype(np.float32)
    low, high = row.min(), row.max()
    with np.errstate(divide="ignore"):
        scale = np.float32(bins) / (high - low)
    if not 0 < scale < np.inf:
        return [0] * len(row)
    return [min(math.floor((x - low) * scale), bins - 1) for x in row]


def plug_in_information(x, y):
    """I in nats of the pairs (x[d], y[d]) of integers, each as likely as it is frequent."""

    def entropy(values):
        return -math.fsum(c / len(values) * math.log(c / len(values)) for c in collections.Counter(values).values())

    return entropy(x) + entropy(y) - entropy(list(zip(x, y, strict=True)))


def histogram_scores(visual, text, visual_prior=None, text_prior=None, bins=16):
    """(n,) of `histogram_mi_scores`."""
    v_valid, t_valid = is_valid(visual, visual_prior), is_valid(text, text_prior)
    weight = normalise(text_prior, t_valid)
    words = {j: bins_of(text[j], bins) for j in np.flatnonzero(t_valid)}
    scores = np.zeros(len(visual))
    for i in np.flatnonzero(v_valid):
        own = bins_of(visual[i], bins)
        scores[i] = math.fsum(weight[j] * plug_in_information(own, word) for j, word in words.items())
    return scores


def redundancy_table(visual, visual_prior=None, bandwidth=0.63):
    """R[i, s] = π_i r_vv[i, s] ℓ_vv[i, s] (n, n), in whole columns: big enough for real sizes."""
    valid = is_valid(visual, visual_prior)
    prior = normalise(visual_prior, valid)
    rows = np.where(valid[:, None], visual, 0.0)
    rows = rows / np.abs(rows).max(axis=1, keepdims=True).clip(min=1e-300)  # squares of tiny rows must not underflow
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    log_kernel = (rows @ rows.T - 1) / bandwidth**2
    with np.errstate(divide="ignore"):
        joint = log_kernel + np.log(prior)[:, None]
    if not valid.any():
        return np.zeros_like(log_kernel)
    top = joint.max(axis=0)
    log_r = log_kernel - top - np.log(np.exp(joint - top).sum(axis=0))
    with np.errstate(over="ignore"):
        return np.where((prior > 0)[:, None] & valid, prior[:, None] * np.exp(log_r) * log_r, 0.0)


@dataclass
class Replay:
    regret: float  # the largest amount by which a pick's gain falls short of the best one's at its step
    error: float  # the largest error of a reported gain
    picks: int


def replay(indices, gains, a, table, prior, valid, redundancy="mean", weight=1.0, budget=None, min_gain=None, tol=0.0):
    """Follows a sequence of picks, each judged given the earlier ones, and checks that it ends where it must.

    `a` (n,) finite scores, `table` (n, n), `prior` (n,) normalised, `valid` (n,); `indices`, `gains` (k,).
    """
    rho, free = np.zeros(len(a)), valid.copy()
    limit = min(len(indices), int(valid.sum()), len(indices) if budget is None else max(budget, 0))
    regret = error = 0.0
    for step, pick in enumerate(indices):
        now = a - (0.0 if step == 0 or redundancy == "none" else weight * (rho / step if redundancy == "mean" else rho))
        if pick < 0:
            stopped = min_gain is not None and free.any() and now[free].max() < min_gain + tol
            assert step == limit or stopped, f"stopped at pick {step} of {limit}"
            assert all(i == -1 for i in indices[step:])
            assert all(g == -math.inf for g in gains[step:])
            return Replay(regret, error, step)
        assert step < limit, f"more than {limit} picks"
        assert free[pick], f"pick {step}: token {pick} is absent or already taken"
        assert min_gain is None or gains[step] >= min_gain
        regret = max(regret, now[free].max() - now[pick])
        error = max(error, abs(gains[step] - now[pick]))
        free[pick] = False
        column = table[:, pick] * (prior[pick] if redundancy == "chain" else 1.0)
        rho = column if step == 0 else np.maximum(rho, column) if redundancy == "max" else rho + column
    return Replay(regret, error, len(indices))
