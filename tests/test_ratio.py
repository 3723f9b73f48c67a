"""Updates owed to env steps, against the ratio written out."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from dreamer_mpc.training.ratio import UpdateRatio


@pytest.mark.parametrize("step", [1, 2, 16, 64, 700])
@pytest.mark.parametrize("updates, every", [(100, 1000), (1, 8), (40, 1000), (3, 7), (7, 3), (0, 10), (1000, 1)])
@pytest.mark.parametrize("start", [0, 5000, 5008])
def test_the_ratio_holds_after_every_step(updates, every, step, start):
    end = start + 4200
    ratio, issued = UpdateRatio(updates, every, start, end), 0
    for env_steps in range(start + step, end + step, step):
        issued += ratio.issue(env_steps)
        assert issued == ratio.issued == floor(Fraction(updates, every) * (min(env_steps, end) - start))
    assert issued == updates * 4200 // every, "as many as rounds of `every` env steps make"


def test_updates_are_spread_evenly():
    ratio = UpdateRatio(100, 1000, 0, 10_000)
    issued = [ratio.issue(16 * n) for n in range(1, 626)]
    assert set(issued) == {1, 2} and sum(issued) == 1000


def test_what_is_asked_twice_is_owed_once():
    ratio = UpdateRatio(10, 100, 0, 1000)
    assert [ratio.issue(200), ratio.issue(200), ratio.issue(210)] == [20, 0, 1]


def test_a_step_that_was_overestimated_is_made_up_for():
    """Env steps in flight are guessed; some steps turn out shorter, for an episode ended."""
    rng, env_steps, in_flight = np.random.default_rng(0), 50, 16
    ratio = UpdateRatio(7, 10, 50, 20_000)
    while env_steps < 20_000:
        ratio.issue(env_steps + in_flight)
        env_steps += int(rng.integers(8, in_flight + 1))
        ahead = 10 * ratio.issued - 7 * (min(env_steps, 20_000) - 50)  # tenths of an update
        assert -10 < ahead <= 7 * 8, "never behind, and ahead by no more than the last guess was"
    assert ratio.issued == 7 * (20_000 - 50) // 10


@pytest.mark.parametrize("updates, every, length", [(100, 1000, 95_000), (9, 100, 9512), (4, 100, 10), (3, 7, 20)])
@pytest.mark.parametrize("step", [1, 16, 700])
def test_with_a_lead_it_is_never_behind_the_sequential_rounds(updates, every, length, step):
    start, end = 5000, 5000 + length
    ratio = UpdateRatio(updates, every, start, end, lead=updates)
    assert ratio.issue(start) == updates, "before the first step"
    for env_steps in range(start + step, end + step, step):
        ratio.issue(env_steps)
        rounds = -(-(min(env_steps, end) - start) // every)  # begun by the sequential algorithm up to here
        assert 0 <= ratio.issued - updates * (rounds - ((min(env_steps, end) - start) % every > 0)) <= updates * 2
        assert ratio.issued >= updates * (min(env_steps, end) - start) / every, "never behind the ratio"
    assert ratio.issued == updates + updates * length // every, "one round ahead of it"


def test_seed_episodes_beyond_the_end_owe_nothing():
    assert UpdateRatio(100, 1000, 5000, 3000).issue(6000) == 0
    assert UpdateRatio(100, 1000, 5000, 3000, lead=100).issue(5000) == 0
