"""Statistics of returns: means with calibrated intervals, failed episodes, and corrections for many comparisons.

Scores are [E, C]: E episodes in each of C strata (checkpoints). docs/statistics.md has the measured coverage of this
interval and of alternatives.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Scores = Float[np.ndarray, "E C"]

FEWEST = 5  # least number of episodes per stratum for an interval, a test or the detection of failed episodes
FAR_BELOW = -3.5  # modified z-score of Iglewicz and Hoaglin
SHARE_LOST = 0.2  # of the median


def mean_interval(scores: Scores, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean over strata of their means; None with fewer than FEWEST episodes."""
    return strata_interval(list(scores.T), level)


def strata_interval(strata: Sequence[Float[np.ndarray, " _"]], level: float = 0.95) -> tuple[float, float] | None:
    """The same for strata of different sizes, all of which need FEWEST episodes."""
    if min(map(len, strata)) < FEWEST:
        return None
    from scipy import special  # here, as its import takes a third of a second, and most runs need no interval

    error, freedom = _standard_error(strata)
    mean, half = float(np.mean([x.mean() for x in strata])), float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return mean - half, mean + half


def p_value(differences: Scores) -> float | None:
    """Two-sided p-value of Student's t test that the mean is 0; None with fewer than FEWEST episodes.

    It is below 0.05 exactly if 0 lies outside of the 95 % interval.
    """
    if len(differences) < FEWEST:
        return None
    error, freedom = _standard_error(list(differences.T))
    mean = abs(float(differences.mean()))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy import special  # as above

    return float(2 * special.stdtr(freedom, -mean / error))


def _standard_error(strata: Sequence[Float[np.ndarray, " _"]]) -> tuple[float, float]:
    """Variance of the mean over strata of their means, and its degrees of freedom (Welch and Satterthwaite)."""
    episodes = np.array([len(stratum) for stratum in strata])
    variances = np.array([stratum.var(ddof=1) for stratum in strata]) / episodes  # of each stratum's mean
    total = float(variances.sum())
    if total == 0:
        return 0.0, float(episodes.min() - 1)
    freedom = total**2 / float((variances**2 / (episodes - 1)).sum())
    return total**0.5 / len(strata), freedom


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of all scores but the lowest and the highest quarter, rounded down.

    It has no interval: none of those tried has the nominal coverage at five episodes.
    """
    ordered = np.sort(scores, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def failed(returns: Float[np.ndarray, " E"]) -> Bool[np.ndarray, " E"]:
    """Mask of the episodes of one planner on one checkpoint that ended far below the others; none below FEWEST.

    Far below is a modified z-score, 0.6745 (x - median) / MAD with MAD the median absolute deviation, below -3.5
    (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers), and more than a fifth of the median's size below it.
    The score alone flags an episode in 7 % of evaluations of 10 normal returns (0.9 % of the episodes) and in 5 % of 32
    (0.2 %), however close together they lie. With the fifth that is less than 0.1 % where the standard deviation is 4 %
    of the mean, and 2 % and 4 % where it is 8 %. Where more than half of the returns are equal, MAD is 0 and the fifth
    decides alone; with a median of 0 none has failed. Where a third or more fail, MAD grows with them and may hide all.
    """
    returns = np.asarray(returns, dtype=float)
    if len(returns) < FEWEST:
        return np.zeros(len(returns), dtype=bool)
    median = np.median(returns)
    deviation = np.median(np.abs(returns - median))
    below = 0.6745 * (returns - median) < FAR_BELOW * deviation
    return below & (returns < median - SHARE_LOST * abs(median)) & (median != 0)


def count_failed(scores: Scores) -> int | None:
    """Number of failed episodes over all strata; None with fewer than FEWEST per stratum."""
    return None if len(scores) < FEWEST else int(sum(failed(column).sum() for column in scores.T))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's step-down correction (1979).

    If those at or below 0.05 are called significant, the chance that any of them is false is at most 5 %.
    """
    order = np.argsort(p_values)
    ordered = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(ordered), 1)
    return adjusted.tolist()
