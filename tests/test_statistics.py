"""Statistics against rliable, and the bootstrap interval against cases with a known answer."""

import warnings

import numpy as np
import pytest

from dreamer_mpc.statistics import bootstrap_interval, iqm, mean, median, probability_of_improvement

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from rliable import library, metrics

RLIABLE = {mean: metrics.aggregate_mean, median: metrics.aggregate_median, iqm: metrics.aggregate_iqm}


def scores(runs, strata, seed=0):
    """Strata of very different levels and spreads, so that mixing them up would show."""
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, 100.0, size=(runs, strata)) * np.arange(1, strata + 1) + rng.normal(size=strata)


@pytest.mark.parametrize("shape", [(10, 1), (3, 5), (7, 4), (1, 1)])
@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda f: f.__name__)
def test_statistics_are_rliable_s(statistic, shape):
    x = scores(*shape)
    assert statistic(x) == pytest.approx(RLIABLE[statistic](x), rel=1e-12)


def test_iqm_leaves_out_the_outer_quarters():
    assert iqm(np.array([[-1e9, 1.0], [3.0, 1e9]])) == 2.0


@pytest.mark.parametrize("strata", [1, 3])
def test_probability_of_improvement_is_rliable_s(strata):
    x, y = scores(8, strata, seed=1).round(-2), scores(6, strata, seed=2).round(-2)  # rounded: some ties
    assert np.isin(x, y).any()
    expected = metrics.probability_of_improvement(x, y)
    assert probability_of_improvement(x, y) == pytest.approx(expected, rel=1e-12)
    assert probability_of_improvement(y, x) == pytest.approx(1 - expected, rel=1e-12)
    assert probability_of_improvement(x, x) == 0.5 == metrics.probability_of_improvement(x, x)


@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda f: f.__name__)
def test_intervals_are_rliable_s(statistic):
    x = scores(10, 3)
    np.random.seed(0)
    _, expected = library.get_interval_estimates({"x": x}, lambda s: np.array([RLIABLE[statistic](s)]), reps=4000)
    low, high = bootstrap_interval(statistic, x, resamples=20_000)
    width = high - low
    assert np.array([low, high]) == pytest.approx(expected["x"][:, 0], abs=0.06 * width)


def test_intervals_of_two_scores_resample_each_by_itself():
    x, y = scores(9, 2, seed=3), scores(9, 2, seed=4) * 0.8
    np.random.seed(0)
    _, expected = library.get_interval_estimates(
        {"x": [x, y]}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=1000
    )
    low, high = bootstrap_interval(probability_of_improvement, x, y)
    assert np.array([low, high]) == pytest.approx(expected["x"][:, 0], abs=0.1 * (high - low))


def test_strata_are_resampled_apart():
    """Between strata that differ but do not vary inside, nothing is uncertain."""
    x = np.repeat([[1.0, 100.0, 5.0]], 6, axis=0)
    assert bootstrap_interval(mean, x) == (x.mean(), x.mean())


@pytest.mark.parametrize("level, z", [(0.95, 1.95996), (0.68, 0.99446)])
def test_the_interval_of_the_mean_is_the_normal_one_in_a_large_sample(level, z):
    x = scores(400, 1, seed=1)
    low, high = bootstrap_interval(mean, x, level=level)
    error = x.std() / len(x) ** 0.5
    assert low == pytest.approx(x.mean() - z * error, abs=0.1 * error)
    assert high == pytest.approx(x.mean() + z * error, abs=0.1 * error)


@pytest.mark.parametrize("level, expected", [(0.95, (0, 1)), (0.4, (0.5, 0.5))])
def test_two_returns_have_means_0_half_and_1_with_odds_1_2_1(level, expected):
    assert bootstrap_interval(mean, np.array([[0.0], [1.0]]), level=level) == expected


def test_a_single_return_and_equal_returns_have_no_width():
    assert bootstrap_interval(mean, np.array([[7.0]])) == (7.0, 7.0)
    assert bootstrap_interval(mean, np.full((9, 1), 3.0)) == (3.0, 3.0)


def test_repeats_with_its_seed_and_follows_it():
    x = np.random.default_rng(2).normal(size=(10, 1))
    once = bootstrap_interval(mean, x, resamples=500)
    assert once == bootstrap_interval(mean, x, resamples=500)
    assert once != bootstrap_interval(mean, x, resamples=500, seed=1)
    assert once != bootstrap_interval(mean, x, resamples=50)
