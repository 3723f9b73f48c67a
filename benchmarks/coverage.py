"""How often intervals cover the true mean: Student's t, which `compare` prints, and bootstraps for comparison.

    python -m benchmarks.coverage

Returns are drawn from populations with a known mean, and the 95 % interval of each sample either contains it or not.
A quarter of an hour on a CPU; `--samples 500` is enough for the first digit. The table is in docs/statistics.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dreamer_mpc.util.intervals import mean_interval

EPISODES = (5, 10, 20, 32)
LEVEL = 0.95


@dataclass(frozen=True)
class Population:
    """A distribution of returns, and its mean."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    mean: float

    def truth(self, statistic: str) -> float:
        """The true value of the `mean` or the interquartile mean, `iqm`; the latter from a large sample."""
        if statistic == "mean":
            return self.mean
        return float(_interquartile(self.draw(np.random.default_rng(1), (4_000_000,)), axis=0))


def _failing(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.1, rng.normal(300, 100, shape), rng.normal(800, 20, shape))


POPULATIONS = {
    "normal": Population(lambda rng, shape: rng.normal(700, 30, shape), 700.0),
    # A mirrored gamma distribution: a long tail of low returns.
    "skewed": Population(lambda rng, shape: 800 - rng.gamma(2.0, 30.0, shape), 740.0),
    # A tenth around 300, the others around 800.
    "failures": Population(_failing, 750.0),
}


def t_coverage(population: str, episodes: int, strata: int = 1, samples: int = 4000, seed: int = 0) -> float:
    """The share of samples whose t interval contains the mean; stratum c has c + 1 times the spread."""
    rng, known = np.random.default_rng(seed), POPULATIONS[population]
    scores = (known.draw(rng, (samples, episodes, strata)) - known.mean) * np.arange(1, strata + 1)
    return float(np.mean([low <= 0 <= high for low, high in map(mean_interval, scores)]))


def bootstrap_coverage(
    population: str, episodes: int, statistic: str, method: str, samples: int, resamples: int = 1000, seed: int = 0
) -> float:
    """The same for scipy's bootstrap, of the mean or of the interquartile mean."""
    rng, known = np.random.default_rng(seed), POPULATIONS[population]
    function = np.mean if statistic == "mean" else _interquartile
    truth, covered = known.truth(statistic), 0
    for scores in known.draw(rng, (samples, episodes)):
        low, high = stats.bootstrap(
            (scores,), function, n_resamples=resamples, confidence_level=LEVEL, method=method, rng=rng
        ).confidence_interval
        covered += low <= truth <= high
    return covered / samples


def _interquartile(scores: np.ndarray, axis: int) -> np.ndarray:
    return stats.trim_mean(scores, 0.25, axis=axis)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="samples of each kind")
    samples = parser.parse_args().samples
    print("| returns | episodes | t, mean | percentile, mean | BCa, mean | percentile, IQM | BCa, IQM |")
    print("|---|---|---|---|---|---|---|")
    for name in POPULATIONS:
        for episodes in EPISODES:
            shares = [t_coverage(name, episodes, samples=samples)]
            for statistic in ("mean", "iqm"):
                for method in ("percentile", "BCa"):
                    shares.append(bootstrap_coverage(name, episodes, statistic, method, samples))
            cells = [name, str(episodes), *(f"{100 * share:.1f} %" for share in shares)]
            print(f"| {' | '.join(cells)} |", flush=True)
    print()
    for name in POPULATIONS:
        shares = [t_coverage(name, episodes, strata=3, samples=samples) for episodes in EPISODES]
        print(f"t, three checkpoints, {name}: " + ", ".join(f"{100 * share:.1f} %" for share in shares))


if __name__ == "__main__":
    main()
