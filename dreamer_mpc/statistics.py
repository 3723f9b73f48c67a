"""Summaries of returns and their stratified bootstrap intervals (Agarwal et al. 2021, arXiv:2108.13264).

Scores are [*, E, C]: E runs (episodes) in each of C strata (checkpoints or tasks). Every statistic reduces the last two
dimensions, so that the bootstrap calls it on many resamples at once.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, "*b E C"]
Reduced = Float[np.ndarray, "*b"] | float  # a number where there are no leading dimensions
Statistic = Callable[..., Reduced]

CHUNK = 200  # resamples at a time, so that memory stays small


def mean(scores: Scores) -> Reduced:
    """Mean over strata of their means."""
    return scores.mean(axis=(-2, -1))


def median(scores: Scores) -> Reduced:
    """Median over strata of their means; with one stratum it is the mean."""
    return np.median(scores.mean(axis=-2), axis=-1)


def iqm(scores: Scores) -> Reduced:
    """Interquartile mean: the mean of all scores but the lowest and the highest quarter, rounded down."""
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def probability_of_improvement(x: Float[np.ndarray, "*b E C"], y: Float[np.ndarray, "*b F C"]) -> Reduced:
    """P(a run of x scores above a run of y in the same stratum), a tie counting half; mean over strata."""
    x, y = x[..., :, None, :], y[..., None, :, :]  # [*, E, 1, C], [*, 1, F, C]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(-3, -2, -1))


def bootstrap_interval(
    statistic: Statistic, *scores: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(*scores)`, each [E, C], runs resampled within each stratum and argument."""
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, CHUNK):
        count = min(CHUNK, resamples - start)
        draws.append(statistic(*(_resample(x, count, rng) for x in scores)))
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resample(scores: Float[np.ndarray, "E C"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "R E C"]:
    index = rng.integers(len(scores), size=(count, *scores.shape))
    return np.take_along_axis(scores[None], index, axis=1)
