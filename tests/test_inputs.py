"""Environments by gymnasium's ids, their arguments and cameras; images of other sizes, in gray, and stacked."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import dreamer_mpc
from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.config import Config, config_from_dict, to_dict
from dreamer_mpc.envs import EnvError, list_tasks, make_env, make_vector_env
from dreamer_mpc.envs.frames import to_gray
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.runs.checkpoint import save_checkpoint
from dreamer_mpc.util.arguments import read_env_args
from dreamer_mpc.world_model import ImageForm
from tests.support.agents import ACTION_DIM, BEHAVIOR, CATEGORICAL, CHEAP, TINY, WORLD, make_batch
from tests.support.checkpoints import family_checkpoint
from tests.support.commands import quietly, train
from tests.support.counting_env import CountingEnv, decode

FORMS = [ImageForm(84), ImageForm(96, 1), ImageForm(128, 3, 2), ImageForm(64, 1, 3)]


def make(length=10, terminates=False):
    """A factory with arguments."""
    return CountingEnv(length=length, terminates=terminates)


def passing(size=64, **kwargs):
    """A factory that passes arguments on."""
    return CountingEnv(**kwargs)


# environments


def test_an_id_of_gymnasium_is_seen_through_its_renderer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = {"env_args": {"reset_noise_scale": 0.1}, "image_size": 84, "action_repeat": 1}
    envs = make_vector_env("InvertedPendulum-v5", 1, **args)
    one, other = (envs.reset(seed=[seed])[0] for seed in (1, 2))
    assert one.shape == (1, 84, 84, 3) and one.std() > 5 and (one != other).any()
    image, reward, _, _, _ = envs.step(np.ones((1, 1), np.float32))
    assert (image != other).any() and reward == 1.0
    envs.close()
    assert not os.listdir(tmp_path), "MuJoCo's log of warnings"


X = {"env_args": {"x": 1}}
MISTAKES = {
    "an unknown id": ("HalfCheeta-v5", {}, "no id that gymnasium knows: did you mean HalfCheetah-v5"),
    "an argument it lacks": ("HalfCheetah-v5", X, "with --env-args x .*leave out .*it takes xml_file, frame_skip,"),
    "a camera it lacks": ("HalfCheetah-v5", {"camera": "nope"}, r"the cameras -1 \(free\), 0 \(track\), got 'nope'"),
    "a camera of none": ("MountainCarContinuous-v0", {"camera": 1}, "has no choice of cameras"),
    "a task's camera": ("cheetah-run", {"camera": "x"}, r"the cameras -1 \(free\), 0 \(side\), 1 \(back\), got 'x'"),
    "a task's argument": ("cheetah-run", X, "made with --env-args x .*it takes time_limit, environment_kwargs.$"),
    "a factory's argument": ("tests.test_inputs:make", X, "x of --env-args, but .*'x': it takes length, terminates$"),
    "one that it passes on": ("tests.test_inputs:passing", X, "x of --env-args .*takes size, what .*kwargs passes on$"),
}


@pytest.mark.parametrize("name, settings, words", MISTAKES.values(), ids=MISTAKES)
def test_what_an_environment_lacks_is_one_line(name, settings, words):
    with pytest.raises(EnvError, match=words) as raised:
        make_env(name, **settings)
    assert "\n" not in str(raised.value) and "mend it" not in str(raised.value)


def test_arguments_reach_task_and_factory_and_cameras_have_names():
    named, numbered = (make_env("cheetah-run", camera=camera, env_args={"time_limit": 0.05}) for camera in ("back", 1))
    np.testing.assert_array_equal(named.reset(seed=0)[0], numbered.reset(seed=0)[0])
    assert (make_env("cheetah-run").reset(seed=0)[0] != named.reset(seed=0)[0]).any()
    over = [named.step(np.zeros(6, np.float32))[3] for _ in range(3)]
    assert over == [False, False, True], "of 5 env steps"
    env = make_env("tests.test_inputs:make", env_args={"length": 2, "terminates": True}, action_repeat=1)
    env.reset()
    assert [env.step(np.zeros(2))[2] for _ in range(2)] == [False, True]


def test_arguments_are_read_as_values():
    words = ["a=1", "b=0.5", "c=true", "d=None", "e=x=y", "f=[1, 2]"]
    assert read_env_args(words) == {"a": 1, "b": 0.5, "c": True, "d": None, "e": "x=y", "f": [1, 2]}
    for bad in (["a"], ["1=2"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match="env_args must"):
            read_env_args(bad)


def test_envs_lists_and_describes():
    listed = quietly("envs")
    assert listed.code == 0 and "HalfCheetah-v5" in listed.out and "CartPole" not in listed.out
    assert all(f" {name.partition('-')[2]}" in listed.out for name in list_tasks())
    described = quietly("envs", "cheetah-run").out
    assert "actions: 6, each in [-1, 1]" in described and "cameras: 0 side, 1 back" in described
    wrong = quietly("envs", "cheetah-rum")
    assert wrong.code == 2 and "did you mean cheetah-run?" in wrong.err


# images


def test_stacked_frames_are_the_last_ones_and_gray_is_their_brightness():
    env = make_env("tests.test_inputs:make", action_repeat=1, frame_stack=3)
    image, _ = env.reset()
    assert image.shape == (64, 64, 9) and env.observation_space.contains(image)
    seen = []
    for _ in range(4):
        image, *_ = env.step(np.zeros(2))
        seen.append([decode(frame) for frame in np.split(image, 3, axis=-1)])
    assert seen[0] == [(0, 0), (0, 0), (0, 1)] and seen[3] == [(0, 2), (0, 3), (0, 4)]
    image, _ = env.reset()
    assert [decode(frame) for frame in np.split(image, 3, axis=-1)] == [(1, 0)] * 3
    gray = make_env("tests.test_inputs:make", action_repeat=1, grayscale=True)
    assert gray.reset()[0].shape == (64, 64, 1)
    colors = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert to_gray(colors)[0, :, 0].tolist() == [255, 0, 77, 149, 29]


def test_a_stacked_environment_goes_back_to_a_state():
    envs = make_vector_env("tests.support.going_env:make", 1, frame_stack=2, grayscale=True, action_repeat=1)
    envs.reset(seed=[0])
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 1, *envs.single_action_space.shape)).astype(np.float32)
    for action in actions[:3]:
        last = envs.step(action)[0]
    (state,) = envs.get_states()
    expected = [envs.step(action)[:2] for action in actions[3:]]
    np.testing.assert_array_equal(envs.set_states([state]), last)
    for action, (image, reward) in zip(actions[3:], expected, strict=True):
        answer = envs.step(action)
        np.testing.assert_array_equal(answer[0], image)
        assert answer[1] == reward
    rewards = envs.try_plans([state], actions[3:, 0][None, None])
    np.testing.assert_allclose(rewards[0, 0], [reward[0] for _, reward in expected])
    envs.close()


@pytest.mark.parametrize("world", [WORLD, CATEGORICAL, replace(CATEGORICAL, downsampling="strided")])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "x".join(map(str, form)))
def test_agents_learn_from_images_of_every_form(form, world):
    torch.manual_seed(0)
    kind = "dreamer" if world.kind == "gaussian" else "v3"
    behavior = BehaviorConfig(**BEHAVIOR | {"kind": kind})
    agent = Dreamer(ACTION_DIM, world, behavior, images=form)
    batch = make_batch(shape=form.shape, length=3, batch_size=2)
    losses = [agent.update(batch).metrics["image_loss"] for _ in range(3)]
    assert losses[-1] < losses[0] and torch.isfinite(torch.stack(losses)).all()
    decoded = agent.model.world_model.decode(torch.zeros(2, agent.state_dim))
    assert decoded.shape == (2, *form.shape) and decoded.dtype == torch.uint8


def test_a_run_with_gray_stacked_images_of_another_size(tmp_path):
    run = tmp_path / "run"
    images = ("--image-size", "84", "--grayscale", "--frame-stack", "2")
    train(*TINY, *CHEAP, "--planner", "policy", *images, "--num-envs", "1", "--eval.video", "--run-dir", run)
    assert list((run / "videos").glob("*.mp4"))
    trained = dreamer_mpc.load(run, device="cpu")
    assert trained.image_shape == (84, 84, 2)
    env, player = trained.make_env(), trained.player("policy")
    assert player(env.reset(seed=0)[0]).shape == (ACTION_DIM,)
    assert Subject.load(run).task().keys() >= {"image_size", "grayscale", "frame_stack"}
    refused = quietly("--resume", run, "--env-steps", "24", "--image-size", "64")
    assert refused.code == 2 and "--image-size of" in refused.err and "is 84 and cannot become 64" in refused.err


def test_settings_that_were_saved_before_these_mean_what_they_meant(tmp_path):
    younger = ("env_args", "image_size", "grayscale", "frame_stack", "init_from")
    saved = {key: value for key, value in to_dict(Config(camera=2)).items() if key not in younger}
    assert config_from_dict(saved, "here") == Config(camera=2)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = family_checkpoint("paper")
    save_checkpoint(path, checkpoint)
    assert not {*younger} & Subject.load(path).task().keys(), "so that older comparisons can go on"


def test_other_forms_than_those_are_one_line():
    for args, words in ((("--image-size", "65"), "'65'"), (("--frame-stack", "9"), "between 1 and 8")):
        refused = quietly(*TINY, *args)
        assert refused.code == 2 and words in refused.err and refused.err.count("\n") == 1
