"""The bootstrap interval against cases with a known answer."""

import numpy as np
import pytest

from dreamer_mpc.statistics import bootstrap_interval


@pytest.mark.parametrize("level, z", [(0.95, 1.95996), (0.68, 0.99446)])
def test_is_the_normal_interval_in_a_large_sample(level, z):
    returns = np.random.default_rng(1).gamma(2.0, 100.0, size=400)
    low, high = bootstrap_interval(returns, level)
    error = returns.std() / len(returns) ** 0.5
    assert low == pytest.approx(returns.mean() - z * error, abs=0.1 * error)
    assert high == pytest.approx(returns.mean() + z * error, abs=0.1 * error)


@pytest.mark.parametrize("level, expected", [(0.95, (0, 1)), (0.4, (0.5, 0.5))])
def test_two_returns_have_means_0_half_and_1_with_odds_1_2_1(level, expected):
    assert bootstrap_interval(np.array([0.0, 1.0]), level) == expected


def test_a_single_return_and_equal_returns_have_no_width():
    assert bootstrap_interval(np.array([7.0])) == (7.0, 7.0)
    assert bootstrap_interval(np.full(9, 3.0)) == (3.0, 3.0)


def test_repeats_with_its_seed_and_follows_it():
    returns = np.random.default_rng(2).normal(size=10)
    assert bootstrap_interval(returns, resamples=500) == bootstrap_interval(returns, resamples=500)
    assert bootstrap_interval(returns, resamples=500) != bootstrap_interval(returns, resamples=500, seed=1)
    assert bootstrap_interval(returns, resamples=500) != bootstrap_interval(returns, resamples=50)
