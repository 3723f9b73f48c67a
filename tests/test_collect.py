"""What a collector stores and counts, on environments whose images and rewards encode the step."""

import itertools
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dreamer_mpc.data.collect import Collector, Counters, episode_seed
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.envs import make_vector_env
from dreamer_mpc.planners import make_planner
from tests.support.agents import make_agent
from tests.support.counting_env import CountingEnv, decode, encode, expected_reward
from tests.support.recorder import Recorder

PLANNER = make_planner("policy")


class Episode(NamedTuple):
    """Consecutive frames, as they were appended."""

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_terminal: np.ndarray


class Keeper(Replay):
    """A replay that also keeps the appended frames, by stream and in finished episodes."""

    def __init__(self, streams):
        super().__init__(1000 * streams, 2, streams)
        self.frames = [[] for _ in range(streams)]  # of the episode in progress
        self.kept = []

    def append(self, rows, *frames):
        super().append(rows, *frames)
        arrays = [torch.as_tensor(x).clone().numpy() for x in frames]
        for row, *frame in zip(rows, *arrays, strict=True):
            if frame[3] and self.frames[row]:
                self.kept.append(Episode(*map(np.stack, zip(*self.frames[row]))))
                self.frames[row] = []
            self.frames[row].append(frame)


LENGTHS = itertools.cycle([4, 7])


def two_lengths():
    """Episodes of 4 steps; when called again, of 7."""
    return CountingEnv(next(LENGTHS))


class Slow(CountingEnv):
    """Steps take 0.4 s."""

    def step(self, action):
        time.sleep(0.4)
        return super().step(action)


def terminating():
    return CountingEnv(terminates=True)


ENDS = itertools.cycle([False, True, True])


def one_of_three_cut():
    """Episodes of 10 steps that are truncated; when called again, episodes of 10 steps that terminate."""
    return CountingEnv(terminates=next(ENDS))


def make_collector(env="tests.support.counting_env:make", num_envs=1, seed=0, agent=None, **settings):
    envs = make_vector_env(env, num_envs, **{"workers": False, "action_repeat": 1} | settings)
    return Collector(envs, agent or Recorder(), Keeper(num_envs), Counters(), seed)


def kept_by(collector):
    """Its finished episodes; starting new ones first closes every finished one."""
    collector.begin()
    return collector.replay.kept


def check_episode(episode, number, action_repeat, length, terminates=False):
    """Frame t is step t x repeat of episode `number`; action[t] led there and reward[t] was paid for it.

    Only its last frame is terminal, if it `terminates`.
    """
    steps = [*range(0, length, action_repeat), length]
    assert [decode(image) for image in episode.image] == [(number, step) for step in steps]
    assert episode.is_first.tolist() == [True] + [False] * (len(steps) - 1)
    assert episode.is_terminal.tolist() == [False] * (len(steps) - 1) + [terminates]
    assert not episode.action[0].any()
    assert episode.reward[0] == 0
    for t in range(1, len(steps)):
        passed = range(steps[t - 1] + 1, steps[t] + 1)
        expected = sum(expected_reward(number, step, episode.action[t]) for step in passed)
        assert episode.reward[t] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "action_repeat, num_envs, workers",
    [(1, 1, False), (1, 2, False), (1, 2, True), (2, 1, False), (2, 2, True), (4, 1, False), (4, 2, False)],
)
def test_episodes_are_stored_as_they_happened(action_repeat, num_envs, workers):
    collector = make_collector(num_envs=num_envs, workers=workers, action_repeat=action_repeat)
    returns = collector.collect(30 * num_envs, PLANNER)
    kept = kept_by(collector)
    collector.envs.close()
    assert len(kept) == len(returns) == 3 * num_envs
    for i, episode in enumerate(kept):
        check_episode(episode, i // num_envs, action_repeat, 10)
        assert returns[i] == pytest.approx(episode.reward.sum())
        np.testing.assert_allclose(episode.action[1:, 1], (i % num_envs) / 10, rtol=1e-6)  # its own row's actions
    actions = np.concatenate([episode.action[1:, 0] for episode in kept[::num_envs]])
    np.testing.assert_allclose(actions, np.arange(len(actions)) / 100, atol=1e-6)  # each once, in order
    agent_steps = num_envs * 3 * -(-10 // action_repeat)
    assert collector.counters == Counters(30 * num_envs, agent_steps, 0, 3 * num_envs)


def test_rows_end_each_in_their_time():
    collector = make_collector("tests.test_collect:two_lengths", 2)
    collector.collect(56, PLANNER)
    numbers = {4: 0, 7: 0}
    for episode in kept_by(collector):
        length = len(episode.reward) - 1
        check_episode(episode, numbers[length], 1, length)
        numbers[length] += 1
    assert numbers == {4: 7, 7: 4}
    assert collector.counters == Counters(56, 56, 0, 11)


@pytest.mark.parametrize("action_repeat", [1, 4])
def test_the_last_frame_of_an_episode_that_terminates_is_terminal(action_repeat):
    collector = make_collector("tests.test_collect:terminating", action_repeat=action_repeat)
    collector.collect(20, PLANNER)
    assert len(kept_by(collector)) == 2
    for number, episode in enumerate(kept_by(collector)):
        check_episode(episode, number, action_repeat, 10, terminates=True)


def test_terminal_frames_are_sampled_where_they_are():
    """Beside a row that is truncated, and in sampled sequences."""
    collector = make_collector("tests.test_collect:one_of_three_cut", 3)
    collector.collect(3 * 25, PLANNER)
    batch = collector.replay.sample(2000, 4)
    row, step = batch.index % 3, batch.image[..., 0, 0, 1]
    assert torch.equal(batch.is_terminal, (row > 0) & (step == 10))
    assert not batch.is_terminal[:-1].any() and batch.is_terminal[-1].any()


def test_an_episode_in_progress_is_in_replay():
    collector = make_collector(num_envs=2)
    collector.begin()
    assert len(collector.replay) == 2, "the first frames"
    collector.collect(2 * 7, PLANNER)
    assert (len(collector.replay), collector.replay.episodes) == (16, 2)
    for row, frames in enumerate(collector.replay.frames):
        assert [decode(frame[0]) for frame in frames] == [(0, step) for step in range(8)]
        assert [float(frame[1][1]) for frame in frames[1:]] == pytest.approx([row / 10] * 7)
    collector.collect(2 * 10, PLANNER)
    assert (len(collector.replay), collector.replay.episodes) == (22, 2)
    collector.begin()
    assert (len(collector.replay), collector.replay.episodes) == (24, 4)


def test_streams_hold_the_episodes_of_their_environment():
    collector = make_collector("tests.test_collect:two_lengths", 2)
    collector.collect(100, PLANNER)
    batch = collector.replay.sample(2000, 3)
    row = batch.index % 2
    assert (row == row[0]).all()
    inner = ~batch.is_first
    torch.testing.assert_close(batch.action[..., 1][inner], row[inner] / 10)
    steps = batch.image[..., 0, 0, 1].amax()
    assert steps == 7 and batch.image[..., 0, 0, 1][row == 0].amax() == 4


def test_a_step_is_sent_and_received_and_workers_make_it_meanwhile():
    collector = make_collector("tests.test_collect:Slow", 2, workers=True)
    collector.collect(2, PLANNER)
    collector.plan(PLANNER)
    collector.send()
    before = collector.counters.env_steps, len(collector.replay)
    time.sleep(0.5)
    start = time.monotonic()
    collector.receive()
    waited = time.monotonic() - start
    collector.envs.close()
    assert before == (2, 4)
    assert (collector.counters.env_steps, len(collector.replay)) == (4, 6)
    assert waited < 0.25, "of the 0.4 s that a step takes"


@pytest.mark.parametrize("action_repeat", [1, 2])
def test_the_agent_sees_each_image_once_and_is_first_exactly_at_starts(action_repeat):
    collector = make_collector("tests.test_collect:two_lengths", 2, action_repeat=action_repeat)
    collector.collect(80, PLANNER)
    for row, length in enumerate([4, 7]):
        seen = [(images[row], first[row]) for _, images, first, _ in collector.agent.calls]
        steps = range(0, length, action_repeat)  # the last image of an episode needs no action
        expected = [((episode, step), step == 0) for episode in range(40) for step in steps]
        assert seen == expected[: len(seen)]
        assert len(seen) > 2 * length


def test_the_agent_gets_its_carry_back_and_the_noise():
    collector = make_collector()
    collector.collect(13, PLANNER, action_noise=0.3)
    assert [float(carry.state) for carry, *_ in collector.agent.calls] == list(range(13))
    assert [noise for *_, noise in collector.agent.calls] == [0.3] * 13


def test_env_steps_stop_at_the_first_step_that_reaches_the_goal():
    collector = make_collector(num_envs=2, action_repeat=2)
    collector.collect(9, PLANNER)
    assert (collector.counters.env_steps, collector.counters.agent_steps) == (12, 6)


def test_random_episodes_are_random_uniform_and_stored_alike():
    collector = make_collector(num_envs=2, seed=4)
    returns = collector.collect(400, None)
    assert len(returns) == 40
    assert collector.agent.calls == []
    for i, episode in enumerate(kept_by(collector)):
        check_episode(episode, i // 2, 1, 10)
    actions = np.stack([episode.action[1:] for episode in kept_by(collector)])
    assert len(np.unique(actions)) == actions.size
    assert -1 <= actions.min() < -0.95 < 0.95 < actions.max() < 1
    assert abs(actions.mean()) < 0.06
    assert abs(actions.std() - 3**-0.5) < 0.03


def test_random_actions_repeat_under_a_seed():
    runs = []
    for seed in (1, 1, 2):
        collector = make_collector(seed=seed)
        collector.collect(10, None)
        runs.append(kept_by(collector)[0].action)
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_after_random_steps_the_agent_starts_with_an_empty_carry():
    collector = make_collector()
    collector.collect(5, PLANNER)
    collector.collect(10, None)
    collector.collect(collector.counters.env_steps + 1, PLANNER)
    carry, images, is_first, _ = collector.agent.calls[-1]
    assert (float(carry.state), images, is_first) == (0.0, [(1, 0)], [True])


def test_a_real_agent_s_actions_are_stored_as_they_were_executed():
    collector = make_collector(num_envs=2, agent=make_agent())
    torch.manual_seed(0)
    collector.collect(40, make_planner("dream-mpc", horizon=2), action_noise=0.3)
    assert len(kept_by(collector)) == 4
    for i, episode in enumerate(kept_by(collector)):
        check_episode(episode, i // 2, 1, 10)
        assert episode.action[1:].any(1).all()
        assert np.abs(episode.action).max() <= 1


# faults, and resuming


class Faulty:
    """Vector environments whose n-th step has `info`, by number; its rows are truncated there."""

    def __init__(self, envs, faults):
        self.envs, self.faults, self.steps = envs, faults, 0

    def __getattr__(self, name):
        return getattr(self.envs, name)

    def step_wait(self):
        image, reward, terminated, truncated, info = self.envs.step_wait()
        self.steps += 1
        for name, rows in self.faults.get(self.steps, {}).items():
            info[name] = np.isin(np.arange(len(image)), rows)
            truncated = truncated | info[name]
            if name == "lost":
                info["env_steps"] = np.where(info[name], 0, info["env_steps"])
                image[rows], reward[rows] = 0, 0.0
        return image, reward, terminated, truncated, info


def with_faults(faults, num_envs=2):
    collector = make_collector(num_envs=num_envs)
    collector.envs = Faulty(collector.envs, faults)
    return collector


@pytest.mark.parametrize("lost", [[1], [0, 1]])
def test_the_episode_of_a_lost_environment_is_dropped_and_the_next_one_begun(lost):
    collector = with_faults({5: {"lost": lost}})
    returns = []
    for _ in range(24):
        collector.plan(PLANNER)
        collector.send()
        returns += collector.receive()
    assert collector.lost_environments == len(lost) and collector.simulator_errors == 0
    made = 2 * 24 - len(lost)
    assert (collector.counters.env_steps, collector.counters.agent_steps) == (made, made)
    assert collector.counters.episodes == len(returns) == 2 * 2 - len(lost)
    seen = {(int(i) % 2, decode(image.numpy())) for batch in [collector.replay.sample(3000, 1)]
            for i, image in zip(batch.index[0], batch.image[0])}  # fmt: skip
    for row in (0, 1):
        episodes = {episode for of, (episode, _) in seen if of == row}
        assert episodes == ({1, 2} if row in lost else {0, 1, 2}), "nothing of the torn one"
    assert not collector.replay.sample(3000, 1).is_terminal.any(), "what is lost was not terminated"
    _, images, is_first, _ = collector.agent.calls[5]
    assert is_first == [row in lost for row in (0, 1)]
    assert images == [(1, 0) if row in lost else (0, 5) for row in (0, 1)]


def test_an_episode_with_a_simulator_error_ends_there_and_is_counted():
    collector = with_faults({4: {"simulator_error": [1]}, 9: {"simulator_error": [0, 1]}})
    collector.collect(40, PLANNER)
    assert (collector.simulator_errors, collector.lost_environments) == (3, 0)
    assert [len(episode.reward) - 1 for episode in kept_by(collector)] == [4, 9, 5, 10, 10][:len(kept_by(collector))]


class Seeded(CountingEnv):
    """Episodes are numbered by their seeds."""

    seeds = []

    def reset(self, *, seed=None, options=None):
        Seeded.seeds.append(seed)
        _, info = super().reset(seed=seed)
        self.episode = seed % 256
        return encode(self.episode, 0), info


def test_every_episode_has_a_seed_of_its_own():
    Seeded.seeds.clear()
    for seed in (0, 1):
        make_collector("tests.test_collect:Seeded", 3, seed=seed).collect(3 * 10 * 5, PLANNER)
    assert len(Seeded.seeds) == len(set(Seeded.seeds)) == 2 * 3 * 5
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in Seeded.seeds)
    again = [episode_seed(seed, row, number) for seed in (0, 1) for number in range(5) for row in range(3)]
    assert Seeded.seeds == again


def stopped_and_resumed(env, steps, num_envs=2, workers=False):
    """A collector after `steps` steps, and one in new environments that resumes from its state."""
    collector = make_collector(env, num_envs, agent=make_agent(), workers=workers)
    for _ in range(steps):
        collector.plan(PLANNER, 0.3)
        collector.send()
        collector.receive()
    other = make_collector(env, num_envs, agent=make_agent(), seed=5, workers=workers)
    other.replay, other._seed = collector.replay, collector._seed
    return collector, other, other.load_state_dict(collector.state_dict())


@pytest.mark.parametrize(
    "steps, num_envs, workers",
    [(1, 1, False), (6, 2, False), (10, 1, False), (10, 2, False), (13, 2, False)],
)
def test_a_resumed_collector_goes_on_alike(steps, num_envs, workers):
    collector, other, broken = stopped_and_resumed("tests.test_collect:Seeded", steps, num_envs, workers)
    assert broken == []
    runs = []
    for each in (collector, other):
        each.replay = Keeper(num_envs)
        each.replay.append(np.arange(num_envs), *first_frames(num_envs))
        torch.manual_seed(3)
        for _ in range(25):
            each.plan(PLANNER, 0.3)
            each.send()
            each.receive()
        runs.append([np.concatenate([*(x.image for x in each.replay.kept)]), each.state_dict()])
        each.envs.close()
    assert (runs[0][0] == runs[1][0]).all()
    for name, value in runs[0][1].items():
        other_value = runs[1][1][name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other_value), name
    assert all(map(torch.equal, runs[0][1]["actions"], runs[1][1]["actions"]))


def first_frames(num_envs):
    image, terminal = np.zeros((num_envs, 64, 64, 3), np.uint8), np.zeros(num_envs, bool)
    return image, np.zeros((num_envs, 2), np.float32), np.zeros(num_envs), ~terminal, terminal


def test_rows_that_cannot_be_repeated_are_named_and_begin_their_next_episode():
    collector, other, broken = stopped_and_resumed("tests.test_collect:two_lengths", 5)
    # Row 0 is in its second episode, which is the first one of the new environments; row 1 is still in its first one.
    assert broken == [0]
    assert other.counters.episodes == 1
    other.begin()
    assert [len(row) for row in other._actions] == [0, 5]
    assert other._is_first.tolist() == [True, False]


def test_a_step_that_failed_is_as_if_it_had_not_been_sent():
    collector = make_collector(num_envs=2, agent=make_agent())
    collector.collect(8, PLANNER)
    before = collector.state_dict()
    collector.envs.step_wait = fail
    collector.plan(PLANNER, 0.3)
    collector.send()
    with pytest.raises(ZeroDivisionError):
        collector.receive()
    after = collector.state_dict()
    assert all(map(torch.equal, before["actions"], after["actions"]))
    assert torch.equal(before["carry"]["state"], after["carry"]["state"])


def fail():
    raise ZeroDivisionError
