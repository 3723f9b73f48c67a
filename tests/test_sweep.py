"""Sweeps: the list of runs; starting, restarting and stopping them."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import run
from dreamer_mpc.config import SweepConfig
from dreamer_mpc.runs.checkpoint import list_checkpoints
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.sweeps.launcher import End, Launcher
from dreamer_mpc.sweeps.local import LocalLauncher
from dreamer_mpc.sweeps.run import Run, Standing
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.sweeps.sweep import Sweep
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.stop import Stop, Stopped
from tests.support.agents import BRIEF
from tests.support.commands import ROOT, records, settings_of


def sweep_of(folder, *rest, **settings):
    config = SweepConfig(envs="tests.example_env:make", out=str(folder), **settings)
    return list_runs(config, [*BRIEF, *rest])


def write_metrics(entry_run, *env_steps, evaluated=False):
    entry_run.folder.path.mkdir(parents=True, exist_ok=True)
    entry_run.folder.write_config(settings_of(entry_run))
    lines = [{"env_steps": n, "time_s": i, "train/return": float(n)} for i, n in enumerate(env_steps)]
    if evaluated:
        lines.append({"env_steps": env_steps[-1], "time_s": len(env_steps), "eval/return_mean": 7.0})
    entry_run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


class FakeJob:
    where, running = "somewhere", True

    def __init__(self, code):
        self.code, self.over, self.stopped, self.killed = code, False, False, False

    def poll(self):
        self.over = self.code is not None
        return None if self.code is None else End(self.code, "killed by signal 9" if self.code < 0 else "")

    def stop(self):
        self.stopped, self.code = True, 0

    def kill(self):
        self.killed = True


class FakeLauncher(Launcher):
    """Runs `room` runs at once; every run ends with its next exit code."""

    Settings, lasting, poll_s = None, False, 0.0

    def __init__(self, codes, room=1, on_start=lambda command: None):
        self.codes, self.room, self.on_start, self.commands, self.jobs = codes, room, on_start, [], []

    def start(self, runs, starts):
        free = self.room - sum(not job.over for job in self.jobs)
        return [self._start(run) for run in runs[:free]]

    def _start(self, run):
        command = run.command()
        self.on_start(command)
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.write_text("something\nerror: it broke\n")
        self.commands.append(command)
        self.jobs.append(FakeJob(self.codes.pop(0)))
        return self.jobs[-1]

    def find(self, runs):
        return {}


def test_a_sweep_is_every_environment_planner_and_seed(tmp_path):
    config = SweepConfig(envs="cheetah-run,walker-run", planners="dream-mpc, policy", seeds="0,3", out=str(tmp_path))
    runs = list_runs(config, ["--env-steps", "5000"])
    assert [one.name for one in runs] == [
        f"{env}-{planner}-seed{seed}"
        for env in ("cheetah-run", "walker-run")
        for planner in ("dream-mpc", "policy")
        for seed in (0, 3)
    ]
    assert {one.env_steps for one in runs} == {5000}
    assert runs[1].command()[2:] == [
        "train", "--env-steps", "5000", "--env", "cheetah-run", "--planner", "dream-mpc", "--seed", "3",
        "--run-dir", str(tmp_path / "cheetah-run-dream-mpc-seed3"),
    ]  # fmt: skip


def test_a_seed_counts_once_however_it_is_written(tmp_path):
    runs = sweep_of(tmp_path, planners="policy", seeds="0,00,1e1,10")
    assert [one.args[one.args.index("--seed") + 1] for one in runs] == ["0", "10"]
    assert len({one.name for one in runs}) == 2


def test_a_log_that_was_removed_does_not_end_the_sweep(tmp_path):
    [one] = sweep_of(tmp_path, planners="policy", seeds="0")
    sweep = Sweep([one], FakeLauncher([1], on_start=lambda _: write_metrics(one, 8)), restarts=0)
    sweep._advance()
    one.log.unlink()
    sweep.work(Stop(), lambda: None)
    assert [entry.reason for entry in sweep.failed] == ["what it printed cannot be read: No such file or directory"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--planners", "dream"], "invalid choice"),
        (["--seeds", "0-3"], "--seeds 0-3: give whole numbers joined by commas"),
        (["--seeds", ","], "names nothing"),
        (["--env", "walker-run"], "--env does not go with sweep"),
        (["--overwrite"], "--overwrite does not go with sweep"),
        (["--device", "cuda:1"], "a sweep gives each run its GPU"),
        (["--env-step", "10"], "--env-step"),
        (["--jobs-per-gpu", "0"], "--jobs-per-gpu must"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(tmp_path, args, message, capsys):
    assert run.main(["sweep", "--out", str(tmp_path / "out"), *args]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_with_other_settings_is_refused(tmp_path):
    (one,) = sweep_of(tmp_path, planners="policy")
    write_metrics(one, 8)
    assert len(sweep_of(tmp_path, "--env-steps", "32", planners="policy")) == 1, "a longer run goes on"
    with pytest.raises(UserError, match=r"other settings \(train.updates: 1 -> 2\)"):
        sweep_of(tmp_path, "--train.updates", "2", planners="policy")


def test_a_failed_run_goes_on_from_its_checkpoint_and_is_given_up_at_last(tmp_path):
    runs = sweep_of(tmp_path, planners="policy,dream-mpc")
    ended = {runs[1].name: lambda: write_metrics(runs[1], 8, 16, evaluated=True)}

    def on_start(command):
        write_metrics(runs[0], 8)
        ended.get(runs[1].name)() if runs[1].name in command[-1] else None

    launcher = FakeLauncher([1, -9, 1, 0], on_start=on_start)
    sweep = Sweep(runs, launcher, restarts=2)
    sweep.work(Stop(), lambda: None)
    assert [entry.state for entry in sweep.entries] == ["failed", "complete"] and sweep.failed == sweep.entries[:1]
    assert sweep.entries[0].reason == "it broke" and sweep.entries[0].starts == 3
    first, second, third, other = launcher.commands
    assert "--resume" not in first and "--run-dir" in first
    assert second == third == [*first[:3], "--resume", str(runs[0].folder.path), "--env-steps", "16"]
    assert "dream-mpc" in other and sweep.entries[1].standing.eval_return == 7.0


def test_a_run_that_never_began_is_not_tried_again_and_one_that_is_complete_is_not_started(tmp_path):
    runs = sweep_of(tmp_path, planners="policy,dream-mpc")
    write_metrics(runs[1], 8, 16, evaluated=True)
    launcher = FakeLauncher([2])
    sweep = Sweep(runs, launcher, restarts=5)
    sweep.work(Stop(), lambda: None)
    assert sweep.entries[0].state == "failed" and sweep.entries[0].starts == 1 == len(launcher.commands)


@pytest.mark.parametrize("code", [0, 130], ids=["asked to stop", "Ctrl-C"])
@pytest.mark.parametrize(("records", "state", "starts"), [([4, 4, 4], "failed", 3), ([4, 8, 12, 16], "complete", 4)])
def test_a_run_whose_process_stops_goes_on_only_where_it_gets_further(records, state, starts, code, tmp_path):
    (one,) = sweep_of(tmp_path, planners="policy")
    reached = iter(records)

    def on_start(command):
        steps = next(reached)
        write_metrics(one, *range(4, steps + 1, 4), evaluated=steps == 16)

    launcher = FakeLauncher([code] * (len(records) - 1) + [0], on_start=on_start)
    sweep = Sweep([one], launcher, restarts=2)
    sweep.work(Stop(), lambda: None)
    (entry,) = sweep.entries
    assert (entry.state, entry.starts) == (state, starts)
    assert ("exit code 0 before the run was complete" in entry.reason) == (state == "failed")


def test_no_more_runs_at_once_than_there_is_room(tmp_path):
    runs = sweep_of(tmp_path, planners="policy", seeds="0,1,2")
    launcher, stop = FakeLauncher([None, None], room=2), Stop()
    sweep = Sweep(runs, launcher, restarts=0)
    shown = []

    def show():
        shown.append([entry.state for entry in sweep.entries])
        stop.requested = True

    with pytest.raises(Stopped, match="the same command goes on"):
        sweep.work(stop, show)
    assert shown[0] == ["running", "running", "waiting"]
    assert all(job.stopped and not job.killed for job in launcher.jobs)


def test_standing_reads_on_and_starts_over_where_a_resumed_run_dropped_records(tmp_path):
    (one,) = sweep_of(tmp_path, planners="policy")
    standing = Standing(one)
    standing.read()
    assert standing.env_steps == 0 and standing.env_steps_per_s is None
    write_metrics(one, 2, 6, 12)
    with one.folder.metrics.open("a") as file:
        file.write('{"env_steps": 14, "ti')  # an incomplete line
    standing.read()
    assert (standing.env_steps, standing.env_steps_per_s, standing.train_return) == (12, 5.0, 12.0)
    write_metrics(one, 2, 6)
    standing.read()
    assert standing.env_steps == 6 and not standing.finished
    write_metrics(one, 2, 6, 16, evaluated=True)
    standing.read()
    assert standing.finished and standing.eval_return == 7.0


def test_each_run_sees_its_own_gpu_and_its_share_of_the_cores(tmp_path, monkeypatch):
    launcher = LocalLauncher(2, ["0", "3"])
    show = "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], flush=True)"
    command, seen = [sys.executable, "-c", f"import os, time; {show}; time.sleep(60)"], []
    monkeypatch.setattr(Run, "command", lambda self: command)
    runs = [Run(RunFolder(tmp_path / str(i)), 1, "auto", ()) for i in range(5)]
    jobs = launcher.start(runs, [1] * 5)
    try:
        assert len(jobs) == 4 and launcher.start(runs[4:], [1]) == [], "four places, four runs"
        deadline = time.monotonic() + 30
        while len(seen) < 4 and time.monotonic() < deadline:
            seen = [text for one in runs[:4] if (text := one.log.read_text().split())]
    finally:
        for job in jobs:
            job.kill()
    threads = str(max(1, len(os.sched_getaffinity(0)) // 4))
    assert seen == [[gpu, threads] for gpu in ("0", "3", "0", "3")]
    assert [job.where for job in jobs] == ["GPU 0", "GPU 3", "GPU 0", "GPU 3"]
    assert launcher.start(runs[4:], [1])[0].slot == 0, "a place is free again"
    launcher._jobs[0].kill()


def start_sweep(folder, *args):
    full = [sys.executable, "run.py", "sweep", "--envs", "tests.example_env:make", "--out", folder, *BRIEF, *args]
    return subprocess.Popen(list(map(str, full)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def child_of(process):
    return next(iter(psutil.Process(process.pid).children()), None)


def test_a_killed_run_is_restarted_and_a_stopped_sweep_goes_on(tmp_path):
    """Through the command line: SIGKILL of a run, then Ctrl-C of the sweep, then the same command again."""
    args = ("--planners", "policy", "--train.checkpoint-seconds", 0.2, "--env-steps")
    sweep, folder = start_sweep(tmp_path, *args, 4000), tmp_path / "tests.example_env.make-policy-seed0"
    try:
        wait_for(lambda: list_checkpoints(folder / "checkpoints"))
        first = child_of(sweep)
        second = start_sweep(tmp_path, *args, 4000)
        assert "another process works in" in second.communicate(timeout=60)[0] and second.returncode == 2
        first.kill()
        again = wait_for(lambda: (child := child_of(sweep)) and child.pid != first.pid and child)
        wait_for(lambda: "--resume" in again.cmdline())
        wait_for(lambda: (folder / "versions.json").read_text().count('"started"') == 2)
        sweep.send_signal(signal.SIGINT)
        output = sweep.communicate(timeout=120)[0]
    finally:
        sweep.kill()
    assert sweep.returncode == 130 and "stopped: the same command goes on from here" in output, output
    assert "start 2" in output and not again.is_running()
    assert "stopped at" in (tmp_path / "logs" / f"{folder.name}.txt").read_text()
    done = records(folder)[-1]["env_steps"]
    last = start_sweep(tmp_path, *args, done + 100)
    output = last.communicate(timeout=240)[0]
    assert last.returncode == 0 and "1 run of 1 complete" in output, output
    assert records(folder)[-1]["env_steps"] >= done + 100 and "eval/return_mean" in records(folder)[-1]
