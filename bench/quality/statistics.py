"""How sure a difference is: a paired bootstrap over seeds and scenes, with bands that hold for all comparisons at once.

Seeds (trained models) and scenes are crossed, so both are drawn with replacement, independently: a draw of scenes is
the same for all models and methods, which keeps every comparison paired. A bootstrap over three seeds is narrower than
the truth, so a band is also widened to hold every seed's own difference: it lies on one side of zero only where the
seeds agree.
"""

import numpy as np

DRAWS = 2000
LEVEL = 0.95


def differences(right: np.ndarray, baseline: np.ndarray, seed: int = 0) -> np.ndarray:
    """Mean difference of each method from a baseline, and its simultaneous band.

    right: (methods, seeds, scenes, questions of a scene) 0 or 1; baseline: (methods, seeds, scenes, questions), what
    each is compared with. Returns (methods, 3): difference, low, high, in shares. The bands are studentised: a
    common multiple of each bootstrap standard error, the 95 % quantile over draws of the largest absolute deviation
    among all methods (sup-t), and hold the difference of each seed.
    """
    difference = (right.astype(float) - baseline).mean(axis=3)  # (methods, seeds, scenes)
    _, seeds, scenes = difference.shape
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    of_scenes = rng.multinomial(scenes, np.full(scenes, 1 / scenes), DRAWS) / scenes
    drawn = np.einsum("ds,mst,dt->md", of_seeds, difference, of_scenes, optimize=True)
    mean = difference.mean(axis=(1, 2))
    error = drawn.std(axis=1)
    deviation = np.divide(
        abs(drawn - mean[:, None]), error[:, None], where=error[:, None] > 0, out=np.zeros_like(drawn)
    )
    half = np.quantile(deviation.max(axis=0), LEVEL) * error
    of_seed = difference.mean(axis=2)
    low, high = np.minimum(mean - half, of_seed.min(axis=1)), np.maximum(mean + half, of_seed.max(axis=1))
    return np.stack([mean, low, high], axis=1)


def auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """How often a positive outranks a negative, ties half: (Q, N), (Q, N) bool twice -> (Q,), NaN without a pair."""
    above = (scores[:, :, None] > scores[:, None, :]) + 0.5 * (scores[:, :, None] == scores[:, None, :])
    pairs = positive[:, :, None] & negative[:, None, :]
    with np.errstate(invalid="ignore"):
        return (above * pairs).sum(axis=(1, 2)) / pairs.sum(axis=(1, 2))
