"""A run that is stopped, killed or refused by the disk, and resumed, against the one that was not: bit for bit."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import run
from dreamer_mpc.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from dreamer_mpc.train import Trainer
from envs import EnvError
from tests.counting_env import CountingEnv
from tests.test_cli import CHEAP, ROOT, TINY, records

# Two seed episodes of 8 steps, rounds of 8 env steps and 3 updates, an evaluation each 24.
BASE = [
    *TINY, *CHEAP, "--env-steps", "56", "--train.seed-episodes", "2", "--train.updates", "3", "--eval.every", "24",
]  # fmt: skip
KINDS = {
    "sequential, dream-mpc": ["--num-envs", "1", "--planner", "dream-mpc"],
    "interleaved, dream-mpc": ["--num-envs", "2", "--planner", "dream-mpc"],
    "sequential, PlaNet by cem": ["--num-envs", "1", "--planner", "cem"],
}
TIMES = re.compile(r"time_s|eval/ms_per_action")


def train(*args, code=0):
    """`run.py train` in this process; what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert run.main([*map(str, args)]) == code, out.getvalue() + err.getvalue()
    return out.getvalue() + err.getvalue()


def metrics(folder):
    return [{key: value for key, value in row.items() if not TIMES.match(key)} for row in records(folder)]


def flat(value, name=""):
    """Every leaf of nested dicts and lists, by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, item in items for path, leaf in flat(item, f"{name}/{key}").items()}
    return {name: value}


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(folder, reference):
    assert metrics(folder) == metrics(reference)
    a, b = (flat(load_checkpoint(x)) for x in (folder, reference))
    # Names of folders; in how many files frames were written; beartype, in tests alone, draws from Python's generator.
    skipped = ("/config/", "/replay_files", "/replay_needs", "/random/python")
    names = [name for name in b if not name.startswith(skipped)]
    assert {name for name in a if not name.startswith(skipped)} == set(names)
    assert [name for name in names if not same(a[name], b[name])] == []
    assert any("optimizers" in name for name in names) and "/random/torch" in names


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Other sums are rounded otherwise; and small ones are faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    """Arguments of a run, and the folder of one that was never stopped."""
    args = [*BASE, *KINDS[request.param]]
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(*args, "--run-dir", folder)
    return args, folder


@pytest.fixture
def stop_at(monkeypatch):
    """Call with n: the n-th update, step or evaluation from then on is interrupted by SIGTERM."""

    def at(number, send=signal.SIGTERM):
        calls, advance = itertools.count(1), Trainer._advance

        def counted(self):
            if next(calls) == number:
                os.kill(os.getpid(), send)
            advance(self)

        monkeypatch.setattr(Trainer, "_advance", counted)

    yield at
    monkeypatch.undo()


# Of some 60 units of the sequential run, the first 16 are the seed episodes'; rounds are 3 updates and 8 steps.
@pytest.mark.parametrize("number", [1, 5, 16, 18, 23, 41])
def test_a_run_stopped_anywhere_and_resumed_is_the_one_that_was_not(number, kind, stop_at, tmp_path, monkeypatch):
    args, reference = kind
    stop_at(number)
    output = train(*args, "--run-dir", tmp_path / "run")
    assert re.search(r"stopped at \d+ env steps; go on with: python run.py --resume \S+/run\n$", output), output
    monkeypatch.undo()
    train("--resume", tmp_path / "run")
    assert_same_run(tmp_path / "run", reference)


def test_a_run_stopped_at_every_turn_is_the_one_that_was_not(kind, stop_at, tmp_path):
    args, reference = kind
    stop_at(3)
    train(*args, "--run-dir", tmp_path / "run")
    stops = 1
    while True:
        stop_at(5)
        stops += 1
        if "stopped at" not in train("--resume", tmp_path / "run"):
            break
    assert stops > 5
    assert_same_run(tmp_path / "run", reference)
