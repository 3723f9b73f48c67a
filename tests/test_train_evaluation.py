"""Evaluations within a training: under a seed and a planner of their own, and the best checkpoint is kept."""

import math

import numpy as np
import pytest
import torch

from dreamer_mpc.agent import Dreamer
from dreamer_mpc.checkpoint import list_checkpoints, load_checkpoint
from dreamer_mpc.config import Config, load_presets, parse
from dreamer_mpc.evaluate import Evaluation, Trace, evaluate
from dreamer_mpc.resume import open_run
from dreamer_mpc.run_folder import RunFolder
from dreamer_mpc.train import Trainer
from envs.rows import LocalVectorEnv
from tests.counting_env import CountingEnv
from tests.test_agent import one_thread, same  # noqa: F401
from tests.test_cli import CHEAP, TINY

# A seed episode of 10 env steps, then rounds of an update and 20 env steps, each with an evaluation at its end.
SHORT = [
    "--env", "tests.test_train_evaluation:Seeded", "--planner", "policy", "--max-env-steps", "10",
    "--train.every", "20", "--eval.every", "20", "--train.keep-checkpoints", "1",
]  # fmt: skip


class Seeded(CountingEnv):
    """Notes the seeds of all its resets."""

    seeds: list[int] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Environments stay in this process."""
    monkeypatch.setattr("envs.vector.WorkerVectorEnv", LocalVectorEnv)
    monkeypatch.setattr(Seeded, "seeds", [])


def make_trainer(folder, *args):
    config = parse(Config, [*TINY, *CHEAP, *SHORT, *map(str, args), "--run-dir", str(folder)], load_presets("quick"))
    return Trainer(config, RunFolder.create(folder))


def test_an_evaluation_has_a_seed_of_its_own(tmp_path, monkeypatch):
    """Its environments' and torch's; both differ from the training's, and are the same in each evaluation."""
    seeds, draws = [], {"evaluation": set(), "training": set()}
    phase, act = ["training"], Dreamer.act

    def noting(*args, **kwargs):
        phase[0], before = "evaluation", len(Seeded.seeds)
        result = evaluate(*args, **kwargs)
        phase[0] = "training"
        seeds.append(Seeded.seeds[before:])
        return result

    monkeypatch.setattr("dreamer_mpc.train.evaluate", noting)
    monkeypatch.setattr(Dreamer, "act", lambda *args: draws[phase[0]].add(torch.initial_seed()) or act(*args))
    args = ["--seed", 3, "--eval.seed", 700, "--eval.episodes", 3, "--eval.num-envs", 2, "--env-steps", 50]
    make_trainer(tmp_path, *args).run()
    assert len(seeds) == 2
    for given in seeds:
        assert given[:3] == [700, 701, 702]
    assert draws == {"evaluation": {700}, "training": {3}}


def test_a_training_s_seed_does_not_reach_an_evaluation_nor_the_other_way_round(tmp_path):
    def seeds_of(folder, seed, eval_seed):
        Seeded.seeds.clear()
        make_trainer(folder, "--seed", seed, "--eval.seed", eval_seed, "--env-steps", 30).run()
        given = [number for number in Seeded.seeds if number is not None]
        ours = [number - eval_seed for number in given if number < 1000]  # a training draws from all of 31 bits
        return [number for number in given if number >= 1000], ours

    training, evaluation = seeds_of(tmp_path / "a", 3, 700)
    assert evaluation[0] == 0 and len(training) > 2
    assert seeds_of(tmp_path / "b", 3, 800) == (training, evaluation)
    other, same_evaluation = seeds_of(tmp_path / "c", 4, 700)
    assert same_evaluation == evaluation and not set(training) & set(other)


def evaluations(returns, monkeypatch):
    """Each evaluation gives the next of `returns`; what was evaluated is kept: env steps and weights."""
    left, evaluated = iter(returns), []

    def fake(agent, *_, **__):
        evaluated.append({name: weight.clone() for name, weight in agent.model.state_dict().items()})
        return Evaluation(np.array([float(next(left))]), [1], 0.0, 1, 0, Trace())

    monkeypatch.setattr("dreamer_mpc.train.evaluate", fake)
    return evaluated


def best_of(folder):
    payload = load_checkpoint(folder / "checkpoints" / "best.safetensors")
    return payload["counters"]["env_steps"], payload["agent"]["model"]


@pytest.mark.parametrize(
    "returns, best",
    [
        ([1, 3, 2], 1),
        ([3, 1, 2], 0),
        ([1, 2, 3], 2),
        ([-1, -3, -2], 0),
        ([2, 2, 1], 0),  # the first one of equals
        ([1, 2, 2], 1),
        ([math.nan, 1, 2], 2),
        ([1, math.nan, 0], 0),
    ],
)
def test_the_best_evaluation_s_checkpoint_is_kept(returns, best, tmp_path, monkeypatch):
    evaluated = evaluations(returns, monkeypatch)
    make_trainer(tmp_path, "--env-steps", 70).run()
    env_steps, weights = best_of(tmp_path)
    assert env_steps == [30, 50, 70][best]
    assert same(weights, evaluated[best]), "what was evaluated"
    [last] = list_checkpoints(tmp_path / "checkpoints")
    assert load_checkpoint(last)["training"]["best_return"] == returns[best]


@pytest.mark.parametrize("later, best", [([2, 2.5], 50), ([2, 4], 90), ([3, 3], 50), ([4, 5], 90), ([5, 4], 70)])
def test_a_resumed_run_remembers_its_best(later, best, tmp_path, monkeypatch):
    evaluations([1, 3], monkeypatch)
    trainer = make_trainer(tmp_path, "--env-steps", 50)
    trainer.run()
    assert best_of(tmp_path)[0] == 50
    evaluations(later, monkeypatch)
    config = parse(Config, ["--env-steps", "90", "--resume", str(tmp_path)], trainer.config)
    Trainer(config, RunFolder(tmp_path), open_run(str(tmp_path)).payload).run()
    assert best_of(tmp_path)[0] == best


@pytest.mark.parametrize("training, evaluation", [("cem", "dream-mpc"), ("dream-mpc", "cem")])
def test_one_planner_trains_and_another_one_evaluates(training, evaluation, tmp_path, monkeypatch):
    acted, act, phase = set(), Dreamer.act, ["training"]

    def noting(*args, **kwargs):
        phase[0] = "evaluation"
        result = evaluate(*args, **kwargs)
        phase[0] = "training"
        return result

    def noted(self, planner, *rest):
        acted.add((phase[0], planner))
        return act(self, planner, *rest)

    monkeypatch.setattr("dreamer_mpc.train.evaluate", noting)
    monkeypatch.setattr(Dreamer, "act", noted)
    args = ["--train-planner", training, "--planner", evaluation, "--env-steps", 30]
    trainer = make_trainer(tmp_path, *args)
    trainer.run()
    planners = {"cem": trainer.config.cem, "dream-mpc": trainer.config.dream_mpc}
    assert acted == {("training", planners[training]), ("evaluation", planners[evaluation])}
