"""A setting that is given on resume is applied or refused; a remedy that a message names works."""

import dataclasses

import pytest

from dreamer_mpc.config import SweepConfig
from dreamer_mpc.runs.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from dreamer_mpc.sweeps.runs import list_runs
from tests.support.agents import BRIEF, CHEAP, TINY
from tests.support.commands import records, settings_of, train

RUN = [*CHEAP, "--planner", "policy", "--num-envs", "1"]


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A run whose seed episodes are shorter than a sequence: it failed at its first update."""
    monkeypatch.setenv("GROWING_ENV_TRIED", str(tmp_path / "tried"))
    args = ["--replay.sequence-length", "8", "--max-env-steps", "50", "--env-steps", "90", "--train.seed-episodes", "2"]
    folder, env = tmp_path / "run", ["--env", "tests.support.growing_env:make"]
    said = train(*TINY, *RUN, *env, *args, "--run-dir", folder, code=2)
    assert "lower --replay.sequence-length to 6 or less" in said
    return folder


@pytest.mark.parametrize("remedy", [["--train.seed-episodes", 5], ["--replay.sequence-length", 4]])
def test_shorter_sequences_and_more_seed_episodes_work_on_resume(remedy, short):
    train("--resume", short, *remedy)
    checkpoint, rows = load_checkpoint(short), records(short)
    assert checkpoint.counters.env_steps >= 90 and checkpoint.counters.updates > 0
    more = remedy[0] == "--train.seed-episodes"
    first = next(row for row in rows if row["updates"])
    assert first["episodes"] >= (5 if more else 2)
    assert [row["env_steps"] for row in rows[:2]] == ([10, 70] if more else [10, 18])


def test_seed_episodes_that_are_over_are_refused(tmp_path):
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--run-dir", folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for flag, old, new in (("train.seed-episodes", 1, 3), ("behavior.bootstrap", 0.8, 0.1)):
        said = train("--resume", folder, "--env-steps", 32, f"--{flag}", new, code=2)
        assert f"--{flag} of {folder} is {old} and cannot become {new}" in said and said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_complete_run_says_so_where_its_own_device_is_missing(tmp_path):
    """Settings that it had need not be possible here; those that are given must be."""
    folder = tmp_path / "run"
    train(*TINY, *RUN, "--run-dir", folder)
    checkpoint = load_checkpoint(folder)
    elsewhere = dataclasses.replace(checkpoint, config=checkpoint.config | {"device": "cuda:4095"})
    save_checkpoint(find_checkpoint(folder), elsewhere)
    assert f"{folder} is complete with its 16 env steps" in train("--resume", folder)
    assert "no device cuda:4095" in train("--resume", folder, "--eval.episodes", 2, code=2)
    assert "is complete" in train("--resume", folder, "--eval.episodes", 2, "--device", "cpu")


def test_a_sweep_goes_on_with_the_logger_and_device_that_it_is_given(tmp_path):
    config = SweepConfig(envs="tests.example_env:make", planners="policy", out=str(tmp_path))
    (old,) = list_runs(config, BRIEF)
    old.folder.path.mkdir()
    old.folder.write_config(settings_of(old))
    assert old.command()[3:] == ["--resume", str(old.folder.path), "--env-steps", "16"]
    (new,) = list_runs(config, [*BRIEF, "--logger", "tensorboard", "--device", "cpu", "--profile"])
    changes = ["--device", "cpu", "--logger", "tensorboard", "--profile"]
    assert new.command()[3:] == ["--resume", str(old.folder.path), "--env-steps", "16", *changes]
