"""A setting that is given on resume is applied or refused; a remedy that a message names works."""

import dataclasses
import json
import operator
import os
import signal

import pytest

from dreamer_mpc.config import Config, SweepConfig, load_saved
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.runs.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from dreamer_mpc.runs.resume import NEUTRAL
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.training.trainer import Trainer
from tests.support.agents import BRIEF, CHEAP, TINY
from tests.support.commands import records, settings_of, train
from tests.support.stops import stop

RUN = [*CHEAP, "--planner", "policy", "--num-envs", "1"]


def marks(row):
    """The settings that a record of metrics says were changed."""
    assert all(value == 1.0 for key, value in row.items() if key.startswith("changed/"))
    return [key for key in row if key.startswith("changed/")]


@pytest.fixture
def short(tmp_path, monkeypatch):
    """The command of a run whose two seed episodes have 6 frames, and its sequences 8; the third has 51."""
    monkeypatch.setenv("GROWING_ENV_TRIED", str(tmp_path / "tried"))
    args = ["--replay.sequence-length", "8", "--max-env-steps", "50", "--env-steps", "90", "--train.seed-episodes", "2"]
    return [*TINY, *RUN, "--env", "tests.support.growing_env:make", *args, "--run-dir", tmp_path / "run"]


def test_seed_episodes_go_on_until_one_is_as_long_as_a_sequence(short):
    said = train(*short)
    assert "2 seed episodes gave no 8 frames of one episode" in said
    rows = records(short[-1])
    assert [row["env_steps"] for row in rows][:2] == [5 + 5 + 7, 5 + 5 + 7 + 8]
    assert rows[0]["episodes"] == 2 and rows[0]["updates"] == 0 and rows[-1]["updates"] > 0


@pytest.mark.parametrize("remedy", [[], ["--train.seed-episodes", 5], ["--replay.sequence-length", 4]])
def test_a_run_that_failed_at_its_first_update_for_want_of_a_sequence_goes_on(remedy, short, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "holds", lambda *_: True)  # as before seed episodes went on by themselves
        assert "lower --replay.sequence-length to 6 or less" in train(*short, code=2)
    folder = short[-1]
    train("--resume", folder, *remedy)
    checkpoint, rows = load_checkpoint(folder), records(folder)
    assert checkpoint.counters.env_steps >= 90 and checkpoint.counters.updates > 0
    name = remedy[0] if remedy else None
    first = next(row for row in rows if row["updates"])
    assert first["episodes"] >= (5 if name == "--train.seed-episodes" else 2)
    of_training = [row["env_steps"] for row in rows if not marks(row)]
    # On resume the environment is a new one: again two episodes of 5 steps before those of 50.
    after = {None: 10 + 5 + 5 + 7, "--train.seed-episodes": 70, "--replay.sequence-length": 18}[name]
    assert of_training[:2] == [10, after]
    assert [marks(row) for row in rows if marks(row)] == ([[f"changed/{name[2:].replace('-', '_')}"]] if name else [])


def test_seed_episodes_that_are_over_are_refused(tmp_path):
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--run-dir", folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for flag, old, new in (("train.seed-episodes", 1, 3), ("behavior.bootstrap", 0.8, 0.1)):
        said = train("--resume", folder, "--env-steps", 32, f"--{flag}", new, code=2)
        assert f"--{flag} of {folder} is {old} and cannot become {new}" in said and said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_settings_that_change_results_amid_a_run_are_marked_in_its_metrics(tmp_path):
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--eval.every", "8", "--run-dir", folder)
    before = records(folder)
    given = ["--policy.sample", "--train.action-noise", 0.1, "--eval.episodes", 2, "--behavior.discount", 0.9]
    train("--resume", folder, "--env-steps", 32, *given)
    rows = records(folder)
    assert rows[: len(before)] == before and not any(map(marks, before))
    mark, *after = rows[len(before) :]
    names = {"policy.sample", "train.action_noise", "eval.episodes", "behavior.discount"}
    assert set(marks(mark)) == {f"changed/{name}" for name in names} and mark["env_steps"] == 16
    assert set(mark) == {"env_steps", "agent_steps", "updates", "episodes", "time_s", *marks(mark)}
    assert not any(map(marks, after)) and any("eval/return_mean" in row for row in after)
    versions = json.loads((folder / "versions.json").read_text())
    said = {"policy.sample": "False -> True", "train.action_noise": "0.3 -> 0.1", "eval.episodes": "1 -> 2"}
    assert versions["changed"] == {"env_steps": 16, **said, "behavior.discount": "0.99 -> 0.9"}
    assert "changed" not in versions["earlier"][0]
    # Once: the run has them from now on; and the way back is a change too.
    train("--resume", folder, "--env-steps", 48)
    assert [row for row in records(folder) if marks(row)] == [mark]
    train("--resume", folder, "--env-steps", 64, "--policy.no-sample")
    assert [marks(row) for row in records(folder) if marks(row)] == [marks(mark), ["changed/policy.sample"]]


def test_what_a_resume_changes_is_the_run_s_from_its_start_however_soon_it_ends(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--run-dir", folder)
    with monkeypatch.context() as patch:  # killed before anything else is saved
        patch.setattr(Trainer, "_advance", lambda *_: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
        train("--resume", folder, "--env-steps", 24, "--policy.sample", code=130)
    with monkeypatch.context() as patch:
        stop(patch, 1)
        assert "stopped at" in train("--resume", folder, "--seed", 5)
    train("--resume", folder)
    config = load_saved(folder / "config.yaml")
    assert (config.env_steps, config.policy.sample, config.seed) == (24, True, 5)
    assert records(folder)[-1]["env_steps"] == 24
    marked = [marks(row) for row in records(folder) if marks(row)]
    assert marked == [["changed/policy.sample"], ["changed/seed"]], "once each"


@pytest.mark.parametrize(
    "given",
    [
        ["--eval.every", 12, "--eval.beside", "on", "--train.keep-checkpoints", 1, "--replay.storage", "memmap"],
        ["--kernels", "off", "--compile", "off", "--logger", "tensorboard", "--profile", "--eval.video-steps", 3],
    ],
)
def test_settings_that_change_no_result_are_not_marked(given, tmp_path):
    train(*TINY, *RUN, "--run-dir", tmp_path / "run")
    assert "changed from the saved run" in train("--resume", tmp_path / "run", "--env-steps", 32, *given)
    assert not any(map(marks, records(tmp_path / "run")))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_setting_that_changes_no_result_is_one(name):
    operator.attrgetter(name)(Config())


def test_a_complete_run_says_so_where_its_own_device_is_missing(tmp_path):
    """Settings that it had need not be possible here; those that are given must be."""
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--run-dir", folder)
    checkpoint = load_checkpoint(folder)
    elsewhere = dataclasses.replace(checkpoint, config=checkpoint.config | {"device": "cuda:4095"})
    save_checkpoint(find_checkpoint(folder), elsewhere)
    said = train("--resume", folder)
    assert f"{folder} is complete with its 16 env steps" in said and "had no effect" not in said
    assert "no device cuda:4095" in train("--resume", folder, "--eval.episodes", 2, code=2)
    said = train("--resume", folder, "--eval.episodes", 2, "--device", "cpu")
    assert "is complete" in said and "the changed settings had no effect: give them again with it" in said


def test_a_sweep_goes_on_with_the_logger_and_device_that_it_is_given(tmp_path):
    config = SweepConfig(envs="tests.example_env:make", planners="policy", out=str(tmp_path))
    (old,) = list_runs(config, BRIEF)
    old.folder.path.mkdir()
    old.folder.write_config(settings_of(old))
    assert old.command()[3:] == ["--resume", str(old.folder.path), "--env-steps", "16"]
    (new,) = list_runs(config, [*BRIEF, "--logger", "tensorboard", "--device", "cpu", "--profile"])
    changes = ["--device", "cpu", "--logger", "tensorboard", "--profile"]
    assert new.command()[3:] == ["--resume", str(old.folder.path), "--env-steps", "16", *changes]
