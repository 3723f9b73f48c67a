"""Launchers without a cluster: what they refuse, what SLURM is asked for, and what is known of jobs afterwards."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from benchmarks.sweep import fake_slurm, settings_of
from dreamer_mpc.config import SweepConfig
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.sweeps import allocation
from dreamer_mpc.sweeps.allocation import Allocation
from dreamer_mpc.sweeps.collect import collect
from dreamer_mpc.sweeps.jobs import Jobs
from dreamer_mpc.sweeps.launcher import End
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.sweeps.slurm import SlurmLauncher, SlurmSettings, minutes
from dreamer_mpc.sweeps.sweep import DETACHED, Sweep
from dreamer_mpc.util import slurm
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.slurm import Queued
from dreamer_mpc.util.stop import Stop, Stopped
from tests.support.commands import ROOT, quietly


def make_runs(folder, number):
    return [Run(RunFolder(folder / f"run-{i}"), 10, "auto", ("--seed", str(i))) for i in range(number)]


def finish(run):
    run.folder.path.mkdir(parents=True, exist_ok=True)
    run.folder.metrics.write_text(json.dumps({"env_steps": 10, "time_s": 1.0, "eval/return_mean": 7.0}) + "\n")


@pytest.fixture
def queue(tmp_path):
    with fake_slurm(tmp_path / "fake") as queue:
        yield queue


@pytest.fixture
def launcher(queue, tmp_path):
    """`launcher()`: a new command's, for the same sweep."""

    def make(jobs_per_gpu=1, **settings):
        sweep = SweepConfig(out=str(tmp_path / "out"), jobs_per_gpu=jobs_per_gpu, launcher="slurm")
        return SlurmLauncher.open(sweep, SlurmSettings(**settings, poll=1.0), "auto")

    return make


def look(sweep):
    """Another look at the queue."""
    sweep._launcher._looked_at = float("-inf")
    sweep._advance()


SLURM = ["--launcher", "slurm"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--launcher", "pbs"], "no launcher 'pbs': known are local, slurm"),
        (["--slurm.partition", "gpu"], "--slurm.partition does not go with --launcher local: add --launcher slurm"),
        ([*SLURM, "--slurm.time", "2 days"], "D-H:M or D-H:M:S, got '2 days'"),
        ([*SLURM, "--slurm.time", "3"], "--slurm.time must be at least 5 minutes"),
        ([*SLURM, "--slurm.additional", "=5"], "--slurm.additional must be KEY=VALUE or KEY"),
        ([*SLURM, "--slurm.additional", "array=0-3"], "--slurm.additional must leave array alone"),
        ([*SLURM, "--slurm.cpus", "0"], "--slurm.cpus must be at least 1"),
        ([*SLURM, "--slurm.cores", "1"], "--slurm.cores"),
        (["--cancel"], "--cancel does not go with --launcher local"),
        ([*SLURM, "--cancel"], "in the queue: there is nothing to cancel"),
        (["--collect", "nowhere"], "rsync: "),
    ],
)
def test_what_cannot_be_is_one_line(queue, tmp_path, args, message):
    done = quietly("sweep", "--out", tmp_path / "out", *args)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = quietly("sweep", "--out", tmp_path / "out", *SLURM)
    assert done.err == "error: no sbatch on PATH: call this where SLURM is (a login node), or with --launcher local\n"
    (tmp_path / "sbatch").touch(0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = quietly("sweep", "--out", tmp_path / "out", *SLURM)
    assert done.err == "error: --launcher slurm needs submitit: pip install -e '.[slurm]'\n"


def test_without_an_answer_of_slurm_nothing_is_started_twice(launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "queue", lambda job=None: None)
    with pytest.raises(UserError, match="does not answer squeue"):
        Sweep(make_runs(tmp_path / "out", 1), launcher(), 0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("30", 30), ("90:30", 91), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:01", 2881)],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, number):
    assert minutes(text) == number


def test_a_job_asks_for_what_its_runs_need_together(launcher, tmp_path):
    """Two GPUs with two runs each: four runs in a job, seven in two."""
    made = launcher(
        2, gpus=2, cpus=3, memory=1.5, partition="gpu", account="lab", time="0-12", notice=60, parallel=9,
        setup=("module load cuda",), additional=("qos=high", "exclusive", "gres=gpu:a100:1"),
    )  # fmt: skip
    runs = make_runs(tmp_path / "out", 7)
    jobs = made.start(runs, [1] * 7)
    assert [job.job for job in jobs] == ["1_0"] * 4 + ["1_1"] * 3
    script = (tmp_path / "fake" / "1.sh").read_text()
    wanted = [
        "array=0-1%2", "cpus-per-task=12", "mem=6144M", "gpus-per-node=2", "partition=gpu", "account=lab", "time=720",
        "signal=USR1@60", "requeue", "qos=high", "exclusive", "gres=gpu:a100:1",
    ]  # fmt: skip
    assert all(f"#SBATCH --{word}\n" in script for word in wanted), script
    assert "module load cuda" in script and "srun --unbuffered" in script and "--cpus-per-task=12 " in script
    import submitit

    first = submitit.core.utils.DelayedSubmission.load(tmp_path / "out" / "jobs" / "1_0_submitted.pkl").function
    assert first == Allocation(tuple(runs[:4]), 2, 2, 12, 2)


def test_a_second_command_finds_the_jobs_and_a_killed_one_s_by_their_name(launcher, queue, tmp_path):
    runs = make_runs(tmp_path / "out", 3)
    first = Sweep(runs, launcher(), 2)
    look(first)
    file = tmp_path / "out" / "jobs.json"
    known = file.read_text()
    [name] = {queued.name for queued in queue.values()}
    Jobs(file, "slurm").submit(name, [[one.name] for one in runs], {one.name: 1 for one in runs})
    for text in (known, file.read_text()):
        file.write_text(text)
        second = Sweep(runs, launcher(), 2)
        look(second)
        assert [(entry.job.job, entry.state, entry.starts) for entry in second.entries] == [
            (f"1_{i}", "running", 1) for i in range(3)
        ]
    assert len(queue) == 3, "nothing was submitted again"
    Jobs(file, "slurm").submit("never-accepted", [["run-0"]], {"run-0": 1})
    assert launcher().find(runs) == {}
    with pytest.raises(UserError, match="has jobs of --launcher slurm"):
        file.write_text(known)
        Jobs.open(tmp_path / "out", "local")


FORGED = '{"runs": {"run-0": {"job": "--user=me", "starts": 1}}, "submission": null, "launcher": "slurm"}'


@pytest.mark.parametrize("text", ["{", "[]", FORGED])
def test_a_damaged_or_forged_file_of_jobs_is_refused_in_one_line(text, queue, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "jobs.json").write_text(text)
    done = quietly("sweep", "--out", tmp_path / "out", *SLURM, "--cancel")
    assert done.code == 2 and "jobs.json" in done.err and done.err.count("\n") == 1


def test_how_a_job_ended_decides_what_becomes_of_its_run(launcher, queue, tmp_path):
    runs = make_runs(tmp_path / "out", 6)
    sweep = Sweep(runs, launcher(), 1)
    look(sweep)
    finish(runs[0])
    finish(runs[1])
    runs[3].log.parent.mkdir()
    runs[3].log.write_text("something\ngiven up after 3 starts: it broke\n")
    ended = ["COMPLETED", "", "NODE_FAIL", "FAILED", "CANCELLED", "PREEMPTED"]
    for i, state in enumerate(ended):
        queue[f"1_{i}"] = Queued(state, "", "", "")
    del queue["1_1"]
    look(sweep)
    assert {entry.state for entry in sweep.entries} == {"running"}, "what is requeued looks over for a moment"
    queue["1_5"] = Queued("PENDING", "", "BeginTime", "")
    look(sweep)
    states = [entry.state for entry in sweep.entries]
    assert states == ["complete", "complete", "running", "failed", "failed", "running"]
    assert [entry.starts for entry in sweep.entries] == [1, 1, 2, 1, 1, 1] and sweep.entries[2].job.job == "2"
    assert [entry.reason for entry in sweep.entries[2:5]] == [
        "job 1_2 ended: NODE_FAIL",
        "given up after 3 starts: it broke",
        "job 1_4 was cancelled; the same command starts it again",
    ]
    assert not sweep.entries[5].job.running and sweep.entries[5].job.where == "job 1_5 (BeginTime)"
    queue["2"] = Queued("TIMEOUT", "", "", "")
    look(sweep)
    look(sweep)
    assert sweep.entries[2].state == "failed", "its second start was its last"


def test_cancelled_runs_save_and_the_next_command_starts_them_again(launcher, queue, tmp_path, monkeypatch):
    runs = make_runs(tmp_path / "out", 4)
    Sweep(runs, launcher(2), 2)._advance()
    asked = []
    monkeypatch.setattr(slurm, "cancel", asked.extend)
    with pytest.raises(UserError, match="run-0 shares its job with one of run-1"):
        launcher(2).cancel(["run-1"])
    with pytest.raises(UserError, match="no job of run-9 is in the queue"):
        launcher(2).cancel(["run-9"])
    assert asked == []
    lines = launcher(2).cancel(["run-1", "run-0"])
    assert asked == ["1_0"] and lines == [f"run-{i}: job 1_0 is asked to save and end" for i in (0, 1)]
    sweep = Sweep(runs, launcher(2), 0)
    queue["1_0"] = Queued("CANCELLED", "", "", "")
    look(sweep)
    look(sweep)
    assert [entry.job.job for entry in sweep.entries] == ["2", "2", "1_1", "1_1"]


def test_ctrl_c_leaves_the_jobs_alone(launcher, tmp_path):
    stop = Stop()
    sweep = Sweep(make_runs(tmp_path / "out", 1), launcher(), 0)
    stop.requested = False
    with pytest.raises(Stopped, match=DETACHED):
        sweep.work(stop, lambda: setattr(stop, "requested", True))
    assert sweep.entries[0].job.poll() is None


# what a job does

SAVES = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0))); "
SCRIPT = SAVES + "print('at work', flush=True); {}"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """`job(code, ...)`: a job whose runs are small programs."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setattr(allocation.slurm, "state", lambda job: pytest.fail("it was not asked to end"))

    def make(*codes):
        runs = make_runs(tmp_path / "out", len(codes))
        programs = {one.name: [sys.executable, "-c", SCRIPT.format(code)] for one, code in zip(runs, codes)}
        monkeypatch.setattr(Run, "command", lambda self: programs[self.name])
        return Allocation(tuple(runs), len(codes), 0, 1, 1)

    return make


def test_a_job_restarts_its_runs_and_says_which_it_gave_up(job):
    work = job("sys.exit('it broke')", "print('done')")
    finish(work.runs[1])
    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 1 and work.runs[0].last_line() == "given up after 2 starts: it broke"
    assert work.runs[0].log.read_text().count("at work") == 2 and not work.runs[1].log.exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED", ""], ids=["preempted", "cancelled", "gone"])
def test_a_job_that_must_end_is_requeued_unless_it_was_cancelled(job, state, number, monkeypatch):
    work, requeued = job("time.sleep(60)"), []
    monkeypatch.setattr(allocation.slurm, "state", lambda job: state if job == "5" else pytest.fail(job))
    before = signal.signal(signal.SIGUSR1, lambda *_: requeued.append(work.runs[0].last_line()))
    start = allocation.LocalLauncher._start

    def started(self, run, slot):
        made = start(self, run, slot)
        while run.last_line() != "at work":
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        return made

    monkeypatch.setattr(allocation.LocalLauncher, "_start", started)
    try:
        work()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert requeued == ["saved"] * (state == "RUNNING")
    assert work.checkpoint().function == work


# figures from another folder

needs_rsync = pytest.mark.skipif(subprocess.call(["sh", "-c", "command -v rsync >/dev/null"]) != 0, reason="no rsync")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A sweep's folder on the host `far`, to which ssh is a shell of this one."""
    for one in make_runs(tmp_path / "far" / "out", 2):
        finish(one)
        one.folder.config.write_text("env: x\n")
        one.folder.checkpoints.mkdir()
        for name in ("checkpoint-00000008", "checkpoint-00000010", "best"):
            (one.folder.checkpoints / f"{name}.safetensors").write_text(name)
        one.folder.replay.mkdir()
        (one.folder.replay / "chunk").write_text("gigabytes")
    shell = tmp_path / "ssh"
    shell.write_text('#!/bin/sh\n[ "$1" = far ] || exit 9\nshift\nexec "$@"\n')
    shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("RSYNC_RSH", str(shell))
    return tmp_path / "far" / "out"


@needs_rsync
@pytest.mark.parametrize("host", ["", "far:"])
def test_collecting_copies_what_figures_and_evaluations_need(remote, host, tmp_path):
    source, out = f"{host}{remote}", tmp_path / "here"
    done = quietly("sweep", "--collect", source, "--out", out)
    assert done.code == 0, done.err
    names = ("config.yaml", "metrics.jsonl", "best.safetensors", "checkpoint-00000010.safetensors")
    assert done.out.splitlines()[1] == f"run-1: {', '.join(names)}"
    copied = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    files = [f"checkpoints/{name}" if "safetensors" in name else name for name in names]
    assert copied == {f"run-{i}/{file}" for i in (0, 1) for file in files}
    newer = remote / "run-0" / "checkpoints" / "checkpoint-00000012.safetensors"
    newer.write_text("newer")
    collect(source, out)
    assert sorted(path.name for path in (out / "run-0" / "checkpoints").iterdir()) == ["best.safetensors", newer.name]


@needs_rsync
def test_collecting_overwrites_no_run_of_this_host(remote, tmp_path):
    with pytest.raises(UserError, match="run-0 is a run of its own"):
        collect(f"far:{remote}", remote)
    with pytest.raises(UserError, match="no runs in "):
        collect(str(tmp_path), tmp_path / "here")


def test_the_metrics_decide_where_slurm_cannot_say_how_a_job_ended(launcher, queue, tmp_path):
    [one] = make_runs(tmp_path / "out", 1)
    sweep = Sweep([one], launcher(), 2)
    look(sweep)
    sweep._end(sweep.entries[0], End(None, "unknown"))
    assert sweep.entries[0].state == "waiting"
    finish(one)
    sweep.entries[0].standing.read()
    sweep._end(sweep.entries[0], End(None, "unknown"))
    assert sweep.entries[0].state == "complete"


def test_an_existing_run_s_settings_are_read_whoever_s_file_was_read_before(tmp_path):
    from dreamer_mpc.sweeps.runs import list_runs

    config = SweepConfig(envs="cheetah-run", planners="policy", seeds="0,1,2", out=str(tmp_path))
    for one in list_runs(config, []):
        one.folder.path.mkdir()
        one.folder.write_config(settings_of(one))
    assert len(list_runs(config, [])) == 3
    last = tmp_path / "cheetah-run-policy-seed2" / "config.yaml"
    for old, new in (("seed: 2", "seed: 3"), ("updates: 100", "updates: 7")):
        text = last.read_text()
        assert old in text
        last.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="seed2 has a run with other settings"):
            list_runs(config, [])
        last.write_text(text)


def test_importing_submitit_leaves_the_handlers_of_others_open():
    """logging.config closes all handlers, and absl's its stream: that was standard error, which then was silent."""
    code = """
import io, sys
before, sys.stderr = sys.stderr, io.StringIO()
from absl import logging
stream = logging.get_absl_handler().python_handler.stream
assert stream is sys.stderr
sys.stderr = before
from dreamer_mpc.sweeps.slurm import _submitit
_submitit()
print('closed' if stream.closed else 'open')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "open\n", done.stderr
