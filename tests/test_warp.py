"""Pictures by warp: they show what dm_control shows, whatever draws them, and agents learn and play in them."""

import importlib.machinery
import importlib.util
import json
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from benchmarks import pixels, rendering
from dreamer_mpc.config import Config
from dreamer_mpc.config.make import make_envs
from dreamer_mpc.envs import EnvError, make_env, reset_rows
from dreamer_mpc.envs.frames import Frames, to_gray
from dreamer_mpc.envs.scene import INSTALL, PACKAGES, TENDON_PARTS, Layout
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.library import load
from dreamer_mpc.report.doctor import check_warp
from dreamer_mpc.report.methods import method_of
from dreamer_mpc.report.rows import drawn_by
from dreamer_mpc.runs.folder import default_run_dir
from scripts.soak import differences
from tests.support.agents import BRIEF, CHEAP
from tests.support.commands import ROOT, quietly, records, train
from tests.support.drawings import TASKS, drawing, stored
from tests.support.stops import stop

installed = all(importlib.util.find_spec(name) for name in PACKAGES)
warped = pytest.mark.skipif(not installed, reason=f"needs mujoco-warp: {INSTALL}")
CPU = torch.device("cpu")
# Mean absolute differences to dm_control's own pictures, of 255, which must not grow: a bit above what they are now.
BOUNDS = {
    "acrobot-swingup": 2.5, "ball_in_cup-catch": 2.5, "cartpole-swingup": 3.5, "cheetah-run": 3.0,
    "finger-turn_hard": 2.5, "fish-swim": 3.0, "hopper-hop": 2.5, "humanoid-run": 4.0, "manipulator-bring_peg": 2.0,
    "point_mass-easy": 7.5, "quadruped-fetch": 6.0, "reacher-hard": 6.5, "stacker-stack_2": 2.0,
    "swimmer-swimmer6": 2.5, "walker-run": 4.5,
}  # fmt: skip


def drawn_rows(env, num_envs=1, **settings):
    """Rows of an environment in pictures by warp."""
    settings = {"render_quality": "warp", "action_repeat": 2, **settings}
    return make_envs(Config(env=env, num_envs=num_envs, **settings), num_envs, CPU)


def actions(envs, steps, seed=0):
    shape = (steps, envs.num_envs, *envs.single_action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def play(envs, steps, seeds):
    """Images of an episode in each row, uint8 [T, B, H, W, C]."""
    images = [envs.reset(seed=seeds)[0].numpy()]
    images += [envs.step(action)[0].numpy() for action in actions(envs, steps)]
    return np.stack(images)


def beside(task, steps, seed=0, **settings):
    """The same steps of an episode, drawn by dm_control and by warp: uint8 [T, H, W, C] both."""
    envs = drawn_rows(task, **settings)
    taken = actions(envs, steps)[:, 0]
    env = make_env(task, **settings)
    own = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in taken)]
    env.close()
    ours = play(envs, steps, [seed])[:, 0]
    envs.close()
    return np.stack(own), ours


def difference(one, other):
    return np.abs(one.astype(int) - other).mean()


# what they show


@warped
@pytest.mark.parametrize("task", BOUNDS)
def test_pictures_are_nearly_those_of_dm_control(task):
    own, ours = beside(task, 3)
    assert ours.shape == own.shape and ours.dtype == np.uint8
    assert difference(own, ours) < BOUNDS[task]
    assert own.reshape(-1, 3).mean(0) == pytest.approx(ours.reshape(-1, 3).mean(0), abs=10), "as bright"


@warped
@pytest.mark.parametrize("task", ["cheetah-run", "walker-run", "hopper-hop", "acrobot-swingup"])
def test_what_moves_is_where_dm_control_has_it(task):
    own, ours = beside(task, 12)
    moved = np.abs(own[0].astype(int) - own[-1]).max(-1) > 40
    assert moved.sum() > 20
    there, before = difference(own[-1][moved], ours[-1][moved]), difference(own[-1][moved], ours[0][moved])
    assert there < before / 2, "the last picture shows the last state, not the first"


@warped
@pytest.mark.parametrize("task", ["reacher-easy", "finger-turn_hard"])  # a geom that the task places, and a site
def test_a_target_is_where_the_task_puts_it(task):
    at = []
    for seed in (0, 1):
        own, ours = beside(task, 0, seed)
        at.append([np.argwhere(reddish(image[0])).mean(0) for image in (own, ours)])
        assert np.abs(at[-1][0] - at[-1][1]).max() < 1.5
    assert np.abs(at[0][1] - at[1][1]).max() > 3, "another place in the next episode"


def reddish(image):
    red, green, blue = image.astype(int).transpose(2, 0, 1)
    return (red > 140) & (red - green > 60) & (blue > green - 15)


@warped
def test_a_string_is_drawn_slack_and_taut():
    env = make_env("ball_in_cup-catch", render_quality="warp")
    colors, capsules = env._scene.layout.parts()["color"], set()
    scene, _ = env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (150, 2)):
        capsules.add(int((scene[colors].reshape(-1, 4)[-TENDON_PARTS:, 3] > 0).sum()))
        scene = env.step(action)[0]
    assert {1, 28} <= capsules and max(capsules) < TENDON_PARTS
    own, ours = beside("ball_in_cup-catch", 12)
    string = (own.max(-1).astype(int) - own.min(-1) < 30) & (own.min(-1) > 90)  # gray
    assert string[-1].any() and difference(own[string], ours[string]) < difference(own[string], np.zeros(1)) / 2


@warped
@pytest.mark.parametrize("size, camera", [(96, None), (64, "back")])
def test_other_sizes_and_cameras(size, camera):
    task = "cheetah-run" if camera is None else "walker-run"
    own, ours = beside(task, 2, image_size=size, camera=camera)
    assert ours.shape[1:3] == (size, size) and difference(own, ours) < 6


# rows


@warped
def test_an_image_depends_on_its_own_scene_alone():
    alone, several = drawn_rows("walker-run"), drawn_rows("walker-run", 3)
    try:
        images = play(several, 3, [5, 6, 7])
        taken = actions(several, 3)[:, 1:2]
        again = [alone.reset(seed=[6])[0].numpy(), *(alone.step(action)[0].numpy() for action in taken)]
        np.testing.assert_array_equal(images[:, 1], np.concatenate(again))
        assert (images[-1, 0] != images[-1, 1]).any()
    finally:
        alone.close()
        several.close()


@warped
def test_idle_rows_keep_their_images_and_rows_before_the_first_reset_are_black():
    envs = drawn_rows("cheetah-run", 2)
    try:
        first, _ = reset_rows(envs, np.array([True, False]), [3, None])
        assert not first[1].any() and first[0].any()
        envs.step_async(np.ones((2, 6), np.float32), np.array([True, False]))
        second, *_ = envs.step_wait()
        assert not second[1].any() and (second[0] != first[0]).any()
        third, _ = reset_rows(envs, np.array([False, True]), [None, 4])
        assert third[1].any() and torch.equal(third[0], second[0])
        kept = second.clone()
        envs.step(np.ones((2, 6), np.float32))
        assert torch.equal(second, kept), "images are new ones each time"
    finally:
        envs.close()


@warped
def test_a_lost_row_is_black_until_it_is_reset():
    envs = drawn_rows("cheetah-run", 2, frame_stack=2)
    try:
        envs.reset(seed=0)
        os.kill(envs._rows.processes[1].pid, signal.SIGKILL)
        images, _, _, truncated, info = envs.step(np.zeros((2, 6), np.float32))
        assert info["lost"].tolist() == [False, True] and truncated[1]
        assert not images[1].any() and images[0].any()
        images, _ = reset_rows(envs, np.array([False, True]), [None, 1])
        assert images[1].any()
    finally:
        envs.close()


@warped
def test_gray_and_stacked_frames_are_those_of_the_wrapper():
    plain, stacked = drawn_rows("hopper-hop"), drawn_rows("hopper-hop", grayscale=True, frame_stack=3)
    assert stacked.single_observation_space.shape == (64, 64, 3)
    images, found = play(plain, 4, [2])[:, 0], play(stacked, 4, [2])[:, 0]
    gray = [to_gray(image) for image in images]
    for step in range(5):
        expected = np.concatenate([gray[max(step - back, 0)] for back in (2, 1, 0)], axis=-1)
        np.testing.assert_array_equal(found[step], expected)
    assert not isinstance(stacked._rows.envs[0], Frames), "the environment sends scenes, not frames"


@warped
@pytest.mark.parametrize("stack", [1, 2])
def test_a_restored_state_gives_the_same_images(stack):
    envs = drawn_rows("reacher-easy", 2, frame_stack=stack)
    try:
        assert envs.restorable
        play(envs, 3, [0, 1])
        states, steps = envs.get_states(), actions(envs, 4, seed=1)
        went = [envs.step(action)[0] for action in steps]
        plans = np.stack([steps[:, row][None] for row in (0, 1)])
        rewards = envs.try_plans(states, plans)
        assert rewards.shape == (2, 1, 4)
        here = envs.set_states(states)
        assert torch.equal(here, torch.stack([state.frames for state in states]))
        assert all(torch.equal(envs.step(action)[0], image) for action, image in zip(steps, went, strict=True))
        envs.go_to(states)
        assert torch.equal(envs.step(steps[0])[0], went[0])
        swapped = envs.set_states(states[::-1])
        assert torch.equal(swapped, here.flip(0))
    finally:
        envs.close()


@warped
def test_the_frame_of_a_viewer_is_dm_controls():
    envs = drawn_rows("cheetah-run")
    envs.reset(seed=0)
    assert envs.view(0).shape == (480, 640, 3) and envs.facts().steps_per_s == pytest.approx(50)
    envs.close()


# refusals


@warped
@pytest.mark.parametrize("task, words", [
    ("dog-run", "cannot draw dog-run with a skin, meshes, transparent parts"),
    ("quadruped-escape", "terrain"),
    ("lqr-lqr_2_1", "changes from episode to episode"),
])  # fmt: skip
def test_tasks_that_it_cannot_draw_are_refused_in_words(task, words):
    done = quietly("--env", task, "--render-quality", "warp", "--device", "cpu")
    assert done.code == 2 and done.err.count("\n") == 1
    assert words in done.err and "use full, small-shadows or fast" in done.err


@warped
def test_the_free_camera_is_refused():
    with pytest.raises(EnvError, match="warp cannot draw cheetah-run with the free camera"):
        make_env("cheetah-run", render_quality="warp", camera=-1)


@pytest.mark.parametrize("env", ["tests.example_env:make", "Pendulum-v1"])
def test_other_environments_are_refused(env, tmp_path):
    done = quietly(*BRIEF, "--env", env, "--render-quality", "warp", "--run-dir", tmp_path / "run")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "draws tasks of dm_control alone" in done.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", PACKAGES)
def test_a_missing_package_is_named_with_its_remedy(lacking, monkeypatch, tmp_path):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name == lacking else there(name, *at))
    done = quietly(*BRIEF, "--env", "cheetah-run", "--render-quality", "warp", "--run-dir", tmp_path / "run")
    assert done.code == 2 and done.err.count("\n") == 1
    assert INSTALL in done.err and not (tmp_path / "run").exists()


@warped
def test_another_package_of_that_name_is_one_line(monkeypatch, tmp_path):
    other = types.ModuleType("warp")
    other.__spec__ = importlib.machinery.ModuleSpec("warp", None)
    monkeypatch.setitem(sys.modules, "warp", other)
    done = quietly(*BRIEF, "--env", "cheetah-run", "--render-quality", "warp", "--run-dir", tmp_path / "run")
    assert done.code == 2 and done.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert "cannot be loaded" in done.err and "-c constraints.txt" in done.err


def test_warp_is_imported_only_where_it_is_asked_for():
    code = (
        "import sys, torch; from dreamer_mpc.config import Config; from dreamer_mpc.config.make import make_envs; "
        "make_envs(Config(env='cheetah-run', render_quality='fast'), 1, torch.device('cpu')).reset(seed=0); "
        "sys.exit(any(name.split('.')[0] in ('warp', 'mujoco_warp') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


# runs

WORLD = ["--env", "cheetah-run", "--render-quality", "warp", "--device", "cpu"]
RUNS = {
    "sequential": ["--num-envs", "1", "--planner", "dream-mpc"],
    "interleaved, stacked": ["--num-envs", "2", "--planner", "policy", "--frame-stack", "2", "--grayscale"],
}
PLAN = [*CHEAP, "--env-steps", "40", "--train.seed-episodes", "2", "--train.updates", "2", "--eval.every", "24"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The arguments and the folder of an uninterrupted run of each of `RUNS`."""
    found = {}
    for name, own in RUNS.items():
        args, folder = [*BRIEF, *PLAN, *WORLD, *own], tmp_path_factory.mktemp("warp") / "run"
        train(*args, "--run-dir", folder)
        found[name] = args, folder
    return found


@warped
@pytest.mark.parametrize("name", RUNS)
def test_a_run_repeats_itself_bit_for_bit(whole, name, tmp_path):
    args, folder = whole[name]
    train(*args, "--run-dir", tmp_path / "run")
    assert differences(tmp_path / "run", folder, leave_out=["/random/python"]) == []


@warped
@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_bit_for_bit(whole, name, tmp_path, monkeypatch):
    args, folder = whole[name]
    stop(monkeypatch, 21)
    assert "stopped at" in train(*args, "--run-dir", tmp_path / "run")
    assert "could not be repeated" not in train("--resume", tmp_path / "run")
    assert differences(tmp_path / "run", folder, leave_out=["/random/python"]) == []


@warped
def test_a_run_says_what_drew_it(whole):
    _, folder = whole["sequential"]
    assert Subject.load(folder).trained.render_quality == "warp"
    assert "eval/return_mean" in records(folder)[-1]
    config = Config(render_quality="warp", planner="policy")
    assert default_run_dir(config) == "runs/cheetah-run-policy-warp-seed0"
    assert method_of(config) == "dreamer, drawn by warp"


@warped
def test_eval_plays_in_the_world_of_the_checkpoint_and_names_it(whole, tmp_path):
    args = ["eval", "--checkpoint", whole["sequential"][1], "--planner", "policy", "--episodes", 1, "--num-envs", 1]
    done = quietly(*args, "--out", tmp_path / "own", "--video")
    assert done.code == 0 and "drawn by warp" in " ".join(done.out.split()), done.err
    assert list((tmp_path / "own").glob("*.mp4"))
    assert '"render_quality": "warp"' in (tmp_path / "own" / "eval.json").read_text()
    done = quietly(*args, "--render-quality", "fast", "--out", tmp_path / "other")
    assert "drawn with fast (trained with warp)" in " ".join(done.out.split()), done.err
    assert quietly("report", tmp_path / "own", "--out", tmp_path / "page.html").code == 0
    assert "drawn by warp" in (tmp_path / "page.html").read_text()


@warped
def test_worlds_are_mixed_only_by_name(whole, tmp_path):
    warp, fast = whole["sequential"][1], tmp_path / "fast"
    train(*BRIEF, *PLAN, "--env", "cheetah-run", *RUNS["sequential"], "--run-dir", fast)
    args = ["compare", "--checkpoint", warp, fast, "--planners", "policy", "--episodes", 1, "--num-envs", 1]
    done = quietly(*args, "--out", tmp_path / "a")
    assert done.code == 2 and "trained with render_quality warp" in done.err and "--render-quality" in done.err
    done = quietly(*args, "--out", tmp_path / "b", "--render-quality", "warp")
    assert done.code == 0 and "drawn by warp (some trained with fast)" in " ".join(done.out.split()), done.err
    done = quietly("analyze", "--what", "true-gain", "--checkpoint", warp, fast, "--out", tmp_path / "c")
    assert done.code == 2 and "--render-quality" in done.err
    for folder, other in ((warp, "fast"), (fast, "warp")):
        done = quietly("--resume", folder, "--env-steps", 80, "--render-quality", other)
        assert done.code == 2 and "a world of their own" in done.err
    done = train(
        *BRIEF, *PLAN, "--env", "cheetah-run", *RUNS["sequential"], "--init-from", warp, "--run-dir", tmp_path / "d"
    )
    assert "drawn by warp" in done, "a line says that the weights are of another world"


@warped
def test_an_analysis_copies_states(whole, tmp_path):
    args = ["--planners", "dream-mpc", "--episodes", 1, "--states", 1, "--every", 1, "--draws", 8, "--averaged", 1]
    args += ["--depth", 2, "--num-envs", 1, "--dream-mpc.horizon", 3]
    for what in ("true-gain", "model-error"):
        done = quietly(
            "analyze", "--what", what, "--checkpoint", whole["sequential"][1], "--out", tmp_path / what, *args
        )
        assert done.code == 0 and "drawn by warp" in " ".join(done.out.split()), done.err


@warped
def test_a_program_of_ones_own_gets_images(whole):
    agent = load(whole["sequential"][1], device="cpu")
    env, player = agent.make_env(), agent.player("policy")
    image, info = env.reset(seed=0)
    assert isinstance(image, np.ndarray) and env.observation_space.contains(image) and info == {"env_steps": 0}
    image, reward, terminated, truncated, info = env.step(player(image))
    assert env.observation_space.contains(image) and isinstance(reward, float) and not terminated
    assert info["env_steps"] == agent.config.action_repeat and env.render().shape == (480, 640, 3)
    env.close()


@warped
def test_a_program_of_ones_own_plays_what_eval_plays(whole, tmp_path):
    checkpoint = whole["interleaved, stacked"][1]
    args = ["--planner", "policy", "--episodes", 1, "--num-envs", 1, "--seed", 7, "--out", tmp_path]
    assert quietly("eval", "--checkpoint", checkpoint, *args).code == 0
    (played,) = json.loads((tmp_path / "eval.json").read_text())["results"][0]["returns"]
    agent = load(checkpoint, device="cpu")
    env, player, total, over = agent.make_env(), agent.player("policy", seed=7), 0.0, False
    image, _ = env.reset(seed=7)
    while not over:
        image, reward, terminated, truncated, _ = env.step(player(image))
        total, over = total + reward, terminated or truncated
    env.close()
    assert total == played


# small parts


def test_what_titles_say():
    assert drawn_by("full") == drawn_by("fast", "fast") == drawn_by(None) == ""
    assert drawn_by("fast", "full", "fast") == ", drawn with fast (some trained with full)"
    assert drawn_by("warp") == drawn_by("warp", "warp") == ", drawn by warp"
    assert drawn_by("warp", "full", "warp") == ", drawn by warp (some trained with full)"
    assert drawn_by("full", "warp") == ", drawn with full (trained with warp)"


def test_a_layout_has_every_number_once():
    layout = Layout(drawn=3, lights=2)
    covered = [i for part in layout.parts().values() for i in range(layout.width)[part]]
    assert covered == list(range(layout.width)) and layout.width == 1 + 19 * 3 + 12 + 6 * 2


@warped
@pytest.mark.parametrize("task", TASKS)
def test_images_are_those_that_were_stored(task):
    """A change of what is drawn is a change of the world that agents were trained in: see tests/support/drawings.py."""
    scenes, images = stored(task)
    assert difference(drawing(task, scenes, CPU).numpy(), images) < 0.05


@warped
def test_the_benchmarks_measure_it(tmp_path):
    args = ["--num-envs", "1", "2", "--quality", "fast", "warp", "--seconds", "0.1", "--device", "cpu"]
    rows = rendering.main(args)
    assert [(row["num_envs"], row["quality"]) for row in rows] == [(1, "fast"), (1, "warp"), (2, "fast"), (2, "warp")]
    assert all(row["frames_per_s"] > 0 and ("drawing_alone" in row) == (row["quality"] == "warp") for row in rows)
    (row,) = pixels.main(
        ["--envs", "hopper-hop", "dog-run", "--frames", "3", "--qualities", "warp", "--pictures", str(tmp_path)]
    )
    assert row["env"] == "hopper-hop" and 0.5 < row["difference"] < BOUNDS["hopper-hop"]
    assert (tmp_path / "hopper-hop-warp.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        rendering.main(["--quality", "warp"])


@warped
def test_doctor_draws_a_frame(monkeypatch):
    found = check_warp()
    assert found.status == "ok" and "ms a 64x64 frame" in found.text and "mujoco-warp 3" in found.text
    monkeypatch.setattr("dreamer_mpc.report.doctor._drawing_milliseconds", lambda count: 1 / 0)
    assert check_warp().status == "warn" and "does not work here" in check_warp().text


def test_doctor_does_without(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if name == "warp" else there(name, *at))
    assert check_warp().status == "ok" and INSTALL in check_warp().text


def test_messages_name_the_command_of_the_docs():
    assert f"\n    {INSTALL}\n" in (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
