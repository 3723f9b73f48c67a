"""Evaluations during training: with their own seed and planner; and keeping the best checkpoint."""

import math

import numpy as np
import pytest
import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.config import Config, load_presets, parse
from dreamer_mpc.envs.rows import LocalVectorEnv
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation, evaluate
from dreamer_mpc.runs.checkpoint import list_checkpoints, load_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.resume import open_run
from dreamer_mpc.training.trainer import Trainer
from tests.support.agents import CHEAP, TINY, same
from tests.support.commands import train
from tests.support.counting_env import CountingEnv

# A seed episode of 10 env steps, then rounds of one update and 20 env steps, each with an evaluation at its end.
SHORT = [
    "--env", "tests.test_train_evaluation:Seeded", "--planner", "policy", "--max-env-steps", "10",
    "--train.every", "20", "--eval.every", "20", "--train.keep-checkpoints", "1",
]  # fmt: skip
QUICK = load_presets("quick")


class Seeded(CountingEnv):
    """Records the seeds of all its resets."""

    seeds: list[int] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Keep environments in this process."""
    monkeypatch.setattr("dreamer_mpc.envs.vector.WorkerVectorEnv", LocalVectorEnv)
    monkeypatch.setattr(Seeded, "seeds", [])


def make_trainer(folder, *args):
    config = parse(Config, [*TINY, *CHEAP, *SHORT, *map(str, args), "--run-dir", str(folder)], QUICK)
    return Trainer(config, RunFolder.create(folder))


@pytest.fixture
def acted(monkeypatch):
    """The planner, the noise and torch's seed of all actions, in training and in evaluation."""
    acts, phase, act = [], ["training"], Dreamer.act

    def evaluating(*args, **kwargs):
        phase[0] = "evaluation"
        result = evaluate(*args, **kwargs)
        phase[0] = "training"
        return result

    def acting(self, planner, carry, image, is_first, action_noise=0.0):
        acts.append((phase[0], planner, action_noise, torch.initial_seed()))
        return act(self, planner, carry, image, is_first, action_noise)

    monkeypatch.setattr("dreamer_mpc.evaluation.player.evaluate", evaluating)
    monkeypatch.setattr(Dreamer, "act", acting)
    return acts


def test_an_evaluation_has_a_seed_of_its_own(tmp_path, acted):
    """Environment and torch seeds of an evaluation differ from the training's and are equal in every evaluation."""
    args = ["--seed", 3, "--eval.seed", 700, "--eval.episodes", 3, "--eval.num-envs", 2, "--env-steps", 50]
    make_trainer(tmp_path, *args).run()
    assert {(phase, seed) for phase, _, _, seed in acted} == {("evaluation", 700), ("training", 3)}
    given = [seed for seed in Seeded.seeds if seed is not None and seed < 1000]  # training seeds have 31 bits
    assert given[:3] == [700, 701, 702]
    assert given == given[: len(given) // 2] * 2, "the second evaluation is played like the first"


def test_a_training_s_seed_does_not_reach_an_evaluation_nor_the_other_way_round(tmp_path):
    def seeds_of(folder, seed, eval_seed):
        Seeded.seeds.clear()
        make_trainer(folder, "--seed", seed, "--eval.seed", eval_seed, "--env-steps", 30).run()
        given = [number for number in Seeded.seeds if number is not None]
        ours = [number - eval_seed for number in given if number < 1000]
        return [number for number in given if number >= 1000], ours

    training, evaluation = seeds_of(tmp_path / "a", 3, 700)
    assert evaluation[0] == 0 and len(training) > 2
    assert seeds_of(tmp_path / "b", 3, 800) == (training, evaluation)
    other, same_evaluation = seeds_of(tmp_path / "c", 4, 700)
    assert same_evaluation == evaluation and not set(training) & set(other)


def evaluations(returns, monkeypatch):
    """Each evaluation gives the next of `returns`; env steps and weights of each are recorded."""
    left, evaluated = iter(returns), []

    def fake(agent, *_, **__):
        evaluated.append({name: weight.clone() for name, weight in agent.model.state_dict().items()})
        return Evaluation(np.array([float(next(left))]), [1], 1.0, 1, 0, EpisodeRecording())

    monkeypatch.setattr("dreamer_mpc.evaluation.player.evaluate", fake)
    return evaluated


def best_of(folder):
    checkpoint = load_checkpoint(folder / "checkpoints" / "best.safetensors")
    return checkpoint.counters.env_steps, checkpoint.agent["model"]


@pytest.mark.parametrize(
    "returns, best",
    [
        ([1, 3, 2], 1),
        ([3, 1, 2], 0),
        ([1, 2, 3], 2),
        ([-1, -3, -2], 0),
        ([2, 2, 1], 0),  # the first one of equal returns
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
    assert load_checkpoint(last).training["best_return"] == returns[best]


@pytest.mark.parametrize("later, best", [([2, 2.5], 50), ([2, 4], 90), ([3, 3], 50), ([4, 5], 90), ([5, 4], 70)])
def test_a_resumed_run_remembers_its_best(later, best, tmp_path, monkeypatch):
    evaluations([1, 3], monkeypatch)
    trainer = make_trainer(tmp_path, "--env-steps", 50)
    trainer.run()
    assert best_of(tmp_path)[0] == 50
    evaluations(later, monkeypatch)
    config = parse(Config, ["--env-steps", "90", "--resume", str(tmp_path)], trainer.config)
    Trainer(config, RunFolder(tmp_path), open_run(str(tmp_path)).checkpoint).run()
    assert best_of(tmp_path)[0] == best


@pytest.mark.parametrize("training, evaluation", [("cem", "dream-mpc"), ("dream-mpc", "cem")])
def test_one_planner_trains_and_another_one_evaluates(training, evaluation, tmp_path, acted):
    trainer = make_trainer(tmp_path, "--train-planner", training, "--planner", evaluation, "--env-steps", 30)
    trainer.run()
    planners = {"cem": trainer.config.cem, "dream-mpc": trainer.config.dream_mpc}
    found = {(phase, planner) for phase, planner, *_ in acted}
    assert found == {("training", planners[training]), ("evaluation", planners[evaluation])}


def test_noise_is_for_the_training_alone(tmp_path, acted):
    make_trainer(tmp_path, "--train.action-noise", 0.37, "--env-steps", 30).run()
    assert {(phase, noise) for phase, _, noise, _ in acted} == {("training", 0.37), ("evaluation", 0.0)}


def test_what_is_drawn_from_replay_depends_on_the_training_s_seed(tmp_path):
    def drawn(folder, seed):
        trainer = make_trainer(folder, "--seed", seed, "--env-steps", 30)
        trainer.run()
        return trainer.replay.sample(50, 4).index

    first = drawn(tmp_path / "a", 3)
    assert torch.equal(first, drawn(tmp_path / "b", 3))
    assert not torch.equal(first, drawn(tmp_path / "c", 4))


def test_evaluations_that_last_say_which_planner_and_episode_is_played(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer_mpc.evaluation.progress.LINE_EVERY_S", 0.0)
    args = [*TINY, *CHEAP, "--num-envs", "1", "--planner", "dream-mpc", "--eval.episodes", "2"]
    lines = train(*args, "--run-dir", tmp_path / "run").splitlines()
    second = "evaluating {}: episode 2 of 2, step 9 of the evaluation"  # an episode has 8 steps
    assert lines.count(second.format("dream-mpc")) == 1
    then = lines.index("evaluating the bare policy on the same 2 episodes")
    assert lines.index(second.format("dream-mpc")) < then < lines.index(second.format("policy"))
