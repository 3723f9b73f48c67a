"""The schedule of a run on plain numbers, and the ratio of updates to env steps."""

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from dreamer_mpc.training.schedule import Due, Pace, Schedule, UpdateRatio

# Rounds of 2 updates and 20 env steps up to 70, an evaluation every 40 env steps.
TURNS = Pace(end=70, updates=2, every=20, evaluate_every=40, save_seconds=60.0, in_flight=0)
AT_ONCE = replace(TURNS, in_flight=10)


def events(schedule, env_steps, step, seed_steps=0):
    """All actions of a run until its end, as letters, and its final state.

    s: a step of `step` env steps, with the number of concurrent updates; u: an update; r: a record; E: an evaluation.
    """
    done = []
    while (due := schedule.due(env_steps)) is not Due.NOTHING:
        assert len(done) < 1000, done
        if due is Due.SEED_STEP:
            done.append("seed")
            env_steps += step
            if env_steps >= seed_steps:
                schedule.seeded(env_steps)
        elif due is Due.UPDATE:
            done.append("u")
            schedule.take_update()
        elif due is Due.STEP:
            done.append(f"s{schedule.take_updates_beside(env_steps) or ''}")
            env_steps += step
        elif due is Due.RECORD:
            done.append("r")
            schedule.recorded(env_steps)
        else:
            done.append("E")
            schedule.evaluated(env_steps)
    return " ".join(done), env_steps


# the order


def test_steps_and_updates_take_turns():
    done, env_steps = events(Schedule(TURNS), 0, 10, seed_steps=10)
    # After 10 seed steps: rounds that end at 30, 50 and 70; evaluations at the ends past 40, and at the run's.
    assert done == "seed u u s s r u u s s r E u u s s r E"
    assert env_steps == 70


def test_steps_and_updates_go_on_at_once_a_round_ahead():
    done, env_steps = events(Schedule(AT_ONCE), 0, 10, seed_steps=10)
    # The updates of a round before the first step, then one concurrent with every 10 env steps.
    assert done == "seed u u s1 s1 r s1 s1 r E s1 s1 r E"
    assert env_steps == 70


def test_a_step_longer_than_a_round():
    short = {"every": 1, "updates": 1, "end": 7, "evaluate_every": 100}
    # In turns, a round without steps still has its updates, up to the end. Concurrently, each has at least one step.
    assert events(Schedule(replace(TURNS, **short)), 0, 3, seed_steps=1)[0] == "seed u s r u r u r u s r E"
    assert events(Schedule(replace(AT_ONCE, **short, in_flight=3)), 0, 3, seed_steps=1)[0] == "seed u s3 r s1 r E"


@pytest.mark.parametrize("pace", [TURNS, AT_ONCE])
def test_a_run_whose_seed_episodes_are_all_of_it_is_evaluated_without_an_update(pace):
    assert events(Schedule(pace), 0, 10, seed_steps=80) == ("seed " * 8 + "E", 80)


@pytest.mark.parametrize("pace", [TURNS, AT_ONCE])
def test_without_updates_there_are_steps_and_records(pace):
    assert events(Schedule(replace(pace, updates=0)), 0, 10, seed_steps=10)[0] == "seed s s r s s r E s s r E"


@pytest.mark.parametrize(
    "every, evaluations",
    [(5, [30, 50, 70, 90, 110, 130]), (20, [30, 50, 70, 90, 110, 130]), (40, [50, 90, 130]), (1000, [130])],
)
def test_evaluations_come_at_the_first_end_of_a_round_on_or_past_each_multiple(every, evaluations):
    schedule, found = Schedule(replace(TURNS, end=130, updates=0, evaluate_every=every)), []
    schedule.seeded(10)
    env_steps = 10
    while (due := schedule.due(env_steps)) is not Due.NOTHING:
        if due is Due.EVALUATION:
            found.append(env_steps)
            schedule.evaluated(env_steps)
        elif due is Due.RECORD:
            schedule.recorded(env_steps)
        else:
            env_steps += 5
    assert found == evaluations


def test_updates_count_down_to_the_next_step():
    schedule = Schedule(replace(TURNS, updates=3))
    schedule.seeded(10)
    assert [schedule.take_update() for _ in range(3)] == [3, 2, 1]
    assert schedule.due(10) is Due.STEP


def test_a_save_is_due_after_so_many_seconds():
    assert [Schedule(TURNS).save_due(seconds) for seconds in (0.0, 59.9, 60.0, 1e9)] == [False, False, True, True]
    assert Schedule(replace(TURNS, save_seconds=0.0)).save_due(0.0)


# stops


@pytest.mark.parametrize("pace", [TURNS, AT_ONCE])
@pytest.mark.parametrize("stop", range(1, 17))
def test_a_saved_schedule_goes_on_as_if_it_had_not_been(pace, stop, monkeypatch):
    whole, due, asked = events(Schedule(pace), 0, 10, seed_steps=10), Schedule.due, [0]

    def saved(schedule, env_steps):
        asked[0] += 1
        if asked[0] == stop:
            other = Schedule.from_state_dict(schedule.state_dict(), pace)
            other.resumed(env_steps)
            assert other == schedule and other.ratio is not schedule.ratio or schedule.ratio is None
            vars(schedule).update(vars(other))
        return due(schedule, env_steps)

    monkeypatch.setattr(Schedule, "due", saved)
    assert events(Schedule(pace), 0, 10, seed_steps=10) == whole


def resumed(schedule, pace, env_steps):
    other = Schedule.from_state_dict(schedule.state_dict(), pace)
    other.resumed(env_steps)
    return other


@pytest.mark.parametrize("pace", [TURNS, AT_ONCE])
def test_a_finished_run_goes_on_only_where_it_is_made_longer(pace):
    schedule = Schedule(pace)
    events(schedule, 0, 10, seed_steps=10)
    assert resumed(schedule, pace, 70).due(70) is Due.NOTHING
    longer = "u u s s r E u u s s r E" if pace is TURNS else "s1 s1 r E s1 s1 r E"
    assert events(resumed(schedule, replace(pace, end=110), 70), 70, 10) == (longer, 110)


def test_the_round_that_the_end_cut_short_is_not_made_longer():
    """It ended at 70 instead of 80: the next round ends 20 env steps after that."""
    schedule = Schedule(replace(TURNS, every=35, updates=1))
    assert events(schedule, 0, 10, seed_steps=10)[0] == "seed u s s s s r E u s s r E"
    longer = resumed(schedule, replace(schedule.pace, end=130), 70)
    assert events(longer, 70, 10)[0] == "u s s s s r E u s s r E"


def test_another_ratio_holds_from_the_resume_on_and_makes_no_other_lead():
    schedule = Schedule(AT_ONCE)
    events(schedule, 0, 10, seed_steps=10)
    faster = resumed(schedule, replace(AT_ONCE, end=100, updates=6), 70)
    assert faster.ratio == UpdateRatio(6, 20, 70, 100)
    assert events(faster, 70, 10)[0] == "s3 s3 r E s3 r E"


def test_a_state_of_before_there_was_a_lead_is_read():
    schedule = Schedule(AT_ONCE)
    schedule.seeded(10)
    state = schedule.state_dict()
    del state["ratio"]["lead"]
    assert Schedule.from_state_dict(state, AT_ONCE).ratio.lead == 0


# evaluations beside training


def test_training_goes_on_beside_an_evaluation_and_the_end_waits_for_the_last_one():
    schedule, counters = Schedule(TURNS), {"env_steps": 50, "updates": 4}
    events_until_evaluation(schedule, 50)
    schedule.evaluation_begun(counters)
    assert schedule.due(50) is Due.UPDATE and resumed(schedule, TURNS, 50) == schedule
    schedule.updates_left = 0
    assert schedule.due(70) is Due.RECORD, "the round's record, and the last evaluation, come before the result"
    schedule.recorded(70)
    assert schedule.due(70) is Due.EVALUATION
    schedule.evaluation_ended()
    assert not schedule.finished
    schedule.evaluation_begun({"env_steps": 70, "updates": 6})
    assert schedule.due(70) is Due.RESULT
    assert resumed(schedule, replace(TURNS, end=110), 70).due(70) is Due.UPDATE, "a longer run goes on beside it"
    schedule.evaluation_ended()
    assert schedule.due(70) is Due.NOTHING


@pytest.mark.parametrize("at, due", [(50, Due.UPDATE), (70, Due.EVALUATION)])
def test_an_evaluation_whose_snapshot_is_gone_is_made_up_for_only_at_the_end(at, due):
    schedule = Schedule(TURNS)
    events_until_evaluation(schedule, at)
    schedule.evaluation_begun({"env_steps": at})
    schedule.evaluation_lost()
    assert schedule.due(at) is due


def events_until_evaluation(schedule, env_steps):
    schedule.seeded(10)
    for end in range(30, env_steps + 1, 20):
        schedule.recorded(end)
    assert schedule.due(env_steps) is Due.EVALUATION


# the ratio


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
    """The env steps of a step in flight are an estimate; some steps turn out shorter because an episode ended."""
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
        rounds = -(-(min(env_steps, end) - start) // every)  # rounds that the sequential algorithm has begun by now
        assert 0 <= ratio.issued - updates * (rounds - ((min(env_steps, end) - start) % every > 0)) <= updates * 2
        assert ratio.issued >= updates * (min(env_steps, end) - start) / every, "never behind the ratio"
    assert ratio.issued == updates + updates * length // every, "one round ahead of it"


def test_seed_episodes_beyond_the_end_owe_nothing():
    assert UpdateRatio(100, 1000, 5000, 3000).issue(6000) == 0
    assert UpdateRatio(100, 1000, 5000, 3000, lead=100).issue(5000) == 0
