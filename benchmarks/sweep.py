"""Time and memory of `run.py sweep --launcher slurm` for many runs, against a fake of submitit's executor.

    python -m benchmarks.sweep [--runs 200] [--out sweep.json]

Listed and submitted (submitit pickles each job as always, but sbatch is not called), looked at once while all of them
run, and listed and found again by a second command. Nothing is trained. Seconds are of CPU time.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import common
from dreamer_mpc.config import SweepConfig, load_presets, to_yaml
from dreamer_mpc.config.resolve import resolve
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.sweeps.slurm import SlurmLauncher, SlurmSettings
from dreamer_mpc.sweeps.sweep import Sweep
from dreamer_mpc.util import slurm

RECORDS = 1000  # of each run's metrics: 1M env steps


@contextmanager
def fake_slurm(folder: Path) -> Iterator[dict[str, slurm.Queued]]:
    """In its context submissions get the ids 1, 2, ... as arrays; yields the queue, in which they run at once."""
    import submitit

    queue: dict[str, slurm.Queued] = {}
    arrays: list[str] = []

    def submit(executor: Any, command: str) -> Any:
        arrays.append(str(len(arrays) + 1))
        count, name = executor.parameters.get("map_count"), executor.parameters["job_name"]
        script = folder / f"{arrays[-1]}.sh"
        script.write_text(executor._make_submission_file_text(command, ""))
        ids = [f"{arrays[-1]}_{i}" for i in range(count)] if count else [arrays[-1]]
        queue.update({job: slurm.Queued("RUNNING", "node1", "None", name) for job in ids})
        job = executor.job_class(folder=executor.folder, job_id=arrays[-1])
        if not count:  # of an array, submitit moves the file of each job itself
            job.paths.folder.mkdir(parents=True, exist_ok=True)
        return job

    folder.mkdir(parents=True, exist_ok=True)
    sbatch = folder / "sbatch"
    sbatch.write_text("#!/bin/sh\nexit 1\n")
    sbatch.chmod(0o755)
    which = shutil.which
    with (
        mock.patch.object(shutil, "which", lambda name, **rest: str(sbatch) if name in FAKED else which(name, **rest)),
        mock.patch.object(submitit.SlurmExecutor, "_submit_command", submit),
        mock.patch.object(slurm, "queue", lambda job=None: dict(queue)),
    ):
        yield queue


FAKED = ("sbatch", "srun")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name, fake_slurm(Path(name) / "fake"):
        rows = {"start_and_imports_s": started} | measure(Path(name) / "runs", args.runs)
    for key, value in rows.items():
        print(f"{key:24} {value:10.3f}" if isinstance(value, float) else f"{key:24} {value:10}")
    record = {"benchmark": "sweep", **common.describe(torch.device("cpu")), **rows}
    common.write(args.out, record)
    return record


def settings_of(one: Run) -> str:
    """The config.yaml of a run with the default settings."""
    own = dict(zip(one.args[::2], one.args[1::2], strict=True))
    config = replace(load_presets("default"), env=own["--env"], planner=own["--planner"], seed=int(own["--seed"]))
    return to_yaml(resolve(config))


def measure(out: Path, count: int) -> dict[str, Any]:
    """Seconds of CPU time of each part, and the memory of the process at its end."""
    seeds = ",".join(map(str, range(-(-count // 8))))
    envs = "cheetah-run,walker-run,hopper-hop,acrobot-swingup"
    config = SweepConfig(envs=envs, planners="dream-mpc,policy", seeds=seeds, out=str(out), launcher="slurm")
    record: dict[str, Any] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        record[name] = time.process_time() - start

    def begin() -> Sweep:
        launcher = SlurmLauncher.open(config, SlurmSettings(), "auto")
        return Sweep(runs, launcher, config.restarts)

    with timed("list_s"):
        runs = list_runs(config, [])
    record["runs"] = len(runs)
    with timed("submit_s"):
        sweep = begin()
        sweep._advance()
    for one in runs:
        one.folder.path.mkdir(parents=True)
        one.folder.write_config(settings_of(one))
        lines = ({"env_steps": i * 1000, "time_s": i * 10.0, "train/return": 1.0} for i in range(RECORDS))
        one.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with timed("first_look_s"):
        sweep._advance()
    with timed("next_look_s"):
        sweep._advance()
    with timed("list_again_s"):
        runs = list_runs(config, [])
    with timed("find_again_s"):
        assert all(entry.job for entry in begin().entries)
    record["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
