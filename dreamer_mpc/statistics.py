"""Summaries of returns over episodes."""

import numpy as np
from jaxtyping import Float


def bootstrap_interval(
    returns: Float[np.ndarray, " E"], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over E episodes."""
    rng = np.random.default_rng(seed)
    means = returns[rng.integers(len(returns), size=(resamples, len(returns)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
