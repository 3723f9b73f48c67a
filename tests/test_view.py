"""What a viewer sees of an environment: frames at full size, speed and names, with no trace in the agent's images."""

import os
import signal

import numpy as np
import pytest

from dreamer_mpc.envs import make_env, make_vector_env
from dreamer_mpc.evaluation.episodes import evaluate
from dreamer_mpc.planners import make_planner
from dreamer_mpc.util.encode import from_jpeg
from tests.support.agents import make_agent
from tests.support.counting_env import CountingEnv, decode


def make(name="cheetah-run", num_envs=1, **settings):
    return make_vector_env(name, num_envs, render_quality="small-shadows", max_env_steps=8, **settings)


def test_an_episode_is_the_same_bit_for_bit_with_and_without_a_video():
    agent = make_agent(action_dim=6)

    def played(recorded_steps):
        envs, seen = make(), []
        step = envs.step
        envs.step = lambda action: seen.append(step(action)) or seen[-1]
        result = evaluate(agent, make_planner("policy"), envs, 1, 7, recorded_steps)
        envs.close()
        return result, [image for image, *_ in seen]

    (shown, images), (plain, others) = played(100), played(0)
    assert (np.stack(images) == np.stack(others)).all() and (shown.returns == plain.returns).all()
    assert len(shown.recording.view) == 4, "a whole episode"
    assert shown.recording.facts.actions == ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


def test_the_view_is_the_present_frame_of_the_row_at_full_size():
    envs = make(num_envs=2)
    try:
        image, _ = envs.reset(seed=[1, 2])
        views = [envs.view(0), envs.view(1)]
        assert all(view.shape == (480, 640, 3) and view.dtype == np.uint8 for view in views)
        for view, seen in zip(views, image, strict=True):  # its middle is what the agent sees
            small = view[:, 80:560].reshape(60, 8, 60, 8, 3).mean((1, 3))
            assert abs(small.mean((0, 1)) - seen.mean((0, 1))).max() < 8
        os.kill(envs.processes[1].pid, signal.SIGKILL)
        assert envs.view(1) is None, "a dead process has no view, and is no error"
        _, _, _, truncated, info = envs.step(np.zeros((2, 6), np.float32))
        assert truncated[1] and info["lost"][1], "the step reports it as ever"
    finally:
        envs.close()


@pytest.mark.parametrize("task, action_repeat, speed", [("cheetah-run", 2, 50), ("walker-run", 1, 40)])
def test_the_speed_is_the_simulator_s(task, action_repeat, speed):
    env = make_env(task, action_repeat=action_repeat)
    env.reset(seed=0)
    before = env.unwrapped._env.physics.time()
    env.step(np.zeros(env.action_space.shape))
    assert 1 / (env.unwrapped._env.physics.time() - before) == pytest.approx(speed)
    assert env.steps_per_s == pytest.approx(speed) == env.metadata["render_fps"]
    env.close()


class Viewed(CountingEnv):
    """Declares all that a viewer asks for."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    render_mode, action_names = "rgb_array", ["left", "right"]

    def render(self):
        return np.full((20, 30, 3), 20 * self.steps, np.uint8)


def test_each_frame_at_full_size_is_the_one_that_the_agent_decided_on():
    envs = make_vector_env("tests.test_view:Viewed", 1, action_repeat=1)
    recording = evaluate(make_agent(), make_planner("policy"), envs, 1, 0, recorded_steps=6).recording
    assert [round(float(from_jpeg(view).mean())) for view in recording.view] == [0, 20, 40, 60, 80, 100]
    assert [decode(image)[1] for image in recording.image] == list(range(6))


class Broken(Viewed):
    """Declares what is none, and cannot render."""

    metadata, action_names = {"render_fps": float("nan")}, ["only one"]

    def render(self):
        raise RuntimeError("no display")


class Wrong(Viewed):
    action_names = 3

    def render(self):
        return ["no frame"]


def test_a_custom_environment_is_shown_as_far_as_it_declares():
    envs = make_vector_env("tests.test_view:Viewed", 1, action_repeat=2)
    envs.reset(seed=0)
    envs.step(np.zeros((1, 2), np.float32))
    assert (envs.view(0) == 40).all() and envs.view(0).shape == (20, 30, 3)
    assert envs.facts() == (15.0, ("left", "right"))
    for name in ("Broken", "Wrong"):
        envs = make_vector_env(f"tests.test_view:{name}", 1)
        envs.reset(seed=0)
        assert envs.view(0) is None and envs.facts().actions == ("action 0", "action 1")
    plain = make_vector_env("tests.support.counting_env:make", 1)
    image, _ = plain.reset(seed=0)
    assert (plain.view(0) == image[0]).all() and plain.facts().steps_per_s is None, "its observation, in its size"
