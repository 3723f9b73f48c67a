"""Pictures by warp on a GPU: those of a CPU, the same each time, and they stay there; skipped without one."""

import importlib.util

import numpy as np
import pytest
import torch

from dreamer_mpc.config import Config
from dreamer_mpc.config.make import make_envs
from dreamer_mpc.data.collect import Collector, Counters
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.envs import make_vector_env
from dreamer_mpc.envs.scene import INSTALL, PACKAGES
from dreamer_mpc.planners import make_planner
from tests.support.agents import BRIEF, CHEAP
from tests.support.commands import train
from tests.support.drawings import TASKS, drawing, stored
from tests.support.stops import stop

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in PACKAGES),
        reason=f"needs mujoco-warp: {INSTALL}",
    ),
]
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("task", TASKS)
def test_images_are_those_of_a_cpu(task):
    scenes, images = stored(task)
    ours = drawing(task, scenes, GPU)
    assert ours.device == GPU
    difference = np.abs(ours.cpu().numpy().astype(int) - images)
    # A GPU's texture units weigh texels in 256ths, and its sums are rounded in another order.
    assert difference.mean() < 0.3 and (difference > 8).mean() < 0.01


def test_the_same_scenes_give_the_same_images_in_any_row():
    scenes, _ = stored("quadruped-fetch")
    first, again = drawing("quadruped-fetch", scenes, GPU), drawing("quadruped-fetch", scenes[::-1].copy(), GPU)
    assert torch.equal(first, again.flip(0)) and torch.equal(first, drawing("quadruped-fetch", scenes, GPU))
    alone = drawing("quadruped-fetch", scenes[:1], GPU)
    assert torch.equal(first[:1], alone)


def test_images_stay_on_the_gpu_on_their_way_to_replay():
    config = Config(env="cheetah-run", render_quality="warp", num_envs=2)
    envs = make_envs(config, 2, GPU)
    try:
        from dreamer_mpc.config.make import make_agent

        agent, replay = make_agent(config, 6, GPU), Replay(1000, 6, streams=2, device=GPU)
        collector = Collector(envs, agent, replay, Counters(), seed=0)
        collector.collect(80, make_planner("policy"))
        images, *_ = envs.step(np.zeros((2, 6), np.float32))
        assert images.device == GPU and collector._image.device == GPU
        np.testing.assert_array_equal(collector._image.cpu().numpy(), replay.newest(np.arange(2)))
        assert images.float().std() > 5
    finally:
        envs.close()


def test_drawing_does_not_wait_for_the_gpu():
    from dreamer_mpc.rendering.renderer import Renderer

    rows = make_vector_env("cheetah-run", 1, workers=False, render_quality="warp")
    scenes, _ = rows.reset(seed=0)
    renderer = Renderer(rows.stage(), 1, 64, GPU)
    rows.close()
    renderer.draw(scenes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        renderer.draw(scenes)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_run_repeats_its_episodes_on_resume(num_envs, tmp_path, monkeypatch):
    stop(monkeypatch, 21)
    plan = [*CHEAP, "--env-steps", "40", "--train.seed-episodes", "2", "--train.updates", "2", "--eval.every", "24"]
    args = [*BRIEF, *plan, "--env", "cheetah-run", "--render-quality", "warp", "--device", "cuda"]
    args += ["--num-envs", num_envs, "--planner", "policy", "--run-dir", tmp_path / "run"]
    assert "stopped at" in train(*args)
    assert "could not be repeated" not in train("--resume", tmp_path / "run")
