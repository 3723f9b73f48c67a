"""What SLURM says about jobs, and which one this process is in."""

import os
import re
import subprocess
from dataclasses import dataclass

from dreamer_mpc.util.errors import UserError

ANSWER_S = 60  # most seconds to wait for SLURM
# States in which a job is over; in all others it runs, or will.
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
ON_NODES = {"COMPLETING", "RUNNING", "STAGE_OUT", "STOPPED", "SUSPENDED"}  # states in which its processes may live
FORMAT = "%i|%T|%N|%r|%j"
JOB_ID = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True)
class Queued:
    """A job in SLURM's queue, or one that ended minutes ago."""

    state: str
    nodes: str
    reason: str  # why it waits
    name: str


def own_job() -> str | None:
    """The id of the SLURM job that this process belongs to, 12_3 for one of an array."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job if JOB_ID.fullmatch(job) else None


def queue(job: str | None = None) -> dict[str, Queued] | None:
    """By id, this user's jobs, or `job` alone, whoever it belongs to; None where SLURM does not answer."""
    which = ["--user", str(os.getuid())] if job is None else ["--jobs", job]
    command = ["squeue", "--noheader", "--array", "--states=all", f"--format={FORMAT}", *which]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    rows = [line.split("|", 4) for line in done.stdout.splitlines() if line.count("|") >= 4]
    return {row[0].strip(): Queued(*(word.strip() for word in row[1:])) for row in rows}


def state(job: str) -> str | None:
    """The state of a job; "" where it is in the queue no more, None where SLURM does not answer."""
    jobs = queue(job)
    return None if jobs is None else jobs[job].state if job in jobs else ""


def cancel(jobs: list[str]) -> None:
    """Ask jobs to end: SIGTERM, and SIGKILL after the cluster's KillWait. UserError with scancel's own words."""
    try:
        done = subprocess.run(["scancel", *jobs], capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot cancel ({error}): try again") from error
    if done.returncode:
        raise UserError(f"scancel: {' '.join(done.stderr.split())}")
