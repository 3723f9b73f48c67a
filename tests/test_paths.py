"""A path is a path, whatever its letters: commas, =, ~, spaces, colons, bytes that are no text."""

import os
import shlex
import subprocess
import sys

import pytest

from dreamer_mpc.config import load_presets, load_saved
from dreamer_mpc.report.curves import gather
from dreamer_mpc.runs.checkpoint import find_checkpoint, load_checkpoint
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import user_path
from tests.support.agents import CHEAP, TINY
from tests.support.commands import ROOT, quietly, train

RUN = [
    *TINY, *CHEAP, "--env-steps", "32", "--train.seed-episodes", "2", "--train.updates", "2", "--eval.every", "100",
    "--num-envs", "1", "--planner", "policy",
]  # fmt: skip
NAME = "lr=1e-3,seed=0 a:b's"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run in a folder with an odd name, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / NAME
    return folder, train(*RUN, "--eval.video", "--run-dir", folder)


def test_the_commands_that_a_run_prints_name_its_folder(odd):
    folder, output = odd
    (line,) = (line for line in output.splitlines() if line.startswith("compare:"))
    assert shlex.split(line)[-1] == str(folder)
    assert [path.suffix for path in (folder / "videos").glob("*.mp4")] == [".mp4"]


def test_a_run_is_resumed_and_gathered_whatever_the_name_of_its_folder(odd, tmp_path):
    folder, _ = odd
    assert "is complete with its" in train("--resume", folder)
    assert [curve.method for curve in gather([str(folder)])] == ["dreamer"]
    assert [curve.method for curve in gather([f"mine={folder}"])] == ["mine"]
    done = quietly("plot", tmp_path / "a, b=c", "--runs", f"mine={folder}")
    assert done.code == 0, done.err
    assert load_saved(folder / "config.yaml") == load_presets(str(folder / "config.yaml"))
    assert load_presets(f"quick,{folder / 'config.yaml'},planner/dream-mpc-paper").seed == 0


def test_a_folder_that_does_not_exist_is_named_as_it_was_given(tmp_path):
    with pytest.raises(UserError, match="no: name a folder|no is no run folder"):
        gather([f"a={tmp_path}/b=no"])


@pytest.mark.parametrize("command", ["plot", "sweep", "eval"])
def test_the_home_folder_behind_an_equals_sign(command, odd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(odd[0])
    args = {
        "plot": ["~/out", "--runs", "mine=~/run"],
        "eval": ["--checkpoint=~/run", "--planner", "policy", "--episodes", "1", "--num-envs", "1", "--out=~/out"],
        "sweep": ["--out=~/out", "--envs", "nothing:here", "--restarts", "0"],
    }[command]
    done = quietly(command, *args)
    assert done.code == (1 if command == "sweep" else 0), done.err
    assert (tmp_path / "out").is_dir() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("path", ["~nosuchuser/x", "a" * 300])
def test_a_path_that_cannot_be_is_one_line(path):
    with pytest.raises(UserError, match="nosuchuser|aaa"):
        user_path(path)
    for args in (["--run-dir", path], ["--resume", path], ["eval", "--checkpoint", path], ["plot", path]):
        done = quietly(*args) if args[0] != "--run-dir" else quietly(*RUN, *args)
        assert done.code == 2 and done.err.count("\n") == 1, done.err


def test_bytes_that_are_no_text_in_the_c_locale(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xe9 run"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    played = ["compare", "--planners", "policy", "--episodes", "1", "--num-envs", "1", "--checkpoint", folder]
    for args in ([*RUN, "--run-dir", folder], played, played):
        full = [sys.executable, "run.py", *args]
        done = subprocess.run(full, cwd=ROOT, env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert load_checkpoint(find_checkpoint(os.fsdecode(folder))).counters.env_steps == 32
