"""Environments, with real pixels of dm_control; quality `fast`, a tenth of the cost, where it is sufficient."""

import os
import subprocess
import sys
import time

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamer_mpc.envs import (
    EnvError,
    choose_gl_backend,
    list_tasks,
    make_env,
    make_vector_env,
    match_egl_device,
    reset_rows,
)
from dreamer_mpc.envs.actions import to_bounds
from dreamer_mpc.envs.gl import CUDA_INDICES, PROBED, _probe
from dreamer_mpc.envs.rows import LocalVectorEnv
from tests.support.commands import ROOT, script
from tests.support.counting_env import CountingEnv, decode

SAMPLE = ("ball_in_cup-catch", "cartpole-swingup_sparse", "humanoid_CMU-stand", "lqr-lqr_2_1", "quadruped-walk")
IMAGES = gymnasium.spaces.Box(0, 255, (32, 48, 3), np.uint8)
ACTIONS = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


def make(name, **settings):
    return make_env(name, render_quality="fast", **settings)


def random_actions(env, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)


def roll(env, seed, steps=5):
    """Frames [1 + steps, ...] and rewards [steps] after a reset with `seed`."""
    frames, rewards = [env.reset(seed=seed)[0]], []
    for action in random_actions(env, steps):
        frame, reward, *_ = env.step(action)
        frames.append(frame)
        rewards.append(reward)
    return np.array(frames), np.array(rewards)


def physics(env):
    return env.unwrapped._env.physics


def without_rendering(env):
    env.unwrapped._render = lambda height, width: np.zeros((height, width, 3), np.uint8)
    return env


# One dm_control environment


@pytest.mark.filterwarnings("ignore:.*alternative render modes.*")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped.*")
@pytest.mark.parametrize("name", ["cheetah-run", "tests.example_env:make"])
def test_it_is_a_gymnasium_env(name):
    check_env(make_env(name))


@pytest.mark.parametrize("name", SAMPLE)
def test_every_kind_of_task_makes_pixels(name):
    env = make(name)
    env.reset(seed=0)
    frame, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(frame)
    assert frame.std() > 5
    assert np.isfinite(reward)
    assert not terminated
    assert not truncated
    assert info["env_steps"] == 2
    assert len(list_tasks()) > 45 and {name, "dog-run"} <= set(list_tasks())


@pytest.mark.parametrize("name", ["cheetah-run", "lqr-lqr_2_1", "quadruped-fetch"])
def test_a_seed_decides_frames_and_rewards(name):
    first, second = make(name), make(name)
    roll(first, seed=9, steps=2)  # a used instance and a fresh one
    first_frames, first_rewards = roll(first, seed=3)
    assert (first_frames[1:] != first_frames[:-1]).any((1, 2, 3)).all(), "a frame is not overwritten by the next"
    second_frames, second_rewards = roll(second, seed=3)
    np.testing.assert_array_equal(first_frames, second_frames)
    np.testing.assert_array_equal(first_rewards, second_rewards)
    first_next, second_next = first.reset()[0], second.reset()[0]
    np.testing.assert_array_equal(first_next, second_next)
    assert (first_next != first_frames[0]).any(), "without a seed the stream goes on"
    assert (roll(second, seed=4, steps=0)[0] != first_frames[0]).any()


def test_actions_are_rescaled_to_the_tasks_bounds():
    env = without_rendering(make("quadruped-walk"))  # some of its bounds are not [-1, 1]
    spec = env.unwrapped._env.action_spec()
    assert (spec.maximum > 1).any()
    env.reset(seed=0)
    middle = (spec.minimum + spec.maximum) / 2
    for value, control in ((-1, spec.minimum), (1, spec.maximum), (0, middle), (7, spec.maximum)):
        env.step(np.full(12, value, np.float32))
        np.testing.assert_allclose(physics(env).data.ctrl, control, atol=1e-6)


def test_a_repeated_actions_reward_is_the_sum_of_its_single_steps():
    repeated, single = (without_rendering(make("walker-walk", action_repeat=repeat)) for repeat in (4, 2))
    single.unwrapped._action_repeat = 1
    repeated.reset(seed=1)
    single.reset(seed=1)
    for action in random_actions(repeated, 5):
        _, reward, _, _, info = repeated.step(action)
        assert reward == pytest.approx(sum(single.step(action)[1] for _ in range(4)), abs=1e-12)
        assert info["env_steps"] == 4
    np.testing.assert_array_equal(physics(repeated).get_state(), physics(single).get_state())


# lqr has no time limit of its own
@pytest.mark.parametrize("name, limit", [("cheetah-run", 1000), ("lqr-lqr_6_2", 1000), ("cheetah-run", 5)])
def test_an_episode_is_truncated_after_1000_env_steps_or_as_many_as_are_asked_for(name, limit):
    env = without_rendering(make(name, action_repeat=3, **{} if limit == 1000 else {"max_env_steps": limit}))
    assert env.reset(seed=0)[1]["env_steps"] == 0
    counts, over = [], False
    while not over:
        _, _, terminated, over, info = env.step(np.zeros(env.action_space.shape))
        counts.append(info["env_steps"])
        assert not terminated
    assert counts == [3] * (limit // 3) + [limit % 3]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(env.action_space.shape))


def test_discount_zero_is_a_termination():
    env = without_rendering(make("lqr-lqr_2_1"))  # ends with discount 0 where the state is at rest
    env.reset(seed=0)
    physics(env).data.qpos[:] = physics(env).data.qvel[:] = 0
    physics(env).forward()
    _, _, terminated, truncated, info = env.step(np.zeros(1))
    assert terminated
    assert not truncated
    assert info["env_steps"] == 1


def diverge(env, how):
    """Make the next step of a dm_control env fail in the way `how`."""
    data = physics(env).data
    if how == "velocity":
        data.qvel[:] = 1e30
    elif how == "nan":
        data.qpos[:] = data.qvel[:] = np.nan
    elif how == "fatal":
        env.unwrapped._env.step = raise_fatal_error
    elif how == "reward":
        env.unwrapped._env.task.get_reward = lambda physics: np.nan


def raise_fatal_error(control):
    raise mujoco.FatalError("mj_stackAlloc: out of memory, stack overflow")


@pytest.mark.parametrize(
    "name, how",
    [("cheetah-run", "fatal"), ("humanoid-walk", "reward")]
    + [(name, how) for name in ("cheetah-run", "ball_in_cup-catch", "lqr-lqr_2_1") for how in ("velocity", "nan")],
)
def test_a_simulator_error_truncates_with_the_last_sound_image(name, how):
    env = make(name)
    actions = np.zeros((3, *env.action_space.shape))
    env.reset(seed=0)
    before, *_, info = env.step(actions[0])
    assert "simulator_error" not in info
    diverge(env, how)
    frame, reward, terminated, truncated, info = env.step(actions[1])
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info == {"simulator_error": True, "env_steps": 1}
    np.testing.assert_array_equal(frame, before)
    assert env.render().shape == (480, 640, 3)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(actions[2])
    if how not in ("fatal", "reward"):  # those persist, because a function of the step was replaced
        np.testing.assert_array_equal(roll(env, seed=3)[0], roll(make(name), seed=3)[0])


def test_a_simulator_error_in_the_midst_of_a_repeat_keeps_the_rewards_before():
    env = make("cheetah-run", action_repeat=4)
    env.reset(seed=0)
    step, calls = env.unwrapped._env.step, []

    def fail_in_the_third(control):
        calls.append(control)
        return step(control) if len(calls) < 3 else raise_fatal_error(control)

    env.unwrapped._env.step = fail_in_the_third
    _, reward, _, truncated, info = env.step(np.ones(6))
    assert truncated
    assert info == {"simulator_error": True, "env_steps": 3}
    single = make("cheetah-run", action_repeat=2)
    single.reset(seed=0)
    assert reward == single.step(np.ones(6))[1] > 0
    env.unwrapped._env.step = step
    np.testing.assert_array_equal(roll(env, seed=3)[0], roll(make("cheetah-run", action_repeat=4), seed=3)[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_rescaled_action_is_never_outside_the_box(dtype):
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = rng.uniform(-2, 0, 6).astype(dtype), rng.uniform(0, 2, 6).astype(dtype)
        box = gymnasium.spaces.Box(low, high, dtype=dtype)
        for action in (np.ones(6), -np.ones(6), rng.uniform(-2, 2, 6), np.float32(1 - 1e-7) * np.ones(6)):
            assert box.contains(to_bounds(action, box.low, box.high))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_must_be_finite(value):
    env = without_rendering(make("cheetah-run"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full(6, value))


@pytest.mark.parametrize("task", ["cheetah-run", "walker-run"])
def test_small_shadows_are_half_as_wide(task):
    full, small = (make_env(task, render_quality=name) for name in ("full", "small-shadows"))
    assert physics(small).model.vis.quality.shadowsize == physics(full).model.vis.quality.shadowsize // 2


def test_fast_quality_survives_a_new_model():
    env = make("lqr-lqr_2_1")
    env.reset(seed=0)
    env.reset(seed=1)
    assert physics(env).model.vis.quality.shadowsize == 0
    assert physics(env).contexts.mujoco.ptr.shadowFBO == 0


def test_render_gives_a_full_size_frame_of_the_same_scene():
    env = make("cheetah-run")
    image = env.reset(seed=0)[0]
    video = env.render()
    assert env.render_mode == "rgb_array"
    assert video.shape == (480, 640, 3)
    assert np.abs(video.mean((0, 1)) - image.mean((0, 1))).max() < 30
    np.testing.assert_array_equal(env.unwrapped._render(64, 64), image)


def test_cameras():
    chosen = make("quadruped-walk").reset(seed=0)[0]
    np.testing.assert_array_equal(chosen, make("quadruped-walk", camera=2).reset(seed=0)[0])
    assert (chosen != make("quadruped-walk", camera=0).reset(seed=0)[0]).any()
    with pytest.raises(EnvError, match=r"0 \(global\), .* 3 \(egocentric\), got 4"):
        make("quadruped-walk", camera=4)


# Errors


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cheeta-run", {}, r"^unknown env 'cheeta-run': did you mean cheetah-run.*\? \(or module:factory"),
        ("xyzzy", {}, "unknown env 'xyzzy'.*module:factory"),
        ("cheetah-run", {"action_repeat": 0}, "action_repeat must be 1 or more"),
        ("cheetah-run", {"image_size": 0}, "image_size must be 1 or more"),
        ("cheetah-run", {"max_env_steps": 0}, "max_env_steps must be 1 or more"),
        ("cheetah-run", {"render_quality": "best"}, "full, small-shadows, fast"),
        ("tests.example_env:", {}, "write module:factory"),
    ],
)
def test_an_unusable_env_is_an_error_in_one_line(name, settings, message):
    with pytest.raises(EnvError, match=message) as caught:
        make_env(name, **settings)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


class SpacesEnv(gymnasium.Env):
    """Black images; records its actions."""

    def __init__(self, images=IMAGES, actions=ACTIONS):
        self.observation_space, self.action_space, self.actions = images, actions, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.uint8), {}

    def step(self, action):
        self.actions.append(action)
        return np.zeros(self.observation_space.shape, np.uint8), 1.0, len(self.actions) >= 7, False, {"note": 5}


def pays_for_imports():
    class Paying(SpacesEnv):
        def step(self, action):
            image, _, *rest = super().step(action)
            return image, sum(price * (module in sys.modules) for module, price in (("numpy", 1), ("torch", 2))), *rest

    return Paying()


UNUSABLE = [
    ({"images": gymnasium.spaces.Box(-1, 1, (3,), np.float32)}, "must be pixels.*AddRenderObservation"),
    ({"images": gymnasium.spaces.Box(0, 255, (64, 64, 1), np.uint8)}, "must be pixels"),
    ({"images": gymnasium.spaces.Box(0, 1, (64, 64, 3), np.float32)}, "must be pixels"),
    ({"images": gymnasium.spaces.Box(0, 1, (64, 64, 3), np.uint8)}, "end at 1 and would be seen as almost black"),
    ({"images": gymnasium.spaces.Box(0, 100, (64, 64, 3), np.uint8)}, "pixels go from 0 to 255"),
    ({"actions": gymnasium.spaces.Discrete(3)}, "actions must be a Box"),
    ({"actions": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)}, "finite bounds"),
]


@pytest.mark.parametrize("spaces, message", UNUSABLE)
def test_unusable_spaces_are_an_error_in_one_line(spaces, message, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "odd_bounds", lambda: SpacesEnv(**spaces))
    test_an_unusable_env_is_an_error_in_one_line("tests.test_envs:odd_bounds", {}, message)


def odd_bounds():
    return SpacesEnv(actions=gymnasium.spaces.Box(np.array([0.0, -4.0]), np.array([10.0, 2.0]), dtype=np.float64))


# Custom environments


def test_a_custom_env_is_resized_rescaled_repeated_and_counted():
    env = make_env("tests.test_envs:odd_bounds", action_repeat=3)
    assert env.reset(seed=0)[0].shape == (64, 64, 3)
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    results = [env.step(np.array(action, np.float32)) for action in ([-1, 1], [0, 0], [9, -9])]
    expected = [[0, 2]] * 3 + [[5, -1]] * 3 + [[10, -4]]
    np.testing.assert_allclose(env.unwrapped.actions, expected)
    assert env.unwrapped.actions[0].dtype == np.float64
    assert [result[1] for result in results] == [3.0, 3.0, 1.0]
    assert [result[2] for result in results] == [False, False, True]
    assert [result[4] for result in results] == [{"env_steps": n} for n in (3, 3, 1)], "its own info is left out"
    assert all(result[0].shape == (64, 64, 3) for result in results)
    limited = make_env("tests.test_envs:odd_bounds", max_env_steps=3)
    limited.reset()
    assert [limited.step(np.zeros(2))[2:4] for _ in range(2)] == [(False, False), (False, True)]


def test_a_custom_env_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_robot.py").write_text("from tests.example_env import make\n")
    monkeypatch.setattr(sys, "path", [str(ROOT), *(entry for entry in sys.path if entry)])
    monkeypatch.chdir(tmp_path)
    assert make_env("my_robot:make").reset()[0].shape == (64, 64, 3)


def test_files_of_the_current_folder_hide_no_others_but_the_named_module(tmp_path, monkeypatch):
    """`colorsys` stands for any module of Python, `docutils`, or another that is installed, for any package."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for name in ("my_robot", "an_installed_one"):
        (installed / f"{name}.py").write_text("where = 'installed'\n")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_robot.py").write_text("""
import colorsys, an_installed_one, my_parts
from tests.example_env import make
assert an_installed_one.where == "installed" and my_parts.found and colorsys.hsv_to_rgb
""")
    (folder / "my_parts.py").write_text("found = True\n")
    for name in ("colorsys", "an_installed_one"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported')\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = [str(ROOT), *(entry for entry in sys.path if entry), str(installed)]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.delitem(sys.modules, "my_robot", raising=False)
    monkeypatch.chdir(folder)
    assert make_env("my_robot:make").reset()[0].shape == (64, 64, 3)
    assert sys.path == path, "the program itself does not see that folder"
    with pytest.raises(EnvError, match="colorsys has no function make; colorsys is a module of Python, .* rename"):
        make_env("colorsys:make")


# Several at once


def test_workers_give_the_frames_of_single_envs():
    envs = make_vector_env("cheetah-run", 2, render_quality="fast")
    singles = [make("cheetah-run"), make("cheetah-run")]
    frames, infos = envs.reset(seed=[5, 6])
    kept = frames.copy()
    np.testing.assert_array_equal(frames, [env.reset(seed=5 + row)[0] for row, env in enumerate(singles)])
    assert infos["env_steps"].tolist() == [0, 0]
    actions = random_actions(singles[0], 4).reshape(2, 2, 6)
    for pair in actions:
        after, rewards, _, _, infos = envs.step(pair)
        expected = [env.step(action) for env, action in zip(singles, pair, strict=True)]
        np.testing.assert_array_equal(after, [result[0] for result in expected])
        np.testing.assert_array_equal(rewards, [result[1] for result in expected])
        assert infos["env_steps"].tolist() == [2, 2]
    np.testing.assert_array_equal(frames, kept)  # no later step overwrote them

    reset, infos = reset_rows(envs, np.array([False, True]), seeds=[None, np.int64(6)])
    np.testing.assert_array_equal(reset[0], after[0])
    np.testing.assert_array_equal(reset[1], kept[1])
    last = envs.step(actions[0])[0]
    np.testing.assert_array_equal(last[0], singles[0].step(actions[0][0])[0])
    processes = envs.processes
    envs.close()
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("workers", [False, True])
def test_rows_that_are_left_out_rest(workers):
    envs = make_vector_env("tests.support.counting_env:make", 3, workers=workers, action_repeat=1)
    image, _ = reset_rows(envs, np.array([True, False, True]))
    assert not image[1].any(), "black before its first reset"
    assert [decode(image[row]) for row in (0, 2)] == [(0, 0), (0, 0)]
    for _ in range(2):
        envs.step_async(np.zeros((3, 2), np.float32), np.array([True, False, False]))
        image, reward, terminated, truncated, info = envs.step_wait()
    assert decode(image[0]) == (0, 2) and decode(image[2]) == (0, 0) and not image[1].any()
    assert reward.tolist() == [2.0, 0.0, 0.0] and info["env_steps"].tolist() == [1, 0, 0]
    reset_rows(envs, np.array([False, True, False]))
    for _ in range(8):
        image, reward, terminated, truncated, info = envs.step(np.zeros((3, 2), np.float32))
    assert [decode(x) for x in image] == [(0, 10), (0, 8), (0, 8)], "nothing resets by itself"
    assert truncated.tolist() == [True, False, False] and not terminated.any()
    envs.step_async(np.zeros((3, 2), np.float32), ~truncated)
    _, _, _, truncated, info = envs.step_wait()
    assert not truncated.any() and info["env_steps"].tolist() == [0, 1, 1], "an episode that is over need not be reset"
    envs.close()


def test_a_package_of_the_users_that_has_the_name_of_one_of_ours(tmp_path, monkeypatch):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "mine.py").write_text("make = None")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvError, match=r"cannot import envs\.mine .*; envs is a package of .* rename yours"):
        make_vector_env("envs.mine:make", 1)


def test_workers_load_no_torch():
    envs = make_vector_env("tests.test_envs:pays_for_imports", 1, workers=True, action_repeat=1)
    envs.reset()
    assert envs.step(np.zeros((1, 2), np.float32))[1].tolist() == [1.0]
    envs.close()
    assert isinstance(make_vector_env("tests.example_env:make", 1), LocalVectorEnv), "one stays in this process"
    with pytest.raises(EnvError, match="num_envs"):
        make_vector_env("tests.example_env:make", 0)
    with pytest.raises(EnvError, match="cannot import"):
        make_vector_env("no_such_module:make", 2)


def slow_to_step():
    class Slow(CountingEnv):
        def step(self, action):
            time.sleep(20)

    return Slow()


INTERRUPTED = """
import os, signal, threading, time
import numpy as np
from dreamer_mpc.envs import make_vector_env
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a background
    envs = make_vector_env("tests.test_envs:slow_to_step", 2)
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        envs.reset()  # the workers are still there
    try:
        threading.Timer(0.5, lambda: os.killpg(0, signal.SIGINT)).start()
        envs.step(np.zeros((2, 2), np.float32))
    except KeyboardInterrupt:
        envs.close()
        print("closed", [process.is_alive() for process in envs.processes])
"""


def test_an_interrupted_step_closes_at_once_and_quietly(tmp_path):
    start = time.monotonic()
    done = script(tmp_path / "interrupted.py", INTERRUPTED, start_new_session=True)
    assert done.stdout == "closed [False, False]\n", done.stderr
    assert done.stderr == ""
    assert time.monotonic() - start < 15


STARTING = """
import os, signal, threading, time
import psutil
from dreamer_mpc.envs import make_vector_env
asked, started = [], threading.Event()
def interrupt():
    while not psutil.Process().children():
        time.sleep(0.001)
    while not started.is_set():
        os.killpg(0, signal.SIGINT)
        time.sleep(0.01)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    thread = threading.Thread(target=interrupt)
    thread.start()
    envs = make_vector_env("tests.support.counting_env:make", 2)
    shape = envs.reset()[0].shape
    started.set()
    thread.join()
    print("asked to stop" if asked else "not asked")
    print("started", shape)
    envs.close()
"""


def test_workers_that_start_leave_an_interrupt_to_their_parent(tmp_path):
    done = script(tmp_path / "starting.py", STARTING, start_new_session=True)
    assert (done.stdout, done.stderr) == ("asked to stop\nstarted (2, 64, 64, 3)\n", "")


# OpenGL


def choose_in_a_new_process(code="from dreamer_mpc import envs; print(envs.choose_gl_backend())", **variables):
    hidden = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", PROBED, CUDA_INDICES)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment | variables, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MUJOCO_GL": "nonsense"}, "MUJOCO_GL=nonsense does"),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL=glfw does"),
        ({"PYOPENGL_PLATFORM": "nonsense"}, "PYOPENGL_PLATFORM=nonsense does"),
        ({"MUJOCO_EGL_DEVICE_ID": "77", "MUJOCO_GL": "egl"}, "MUJOCO_GL=egl and MUJOCO_EGL_DEVICE_ID=77 do"),
    ],
)
def test_a_variable_that_keeps_opengl_from_rendering_is_to_be_unset(variables, words):
    """Its remedy is tried before it is named: packages would not help."""
    last = choose_in_a_new_process(**variables).stderr.splitlines()[-1]
    assert last.startswith(f"dreamer_mpc.envs.errors.EnvError: {words} not render here (")
    assert last.endswith("unset them" if " and " in words else "unset it") and "apt-get" not in last


@pytest.mark.parametrize("variables, words", [({}, "no OpenGL to render with"), ({"MUJOCO_GL": "egl"}, "or without: ")])
def test_missing_opengl_names_the_packages_in_one_line(variables, words):
    code = "from dreamer_mpc.envs import gl; gl._probe = lambda *_: 'black'; gl.choose_gl_backend()"
    last = choose_in_a_new_process(code, **variables).stderr.splitlines()[-1]
    assert words in last and "apt-get install libegl1 libgl1 or libosmesa6" in last


MUJOCO_PIXELS = """
import gymnasium

def make():
    env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=64, height=64)
    return gymnasium.wrappers.AddRenderObservation(env, render_only=True)
"""


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_custom_environment_renders_with_mujoco_without_a_display(num_envs, tmp_path):
    (tmp_path / "pendulum.py").write_text(MUJOCO_PIXELS)
    code = "from dreamer_mpc.envs import make_vector_env\nif __name__ == '__main__':\n"
    code += f"    e = make_vector_env('pendulum:make', {num_envs})\n"
    code += "    print(e.reset(seed=0)[0].std() > 0)\n    e.close()\n"
    (tmp_path / "play.py").write_text(code)
    hidden = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "DISPLAY", PROBED, CUDA_INDICES)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{tmp_path}"
    done = subprocess.run([sys.executable, tmp_path / "play.py"], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_choice_of_the_user_and_a_machine_without_opengl_are_left_alone():
    code = "import os; from dreamer_mpc.envs import gl; gl._probe = lambda *_: 'black'; gl.offer_gl_backend(); "
    code += "gl._probe = None; gl.offer_gl_backend(); print(os.environ.get('MUJOCO_GL'))"
    assert choose_in_a_new_process(code).stdout == "None\n"
    assert choose_in_a_new_process(code, MUJOCO_GL="glfw").stdout == "glfw\n"


def test_a_missing_dm_control_is_not_blamed_on_opengl(tmp_path):
    (tmp_path / "dm_control.py").write_text("raise ModuleNotFoundError(\"No module named 'dm_control'\")")
    done = choose_in_a_new_process(PYTHONPATH=str(tmp_path))
    assert "pip install 'dm_control" in done.stderr.splitlines()[-1]


def test_a_probed_backend_is_not_probed_again_by_children():
    code = "from dreamer_mpc.envs import gl; gl._probe = None; print(gl.choose_gl_backend())"
    assert choose_in_a_new_process(code, MUJOCO_GL="egl", **{PROBED: "egl"}).stdout == "egl\n"
    assert choose_in_a_new_process(code, MUJOCO_GL="egl", **{PROBED: "osmesa"}).stdout == ""
    assert choose_gl_backend() == os.environ["MUJOCO_GL"] == os.environ[PROBED]


def test_importing_envs_does_nothing_and_knows_nothing_of_the_agent():
    script = (
        "import os, sys; before = dict(os.environ); import dreamer_mpc.envs; "
        "loaded = [m for m in ('torch', 'dm_control', 'mujoco', 'OpenGL', 'cv2') if m in sys.modules]; "
        "own = {m.partition('.')[2].partition('.')[0] for m in sys.modules if m.startswith('dreamer_mpc.')}; "
        "print(loaded, own, before == os.environ)"
    )
    assert choose_in_a_new_process(script).stdout == "[] {'envs'} True\n"


EGL_OF = {(0, None): "2", (1, None): "0", (0, "1,0"): "0", (1, "1,0"): "2", (5, None): None, (0, "GPU-1f"): None}
EGL_OF[0, ""] = None


@pytest.mark.parametrize("cuda_index, visible, expected", [(*of, found) for of, found in EGL_OF.items()])
def test_the_egl_device_is_that_of_the_cuda_device(cuda_index, visible, expected, monkeypatch):
    monkeypatch.setattr("dreamer_mpc.envs.gl.choose_gl_backend", lambda: "egl")
    monkeypatch.setenv(CUDA_INDICES, "1,,0,")  # as the probe writes it: EGL device 0 is CUDA's 1, EGL's 2 is its 0
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")  # so that monkeypatch restores it after the value set below
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    match_egl_device(cuda_index)
    assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == expected
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "3")
    match_egl_device(cuda_index)
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "3", "the user's is left alone"


def test_the_probe_sees_all_gpus_whichever_this_process_may_use(monkeypatch, tmp_path):
    probe = tmp_path / "probe.py"  # with CUDA_VISIBLE_DEVICES=2, EGL of four H100s answered ,,0, and not 0,1,2,3
    probe.write_text("import os; print('a line'); print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))")
    monkeypatch.setattr("dreamer_mpc.envs.gl.PROBE", probe)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setenv(CUDA_INDICES, "")
    assert _probe("egl") is None
    assert os.environ[CUDA_INDICES] == "all" and os.environ["CUDA_VISIBLE_DEVICES"] == "2"
