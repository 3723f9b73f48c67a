"""States of environments copied and restored: what follows is the same bit for bit, alone and in rows of workers."""

import pickle

import numpy as np
import pytest

from dreamer_mpc.envs import EnvError, Restorable, make_env, make_vector_env
from tests.support.commands import ROOT
from tests.support.counting_env import CountingEnv, decode

SHIPPED = ("cheetah-run", "walker-run", "hopper-hop", "acrobot-swingup")
OTHERS = ("reacher-easy", "point_mass-hard", "finger-turn_hard", "ball_in_cup-catch", "swimmer-swimmer6", "fish-swim")


def make(name, **settings):
    return make_env(name, render_quality="fast", **settings)


def random_actions(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def follow(env, actions):
    """Images, rewards and ends under `actions`."""
    steps = [env.step(action) for action in actions]
    return np.array([step[0] for step in steps]), [step[1] for step in steps], [step[2:4] for step in steps]


def same(a, b):
    assert (a[0] == b[0]).all()
    assert a[1:] == b[1:]


class Going(CountingEnv, Restorable):
    """`CountingEnv` that can go back."""

    def get_state(self):
        return self.episode, self.steps

    def set_state(self, state):
        from tests.support.counting_env import encode

        self.episode, self.steps = state
        return encode(*state)


def make_going():
    return Going()


class Closed(Going):
    """One that says that it cannot."""

    restorable = False


def make_closed():
    return Closed()


@pytest.mark.parametrize("name", [*SHIPPED, *OTHERS])
def test_images_and_rewards_after_a_state_are_the_same_bit_for_bit(name):
    """Also after another episode in between, in another environment, and through a pickle."""
    env = make(name)
    env.reset(seed=3)
    actions = random_actions((24, *env.action_space.shape))
    follow(env, actions[:12])
    state = env.get_state()
    frame = env.render()
    expected = follow(env, actions[12:])
    env.reset(seed=4)
    follow(env, actions[::-1][:5])
    image = env.set_state(state)
    assert (image == state.image).all() and (env.render() == frame).all()
    same(follow(env, actions[12:]), expected)
    other = make(name)
    other.reset(seed=5)
    other.set_state(pickle.loads(pickle.dumps(state)))
    same(follow(other, actions[12:]), expected)


def test_a_state_right_after_a_reset_and_the_random_generator_are_restored():
    env = make("cheetah-run", max_env_steps=6)
    env.reset(seed=3)
    state, actions = env.get_state(), random_actions((3, 6))
    expected, after = follow(env, actions), env.reset()[0]
    env.set_state(state)
    same(follow(env, actions), expected)
    assert expected[2][-1] == (False, True), "our own count of steps is part of it"
    assert (env.reset()[0] == after).all()


def test_dm_control_s_time_limit_is_restored():
    env = make("cheetah-run", action_repeat=10)
    env._render = lambda height, width: np.zeros((height, width, 3), np.uint8)
    env.reset(seed=0)
    follow(env, random_actions((98, 6)))
    state, last = env.get_state(), random_actions((2, 6), seed=1)
    expected = follow(env, last)
    assert expected[2] == [(False, False), (False, True)]
    env.set_state(state)
    same(follow(env, last), expected)


def test_plans_are_tried_without_images_and_nothing_is_left_of_them():
    env = make("cheetah-run", max_env_steps=30)
    env.reset(seed=1)
    follow(env, random_actions((10, 6)))
    state, plans = env.get_state(), random_actions((3, 7, 6), seed=2)
    rendered, real = [], env._render
    env._render = lambda *size: rendered.append(size) or real(*size)
    rewards = env.try_plans(state, plans)
    assert len(rendered) == 1 and rewards.shape == (3, 7)
    assert np.isnan(rewards[:, 5:]).all() and (rewards[:, :5] != 0).any(), "the episode ends after five more steps"
    for plan, row in zip(plans, rewards):
        env.set_state(state)
        assert follow(env, plan[:5])[1] == row[:5].tolist()


@pytest.mark.parametrize("name", ["lqr-lqr_2_1", "quadruped-escape"])
def test_a_task_whose_model_changes_with_the_episode_says_so(name):
    env = make(name)
    env.reset(seed=0)
    assert not env.restorable
    with pytest.raises(EnvError, match=f"{name}: its state cannot be copied"):
        env.get_state()


@pytest.mark.parametrize("workers", [False, True])
def test_rows_copy_and_restore_their_states(workers):
    envs = make_vector_env("walker-run", 2, workers=workers, render_quality="fast")
    try:
        assert envs.restorable
        envs.reset(seed=[0, 1])
        actions = random_actions((8, 2, 6))
        for action in actions[:3]:
            before = envs.step(action)[0]
        states = envs.get_states()
        expected = [envs.step(action)[:2] for action in actions[3:]]
        images = envs.set_states(states)
        assert (images == before).all()
        plans = actions[3:].transpose(1, 0, 2)[:, None]
        rewards = envs.try_plans(states, plans)
        assert (rewards[:, 0].T == [reward for _, reward in expected]).all()
        for action, (image, reward) in zip(actions[3:], expected):
            again = envs.step(action)
            assert (again[0] == image).all() and (again[1] == reward).all()
        envs.go_to(states)
        again = envs.step(actions[3])
        assert (again[0] == expected[0][0]).all() and (again[1] == expected[0][1]).all()
        exchanged = envs.set_states(states[::-1])
        assert (exchanged == before[::-1]).all(), "a row may take another's state"
    finally:
        envs.close()


@pytest.mark.parametrize("workers", [False, True])
def test_an_environment_of_one_s_own_may_be_restorable(workers):
    envs = make_vector_env(f"{__name__}:make_going", 2, workers=workers, max_env_steps=6, action_repeat=2)
    try:
        envs.reset(seed=0)
        envs.step(np.zeros((2, 2), np.float32))
        states = envs.get_states()
        assert [decode(image) for image in envs.step(np.zeros((2, 2), np.float32))[0]] == [(0, 4), (0, 4)]
        assert [decode(image) for image in envs.set_states(states)] == [(0, 2), (0, 2)]
        plans = np.zeros((2, 1, 3, 2), np.float32)
        expected = np.broadcast_to([7.0, 11.0, np.nan], (2, 1, 3))
        assert np.array_equal(envs.try_plans(states, plans), expected, equal_nan=True), "counts are restored"
    finally:
        envs.close()


@pytest.mark.parametrize("factory", ["tests.example_env:make", f"{__name__}:make_closed"])
@pytest.mark.parametrize("workers", [False, True])
def test_an_environment_that_cannot_go_back_is_refused_in_one_line(factory, workers):
    envs = make_vector_env(factory, 1, workers=workers)
    try:
        assert not envs.restorable
        with pytest.raises(EnvError, match="its state cannot be copied and restored") as raised:
            envs.get_states()
        assert "\n" not in str(raised.value)
    finally:
        envs.close()


def test_nothing_of_the_package_is_imported():
    source = (ROOT / "envs" / "snapshot.py").read_text()
    assert source.count("dreamer_mpc") == source.count("dreamer_mpc.envs") and "torch" not in source
