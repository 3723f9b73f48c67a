"""Sweeps on a real SLURM, which this starts: a run that is killed, preempted or timed out ends bit for bit alike."""

import json
import os
import subprocess
import sys

import psutil
import pytest

from dreamer_mpc.runs.checkpoint import list_checkpoints
from scripts.soak import differences
from tests.support.agents import BRIEF
from tests.support.commands import ROOT, quietly, train
from tests.support.slurm_cluster import Cluster, missing

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"no SLURM on this machine ({', '.join(missing())}): apt-get install slurmctld slurmd munge"
)
NAMES = "abcd"
RUN = [*BRIEF, "--num-envs", "1", "--env-steps", "64", "--train.checkpoint-seconds", "2"]
SLURM = ["--launcher", "slurm", "--slurm.gpus", "0", "--slurm.cpus", "1", "--slurm.memory", "1", "--slurm.poll", "1"]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        yield cluster


class SlowSweep:
    """A sweep of four runs, each slow until it is hurried."""

    def __init__(self, folder, cluster):
        self.out, self.slow, self.cluster = folder / "out", folder / "slow", cluster
        self.slow.mkdir()
        for name in NAMES:
            (self.slow / name).touch()
        envs = ",".join(f"tests.support.slow_env:{name}" for name in NAMES)
        self.args = ["sweep", "--envs", envs, "--planners", "policy", "--out", str(self.out), *RUN, *SLURM]
        self.commands = []

    def start(self, *more):
        """The command, in a process of its own."""
        log = self.slow.parent / f"command-{len(self.commands)}.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "run.py", *self.args, *more],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"SLOW_ENV_FOLDER": str(self.slow), "PYTHONPATH": str(ROOT)},
            )
        self.commands.append(process)
        return process, log

    def folder(self, name):
        return self.out / f"tests.support.slow_env.{name}-policy-seed0"

    def log(self, name):
        file = self.out / "logs" / f"{self.folder(name).name}.txt"
        return file.read_text() if file.exists() else ""

    def job(self, name):
        """The id of its job, from the sweep's file; None before it is submitted, and while it is between two jobs."""
        runs = json.loads((self.out / "jobs.json").read_text())["runs"]
        return runs.get(self.folder(name).name, {}).get("job")

    def process(self, name):
        """The process that trains it."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "train" in words and str(self.folder(name)) in words:
                return process
        return None

    def is_saved(self, name):
        return bool(list_checkpoints(self.folder(name) / "checkpoints"))

    def hurry(self, name):
        (self.slow / name).unlink()

    def starts(self, name):
        return (self.folder(name) / "versions.json").read_text().count('"started"')


@pytest.fixture
def sweep(tmp_path, cluster):
    sweep = SlowSweep(tmp_path, cluster)
    yield sweep
    for process in sweep.commands:
        process.kill()
        process.wait()


def test_whatever_happens_to_the_runs_of_a_sweep_they_end_like_one_that_was_left_alone(sweep, cluster, tmp_path):
    """Run a: its time limit. b: its process is killed, and then its job. c: cancelled. d: preempted.

    All: the command is killed, and slurmd. Things happen beside each other, because most of the time is that of starts.
    """
    first, _ = sweep.start("--slurm.additional", "hold")
    cluster.wait(lambda: len(cluster.states()) == 4 and sweep.job("a"), 60, "the jobs are not submitted")
    jobs = {name: sweep.job(name) for name in NAMES}
    cluster.call("scontrol", "update", f"jobid={jobs['d']}", "partition=spare")
    cluster.call("scontrol", "release", *jobs.values())
    alone = tmp_path / "alone"  # trained while the jobs start
    train(*RUN, "--planner", "policy", "--env", "tests.support.slow_env:a", "--run-dir", alone)
    cluster.wait(lambda: all(map(sweep.is_saved, NAMES)), 60, "the runs do not start")
    first.kill()
    cluster.call("scontrol", "update", f"jobid={jobs['a']}", "TimeLimit=1")
    cluster.call("sbatch", "--partition=urgent", "--mem=100", "--wrap=sleep 1", "--output=/dev/null")
    cluster.wait(lambda: "stopped at" in sweep.log("d"), 60, "d is not preempted")
    sweep.hurry("d")
    done = quietly(*sweep.args, "--cancel", sweep.folder("c").name)
    assert done.code == 0 and f"{sweep.folder('c').name}: job {jobs['c']} is asked to save" in done.out, done.err

    cluster.kill("slurmd")
    sweep.process("b").kill()
    second, log = sweep.start()
    cluster.start_slurmd()
    cluster.wait(lambda: sweep.job("c") not in (None, jobs["c"]), 60, "c is not started again")
    assert "stopped at" in sweep.log("c")
    assert {name: sweep.job(name) for name in "abd"} == {name: jobs[name] for name in "abd"}, "the others are found"
    sweep.hurry("c")
    sweep.process("b").parent().kill()
    sweep.hurry("b")
    cluster.wait(lambda: "stopped at" in sweep.log("a"), 90, "a does not save before its time limit")
    cluster.wait(lambda: cluster.states()[jobs["a"]] == "PENDING", 30, "a is not requeued")
    cluster.call("scontrol", "update", f"jobid={jobs['a']}", "TimeLimit=60")
    sweep.hurry("a")
    second.wait(timeout=120)
    said = log.read_text()
    assert second.returncode == 0 and "4 runs of 4 complete" in said, said + cluster.logs()
    for name in NAMES:
        assert differences(sweep.folder(name), alone, leave_out=["/random/python"]) == [], name
        assert sweep.starts(name) >= 2


def test_sbatch_s_own_words_are_the_error(cluster, tmp_path):
    args = ["sweep", "--envs", "tests.example_env:make", "--out", tmp_path / "out", *RUN, *SLURM]
    done = quietly(*args, "--slurm.partition", "nowhere")
    assert done.code == 2 and done.err.startswith("error: SLURM takes no jobs: invalid partition specified: nowhere")
    assert done.err.count("\n") == 1
    assert quietly(*args, "--cancel").err.endswith("in the queue: there is nothing to cancel\n")
