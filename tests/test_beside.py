"""Evaluations beside training: the same results as without, whatever becomes of the process that plays them."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

import dreamer_mpc.training.checkpoints
from dreamer_mpc.config import Config, SweepConfig, config_from_dict, load_presets, parse, to_dict
from dreamer_mpc.report.curves import gather
from dreamer_mpc.runs.checkpoint import load_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import Logger
from dreamer_mpc.sweeps.run import Standing
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.training.beside import Evaluator, plays_beside
from dreamer_mpc.training.trainer import Trainer
from scripts.soak import TIMES, flatten, same
from tests.support.agents import BRIEF, CHEAP
from tests.support.beside_env import VARIABLE
from tests.support.commands import ROOT, counters, records, train

# A seed episode of 8 steps, rounds of 8 env steps and an update; evaluations at 24, 48 and 56 env steps.
RUN = [
    "--env", "tests.support.beside_env:make", *BRIEF, *CHEAP, "--env-steps", "56", "--eval.every", "24",
    "--train.keep-checkpoints", "1", "--train-planner", "policy", "--planner", "dream-mpc",
]  # fmt: skip
VIDEO = ["--eval.video", "--eval.video-steps", "4"]


@pytest.fixture
def steer(tmp_path, monkeypatch):
    """The folder by which evaluations beside training are steered."""
    folder = tmp_path / "steer"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


@pytest.fixture
def forked(monkeypatch):
    """Fork the process instead of starting Python again, which takes seconds."""
    monkeypatch.setattr("envs.processes.SPAWN", multiprocessing.get_context("fork"))


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """A run whose training waits for each evaluation."""
    folder = tmp_path_factory.mktemp("off") / "run"
    train(*RUN, *VIDEO, "--run-dir", folder)
    return folder


@pytest.fixture
def amid_evaluation(steer, monkeypatch):
    """Hold the first evaluation beside training, and at its first step, in the next action of the run, call a function.

    The function is given the evaluator.
    """
    advance, called = Trainer._advance, []

    def until(function):
        (steer / "hold-step").touch()

        def advanced(self, due):
            if self.schedule.evaluating and not called:
                wait_for(lambda: list(steer.glob("step-*")))
                called.append(function(self.evaluator))
            advance(self, due)

        monkeypatch.setattr(Trainer, "_advance", advanced)

    return until


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_run(folder, reference):
    """Equal metrics but for their order, weights, replay and generators; and the same best checkpoint."""
    key = lambda row: (row["env_steps"], "eval/return_mean" in row)  # noqa: E731
    a, b = ([{k: v for k, v in row.items() if k not in TIMES} for row in records(x)] for x in (folder, reference))
    assert sorted(a, key=key) == b
    for name in ("best", "checkpoint-00000056"):
        a, b = (load_checkpoint(x / "checkpoints" / f"{name}.safetensors") for x in (folder, reference))
        assert a.counters == b.counters
        a, b = (flatten([x.agent, x.collector, x.replay, x.random["torch"], x.training]) for x in (a, b))
        assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# the same run


def test_a_run_is_the_same_though_its_training_is_always_faster_than_its_evaluations(
    sequential, steer, tmp_path, monkeypatch
):
    """Each evaluation begins after training has gone on to the next one, and has replaced the checkpoint's own file."""
    begin, result = Evaluator.begin, Evaluator.result

    def held(self, *args):
        for call in ("factory", "step"):
            (steer / f"hold-{call}").touch()
        begin(self, *args)

    def released(self, wait=False):
        if wait:
            for file in steer.glob("hold-*"):
                file.unlink()
        return result(self, wait)

    off, on = sequential, tmp_path / "on"
    monkeypatch.setattr(Evaluator, "begin", held)
    monkeypatch.setattr(Evaluator, "result", released)
    said = train(*RUN, "--eval.beside", "on", "--train.checkpoint-seconds", 0, "--run-dir", on)
    assert_same_run(on, off)
    assert files(on) == files(off), "no snapshot is left"
    rows = [(row["env_steps"], "eval/return_mean" in row) for row in records(on)]
    assert rows == [(n, False) for n in (8, 16, 24, 32, 40, 48)] + [(24, True), (56, False), (48, True), (56, True)]
    lines = [line.split(",")[0] for line in said.splitlines() if "waiting" in line]
    assert lines == ["waiting for the evaluation", "waiting for the evaluation", "waiting for the last evaluation"]
    assert said.index("evaluation at 24") < said.index("checkpoint-00000048") < said.index("evaluation at 48")
    assert said.count("training waited") == 4 and "3 evaluations beside training took" in said
    (curve,) = gather([str(on)])
    assert curve.env_steps.tolist() == [24, 48, 56], "readers of metrics cope with the order"


def files(folder):
    """All but videos, and replay, whose number of files depends on when checkpoints are written."""
    return {path.relative_to(folder) for path in folder.iterdir() if path.name != "videos"} | {
        path.name for path in (folder / "checkpoints").iterdir()
    }


def test_a_sweep_does_not_take_a_late_evaluation_for_a_step_back_nor_for_the_end(tmp_path):
    (run,) = list_runs(SweepConfig(envs="tests.example_env:make", planners="policy", out=str(tmp_path)), RUN[2:-4])
    run.folder.path.mkdir()
    rows = [(40, 8.0, None), (48, 9.0, None), (24, 9.5, 1.0), (56, 10.0, None), (48, 10.5, 2.0), (56, 11.0, 3.0)]
    lines = [{"env_steps": n, "time_s": s} | ({"eval/return_mean": r} if r else {}) for n, s, r in rows]
    standing = Standing(run)
    for number, finished in ((5, False), (6, True)):
        run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines[:number]))
        standing.read()
        assert (standing.env_steps, standing.finished) == (56, finished)
    assert standing.eval_return == 3.0 and standing.env_steps_per_s == 16 / 3


def test_a_logger_is_cut_behind_the_furthest_record(tmp_path, monkeypatch):
    cut = []
    monkeypatch.setattr("dreamer_mpc.runs.logger._None.truncate", lambda _, env_steps: cut.append(env_steps))
    with Logger(RunFolder(tmp_path)) as logger:
        for env_steps, metrics in ((24, {}), (48, {}), (24, {"eval/return_mean": 1.0}), (56, {})):
            logger.write(counters(env_steps), metrics)
        logger.truncate(3)
    assert cut == [48]


# the process fails


def kill_it(evaluator):
    os.kill(evaluator.beside.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "how, words",
    [
        ("killed", "died (killed by SIGKILL; if memory ran out: --eval.beside off)"),
        ("no paint", "failed (tests.support.beside_env:make: step() raised ValueError: no paint"),
        ("memory", "ran out of memory (--eval.beside off starts none)"),
    ],
)
def test_without_its_process_a_run_plays_its_evaluations_itself(
    how, words, amid_evaluation, forked, sequential, steer, tmp_path
):
    def fail(evaluator):
        if how == "killed":
            return kill_it(evaluator)
        (steer / "fail").write_text(how)
        (steer / "hold-step").unlink()

    amid_evaluation(fail)
    said = train(*RUN, "--eval.beside", "on", "--run-dir", tmp_path / "run")
    (line,) = [line for line in said.splitlines() if line.startswith("the process of evaluations")]
    assert words in line and line.endswith("from this one on, training waits for each")
    assert_same_run(tmp_path / "run", sequential)


def test_without_room_for_a_snapshot_an_evaluation_is_played_at_once(forked, sequential, steer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dreamer_mpc.training.checkpoints, "keep_snapshot", full)
    said = train(*RUN, "--eval.beside", "on", "--run-dir", tmp_path / "run")
    assert said.count("no snapshot for an evaluation beside training (No space left on device)") == 3
    assert_same_run(tmp_path / "run", sequential)


# the run stops


def test_an_evaluation_that_a_stop_did_not_wait_for_is_played_on_resume(
    amid_evaluation, forked, sequential, steer, tmp_path, monkeypatch
):
    process = []

    def stop(evaluator):
        process.append(evaluator.beside.pid)
        os.kill(os.getpid(), signal.SIGTERM)

    amid_evaluation(stop)
    folder = tmp_path / "run"
    said = train(*RUN, "--eval.beside", "on", "--run-dir", folder)
    monkeypatch.undo()
    assert "stopped at 24 env steps" in said and "evaluation at" not in said and gone(process[0])
    checkpoint = load_checkpoint(folder)
    assert checkpoint.training["evaluating"] == {"env_steps": 24, "agent_steps": 24, "updates": 2, "episodes": 3}
    assert checkpoint.counters.updates == 3, "what is resumed has learned since"
    (steer / "hold-step").unlink()
    monkeypatch.setenv(VARIABLE, str(steer))
    for beside in ("on", "off"):
        again = shutil.copytree(folder, tmp_path / beside)
        monkeypatch.setattr("envs.processes.SPAWN", multiprocessing.get_context("fork"))
        train("--resume", again, *VIDEO, "--eval.beside", beside)
        assert_same_run(again, sequential)
        for path in (sequential / "videos").iterdir():
            assert (again / "videos" / path.name).read_bytes() == path.read_bytes(), path
    snapshot = next((folder / "checkpoints").glob("evaluating-*"))
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    assert "the evaluation at 24 env steps is left out" in train("--resume", folder, "--eval.beside", "off")
    assert [row["env_steps"] for row in records(folder) if "eval/return_mean" in row] == [48, 56]


def test_no_process_outlives_a_run_that_is_killed(steer, tmp_path):
    (steer / "hold-step").touch()
    args = ["--eval.beside", "on", "--eval.episodes", 2, "--eval.num-envs", 2, "--run-dir", tmp_path / "run"]
    command = [sys.executable, "run.py", *RUN, *map(str, args)]
    process, started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), []
    try:
        wait_for(lambda: len(list(steer.glob("step-*"))) == 2 or process.poll() is not None, 120)
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        workers = {int(path.name.partition("-")[2]) for path in steer.glob("step-*")}
        assert len(workers) == 2 and workers < {child.pid for child in started}, "it has workers of its own"
        wait_for(lambda: all(gone(child.pid) for child in started), 30)
    finally:
        process.kill()
        process.wait()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


# the setting


@pytest.mark.parametrize(
    "device, num_envs, said, beside",
    [
        ("cuda", 8, "auto", True), ("cuda", 1, "auto", False), ("cpu", 8, "auto", False), ("cuda", 8, "off", False),
        ("cpu", 1, "on", True),
    ],
)  # fmt: skip
def test_evaluations_are_beside_training_where_a_gpu_trains_with_several_environments(device, num_envs, said, beside):
    config = parse(Config, ["--num-envs", str(num_envs), "--eval.beside", said], load_presets("default"))
    assert plays_beside(config, torch.device(device)) == beside


def test_a_run_that_was_saved_before_the_setting_goes_on_without():
    saved = to_dict(load_presets("default"))
    saved["eval"]["beside"] = "auto"
    assert config_from_dict(saved, "now").eval.beside == "auto"
    del saved["eval"]["beside"]
    assert config_from_dict(saved, "before").eval.beside == "off"
