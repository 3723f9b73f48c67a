"""Dream-MPC's presets: which one a name means, what runs that exist keep, and that the paper's is what it was."""

import dataclasses
from typing import get_args

import pytest
import torch

import run
from dreamer_mpc.config import (
    CompareConfig,
    Config,
    config_from_dict,
    load_presets,
    planner_from,
    planner_presets,
    to_dict,
    to_yaml,
)
from dreamer_mpc.evaluation.compare import swept
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


@pytest.mark.parametrize("name", planner_presets())
def test_a_preset_plans_with_the_discount_of_the_agent(name):
    """Values of v3 are learned with 0.997; a planner that discounts otherwise adds up what does not belong together."""
    assert planner_from(load_presets("v3"), name).discount == 0.997
    assert planner_from(Config(), name).discount == 0.99


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


def test_values_of_a_setting_that_has_several_are_joined_by_a_plus():
    planners = swept(CompareConfig(checkpoint=("x",)), "dream-mpc-paper.line-search=none,0.1,0.3+0.1:habits=clip+wide")
    lengths = {"none": (), "0.1": (0.1,), "0.3+0.1": (0.3, 0.1)}
    assert [*planners] == [f"dream-mpc-paper line_search={words} habits=clip+wide" for words in lengths]
    assert [planner.line_search for planner in planners.values()] == [*lengths.values()]
    assert {planner.habits for planner in planners.values()} == {("clip", "wide")} and len(set(planners.values())) == 3


def test_a_value_in_a_list_that_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^dream-mpc.line_search=a\+b: A value could not be converted to Float$"):
        swept(CompareConfig(checkpoint=("x",)), "dream-mpc.line-search=a+b")
    (tmp_path / "mine.yaml").write_text("dream_mpc:\n  line_search: [far]\n")
    with pytest.raises(UserError, match=r"yaml: dream_mpc.line_search: A value could not be converted to Float"):
        load_presets(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("flag", ["planner", "train-planner"])
def test_a_preset_is_no_planner_to_train_with(flag, capsys):
    assert run.main([f"--{flag}", "dream-mpc-paper"]) == 2
    words = f"dream-mpc-paper is a preset: train with --{flag} dream-mpc --config default,planner/dream-mpc-paper"
    assert capsys.readouterr().err == f"error: {words}\n"
