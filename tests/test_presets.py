"""Dream-MPC's presets: which one a name means, what runs that exist keep, and that the paper's is what it was."""

import dataclasses
from typing import get_args

import pytest
import torch

from dreamer_mpc.config import Config, config_from_dict, load_presets, planner_from, planner_presets, to_dict, to_yaml
from dreamer_mpc.planners import DreamMPC, PolicyGradMPC
from dreamer_mpc.planners.ascent import Habit
from dreamer_mpc.util.errors import UserError
from tests.support.latent_models import Noisy
from tests.support.planning import PAPER, plan, start

# What a run saved before there were draws, a line search and a policy in the loop.
SAVED = (
    "horizon", "candidates", "iterations", "discount", "objective", "return_lambda", "uncertainty", "scale_penalty",
    "reuse", "latent_noise", "step_size", "grad_clip", "penalty_gradient", "choose_by", "mode_candidate",
)  # fmt: skip


@pytest.mark.parametrize("name", planner_presets())
def test_a_preset_of_a_planner_is_known_by_its_name(name):
    planner = planner_from(Config(), name)
    assert isinstance(planner, DreamMPC) and planner == load_presets(f"default,planner/{name}").dream_mpc
    assert plan(planner, Noisy(), start()).action.shape == (2, 2)


def test_the_default_preset_is_the_default_whatever_a_checkpoint_has():
    mine = dataclasses.replace(Config(), dream_mpc=DreamMPC(horizon=3))
    assert planner_from(mine, "dream-mpc").horizon == 3
    assert planner_from(mine, "dream-mpc-default") == DreamMPC() == load_presets("default").dream_mpc


def test_an_unknown_planner_is_told_of_the_presets():
    with pytest.raises(UserError, match="unknown planner 'dream-mpc-papers'.*and the presets .*dream-mpc-paper, "):
        planner_from(Config(), "dream-mpc-papers")


def test_the_paper_s_preset_is_policy_grad_mpc_with_reuse_and_penalty():
    settings = {key: value for key, value in PAPER.items() if key not in ("reuse", "uncertainty")}
    assert PAPER["reuse"] == PAPER["uncertainty"] == 0.1
    assert dataclasses.asdict(PolicyGradMPC()) == settings | {"reuse": 0.0, "uncertainty": 0.0}


@pytest.mark.parametrize("lacking", ["draws", "mode_candidate", "everything"])
def test_a_run_that_exists_keeps_the_settings_it_was_made_with(lacking, tmp_path):
    """Also from a time before a setting; as a checkpoint's and as a preset."""
    values = to_dict(load_presets("default,planner/dream-mpc-paper"))
    kept = {"draws": SAVED, "mode_candidate": SAVED[:-1], "everything": ()}[lacking]
    values["dream_mpc"] = {key: value for key, value in values["dream_mpc"].items() if key in kept}
    assert dataclasses.asdict(config_from_dict(values, "an old run").dream_mpc) == PAPER
    torn = to_yaml(Config()).split("dream_mpc:")[0]
    (tmp_path / "config.yaml").write_text(torn + "dream_mpc:\n  horizon: 15\n")
    assert dataclasses.asdict(load_presets(str(tmp_path / "config.yaml")).dream_mpc) == PAPER
    (tmp_path / "mine.yaml").write_text("dream_mpc:\n  horizon: 7\n")
    assert load_presets(str(tmp_path / "mine.yaml")).dream_mpc == DreamMPC(horizon=7)


def test_the_released_preset_has_every_habit():
    planner = planner_from(Config(), "dream-mpc-released")
    assert set(planner.habits) == set(get_args(Habit)) and planner.scale_penalty and not planner.penalty_gradient
    torch.manual_seed(0)
    model, first = Noisy(), plan(planner, Noisy(), start())
    assert plan(planner, model, start(), first.memory).memory.actions.shape == (2, 5, 3, 2)
