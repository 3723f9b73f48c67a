"""Statistics against hand-computed numbers, coverage of the interval by simulation, failed ones on real returns."""

import csv
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import POPULATIONS, t_coverage
from dreamer_mpc.util.intervals import FEWEST, count_failed, failed, holm, iqm, mean_interval, p_value

RESULTS = Path(__file__).resolve().parent.parent / "results"


def column(*values):
    return np.array(values, dtype=float)[:, None]


def test_the_interval_of_one_stratum_is_student_s():
    """1 to 5: mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5), t of 4 degrees of freedom 2.7764."""
    x, half = column(1, 2, 3, 4, 5), 2.7764 * 0.5**0.5
    assert mean_interval(x) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert mean_interval(x, level=0.8) == pytest.approx((3 - 1.0841, 3 + 1.0841), abs=1e-3)


def test_strata_have_their_own_spread_and_the_degrees_of_freedom_are_welch_s():
    """Variances of the two means 0.5 and 2: error sqrt(2.5) / 2, freedom 2.5^2 / ((0.25 + 4) / 4) = 5.882, t 2.459."""
    scores = np.array([[1, 12], [2, 14], [3, 16], [4, 18], [5, 20]], dtype=float)
    half = 2.4588 * 2.5**0.5 / 2
    assert mean_interval(scores) == pytest.approx((9.5 - half, 9.5 + half), abs=1e-3)
    assert mean_interval(scores) == pytest.approx(mean_interval(scores + [0.0, 1000.0]) - np.array(500.0))


def test_strata_that_differ_but_do_not_vary_are_certain():
    assert mean_interval(np.repeat([[1.0, 100.0, 4.0]], 6, axis=0)) == (35.0, 35.0)


def test_fewer_than_five_episodes_have_neither_interval_nor_test_nor_failures():
    few, enough = np.ones((FEWEST - 1, 3)), np.ones((FEWEST, 3))
    assert FEWEST == 5
    assert mean_interval(few) is None and mean_interval(enough) == (1.0, 1.0)
    assert p_value(few) is None and p_value(enough) == 0.0 and p_value(0 * enough) == 1.0
    assert count_failed(few) is None and count_failed(enough) == 0
    assert not failed(np.array([0.0, 100.0, 100.0, 100.0])).any()


def test_the_p_value_is_student_s():
    """Mean 3 of 1 to 5: t = 3 / sqrt(0.5) = 4.2426 with 4 degrees of freedom, p = 0.01324; the sign does not matter."""
    assert p_value(column(1, 2, 3, 4, 5)) == pytest.approx(0.01324, abs=1e-5)
    assert p_value(column(-1, -2, -3, -4, -5)) == pytest.approx(0.01324, abs=1e-5)
    assert p_value(column(-2, -1, 0, 1, 2)) == pytest.approx(1.0)


def test_the_p_value_is_at_most_5_percent_where_the_interval_leaves_out_0():
    rng = np.random.default_rng(0)
    decided = []
    for _ in range(300):
        scores = rng.normal(0.7, [1.0, 3.0], size=(6, 2))
        low, high = mean_interval(scores)
        decided.append(p_value(scores) < 0.05)
        assert decided[-1] == (low > 0 or high < 0)
    assert 0.05 < np.mean(decided) < 0.95, "both happen"


def test_iqm_leaves_out_the_outer_quarters():
    assert iqm(np.array([[-1e9, 1.0], [3.0, 1e9]])) == 2.0
    assert iqm(column(1, 2, 3, 4, 5, 6, 7, 8, 9, 1000)) == 5.5, "two of ten at either end"
    assert iqm(column(7)) == 7


# coverage


# In the last population a tenth of the episodes fail. Samples without a failure cannot show this, so they are counted.
COVERED = [("normal", episodes, strata, 0.95, 0.015) for episodes in (5, 10, 32) for strata in (1, 3)]
COVERED += [("skewed", 5, 1, 0.90, 0.02), ("skewed", 10, 1, 0.92, 0.02), ("skewed", 32, 1, 0.94, 0.02)]
COVERED += [("failures", 5, 1, 0.44, 0.03), ("failures", 10, 1, 0.69, 0.03), ("failures", 32, 1, 0.89, 0.03)]


@pytest.mark.parametrize("population, episodes, strata, covers, near", COVERED)
def test_the_interval_covers_what_it_says_where_returns_are_normal(population, episodes, strata, covers, near):
    assert t_coverage(population, episodes, strata, samples=2000) == pytest.approx(covers, abs=near)


def test_populations_have_the_means_that_coverage_is_counted_against():
    rng = np.random.default_rng(0)
    for population in POPULATIONS.values():
        sample = population.draw(rng, (100_000,))
        assert sample.mean() == pytest.approx(population.mean, abs=4 * sample.std() / 100_000**0.5)


# failed episodes


def episodes(folder):
    """Returns of each planner of a comparison on one checkpoint."""
    returns = {}
    with (RESULTS / folder / "episodes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            returns.setdefault(row["planner"], []).append(float(row["return"]))
    return {label: np.array(values) for label, values in returns.items()}


def test_the_two_episodes_that_failed_are_found_and_no_other_of_their_table():
    flagged = {label: sorted(x[failed(x)].round()) for label, x in episodes("cheetah-run/planners-dreamer").items()}
    assert flagged.pop("dream-mpc") == [530, 565]
    assert not any(flagged.values()), flagged


@pytest.mark.parametrize("folder", ["planners", "planners-dreamer", "ablation", "ablation-dreamer"])
def test_what_spreads_by_nature_has_not_failed(folder):
    for returns in episodes(f"acrobot-swingup/{folder}").values():
        assert not failed(returns).any()


def test_far_below_is_both_a_large_score_and_a_fifth_of_the_median():
    close = [98.0, 99, 100, 101, 102]  # MAD 1
    assert failed(np.array([*close, 79])).tolist() == 5 * [False] + [True]
    assert not failed(np.array([*close, 85])).any(), "a score of -9 or less, but 15 % below the others"
    assert not failed(np.array([10.0, 50, 90, 130, 170])).any(), "far below, but so are others"
    assert not failed(np.array([*close, 300])).any(), "above is no failure"
    negative = np.array([-98.0, -99, -100, -101, -102, -500])
    assert failed(negative).tolist() == 5 * [False] + [True]


def test_where_more_than_half_are_equal_the_fifth_decides():
    assert failed(np.array([100.0, 100, 100, 100, 90, 50])).tolist() == 5 * [False] + [True]
    assert not failed(np.array([0.0, 0, 0, 0, 1, -1])).any(), "a median of 0 says nothing of sizes"


def test_failures_are_counted_in_each_stratum_by_itself():
    levels = np.array([100.0, 10.0]) + np.arange(6.0)[:, None]
    assert count_failed(levels) == 0, "10 is not far below 10"
    levels[2, 0] = levels[4, 1] = 1.0
    assert count_failed(levels) == 2


# several at once


def test_holm_s_correction():
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and no later one below an earlier one."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
