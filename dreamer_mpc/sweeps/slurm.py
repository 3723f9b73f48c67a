"""Starting runs as jobs of a SLURM cluster, by submitit; they go on when the command ends."""

import contextlib
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dreamer_mpc.sweeps.allocation import Allocation
from dreamer_mpc.sweeps.jobs import Jobs, new_name
from dreamer_mpc.sweeps.launcher import End
from dreamer_mpc.sweeps.run import GIVEN_UP, Run
from dreamer_mpc.util import slurm
from dreamer_mpc.util.checks import check_ranges
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.program import FOLDER

if TYPE_CHECKING:
    from dreamer_mpc.config import SweepConfig

MOST_REQUEUES = 10_000  # submitit counts time limits
LEAST_MINUTES = 5
LEFT_BEHIND = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_.*")  # files of submitit for jobs that SLURM refused
# What a sweep sets itself.
OWN = ("array", "error", "job-name", "open-mode", "output", "signal")


@dataclass(frozen=True)
class SlurmSettings:
    """Jobs of --launcher slurm."""

    partition: str | None = None
    """Partition; None is the cluster's default."""
    account: str | None = None
    """Account to charge; None is yours."""
    time: str = "1-00:00:00"
    """Time limit of a job as sbatch writes it: minutes, H:M:S, D-H, D-H:M:S. A run goes on in the next job."""
    gpus: int = 1
    """GPUs of a job; 0, or --device cpu: none. A job holds --jobs-per-gpu runs a GPU."""
    cpus: int = 4
    """CPU cores of a run."""
    memory: float = 16.0
    """Main memory of a run in GB."""
    parallel: int = 256
    """Jobs of one array that may run at once."""
    notice: int = 120
    """Seconds before the time limit at which runs save and the job requeues itself."""
    poll: float = 15.0
    """Seconds between two looks at the queue and the folders of the runs."""
    python: str | None = None
    """What starts Python on a node, such as apptainer exec --nv image.sif python; None is this one."""
    setup: tuple[str, ...] = ()
    """Lines of shell before a job's Python starts, such as 'module load cuda'."""
    additional: tuple[str, ...] = ()
    """Any other options of sbatch, KEY=VALUE or KEY: qos=high gres=gpu:a100:1 exclusive."""

    def __post_init__(self):
        check_ranges(self, gpus=(0, 64), cpus=(1, None), parallel=(1, None), notice=(10, None), poll=(1, None))
        check_ranges(self, memory=(0.1, None))
        least = max(LEAST_MINUTES, 2 * self.notice // 60)
        if minutes(self.time) < least:
            raise ValueError(f"time must be at least {least} minutes, so that runs get on before --slurm.notice")
        for word in self.additional:
            if not re.fullmatch(r"[a-zA-Z][\w-]*(=.*)?", word):
                raise ValueError(f"additional must be KEY=VALUE or KEY, without dashes in front, got {word!r}")
            key = word.partition("=")[0].replace("_", "-")
            if key in OWN:
                raise ValueError(f"additional must leave {key} alone, which a sweep sets itself")


def minutes(text: str) -> int:
    """A time limit in one of sbatch's formats; ValueError for any other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"time must be minutes, H:M:S, D-H, D-H:M or D-H:M:S, got {text!r}")
    days, parts = match[1], [int(part) for part in match.groups()[1:] if part is not None]
    if days is None:  # minutes, minutes:seconds, hours:minutes:seconds
        parts = [0, *parts, 0][:3] if len(parts) == 1 else [0, *parts] if len(parts) == 2 else parts
    hours, mins, seconds = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + mins + -(-seconds // 60)


class SlurmJob:
    """A run in a job, which it may share with others."""

    def __init__(self, launcher: "SlurmLauncher", run: Run, job: str):
        self._launcher, self._run, self.job = launcher, run, job

    @property
    def running(self) -> bool:
        queued = self._launcher.queued(self.job)
        return queued is not None and queued.state in slurm.ON_NODES

    @property
    def where(self) -> str:
        queued = self._launcher.queued(self.job)
        if queued is None:
            return f"job {self.job}"
        reason = "" if queued.reason in ("", "None") else f" ({queued.reason})"
        return f"job {self.job} on {queued.nodes}" if self.running else f"job {self.job}{reason}"

    def poll(self) -> End | None:
        return self._launcher.end(self._run, self.job)

    def stop(self) -> None:
        slurm.cancel([self.job])

    def kill(self) -> None:
        slurm.cancel(["--full", "--signal=KILL", self.job])


class SlurmLauncher:
    """Each submission is an array of jobs; the ids are in `jobs.json`, before SLURM has them their name is."""

    Settings, lasting = SlurmSettings, True

    def __init__(self, out: Path, jobs_per_gpu: int, restarts: int, settings: SlurmSettings, gpus: int):
        self._out, self._settings, self._gpus = out, settings, gpus
        self._jobs_per_gpu, self._restarts = jobs_per_gpu, restarts
        self.poll_s = settings.poll
        self._jobs = Jobs.open(out, "slurm")
        self._queue: dict[str, slurm.Queued] = {}
        self._looked_at, self._look = float("-inf"), 0
        self._over: dict[str, int] = {}  # job -> the look at which it was over

    @classmethod
    def open(cls, sweep: "SweepConfig", settings: SlurmSettings, device: str) -> "SlurmLauncher":
        if not shutil.which("sbatch"):
            raise UserError("no sbatch on PATH: call this where SLURM is (a login node), or with --launcher local")
        _submitit()
        gpus = 0 if device == "cpu" else settings.gpus
        return cls(Path(sweep.out), sweep.jobs_per_gpu, sweep.restarts, settings, gpus)

    def find(self, runs: Sequence[Run]) -> dict[str, tuple[SlurmJob, int]]:
        self._recover()
        found = {}
        for run in runs:
            started = self._jobs.runs.get(run.name)
            if started and self._state(started.job) != "CANCELLED":
                found[run.name] = (SlurmJob(self, run, started.job), started.starts)
        return found

    def start(self, runs: Sequence[Run], starts: Sequence[int]) -> list[SlurmJob]:
        """All of them, as one array."""
        size = max(1, self._gpus) * self._jobs_per_gpu
        parts = [tuple(runs[i : i + size]) for i in range(0, len(runs), size)]
        name = new_name()
        counts = {run.name: count for run, count in zip(runs, starts, strict=True)}
        self._jobs.submit(name, [[run.name for run in part] for part in parts], counts)
        cores = self._settings.cpus * size
        allocations = [Allocation(part, self._jobs_per_gpu, self._gpus, cores, self._restarts) for part in parts]
        executor, printed = self._executor(name, size), io.StringIO()
        path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
        try:
            with _environment(PYTHONPATH=path), contextlib.redirect_stderr(printed):  # submitit repeats sbatch's words
                ids = [job.job_id for job in executor.submit_array(allocations)]
        except Exception as error:  # submitit's own classes, and OSError
            for file in (self._out / "jobs").glob("*"):
                if LEFT_BEHIND.fullmatch(file.name):
                    file.unlink(missing_ok=True)
            raise UserError(f"SLURM takes no jobs: {_sbatch_words(error)}") from error
        sys.stderr.write(printed.getvalue())  # warnings
        self._jobs.submitted(ids)
        self._looked_at = float("-inf")
        return [SlurmJob(self, run, job) for part, job in zip(parts, ids, strict=True) for run in part]

    def forget(self, run: Run) -> None:
        self._jobs.forget(run.name)

    def cancel(self, names: Sequence[str]) -> list[str]:
        self._recover()
        live = {name: job.job for name, job in self._jobs.runs.items() if not self._is_over(job.job)}
        if not live:
            raise UserError(f"no jobs of {self._out} are in the queue: there is nothing to cancel")
        unknown = [name for name in names if name not in live]
        if unknown:
            raise UserError(f"no job of {unknown[0]} is in the queue: those of {', '.join(live)} are")
        jobs = {live[name] for name in names or live}
        beside = [name for name in live if live[name] in jobs and names and name not in names]
        if beside:
            raise UserError(f"{beside[0]} shares its job with one of {', '.join(names)}: name all runs of the job")
        self._jobs.cancelled(sorted(jobs))
        slurm.cancel(sorted(jobs))
        return [f"{name}: job {job} is asked to save and end" for name, job in live.items() if job in jobs]

    def queued(self, job: str) -> slurm.Queued | None:
        """What the last look at the queue showed of a job."""
        return self._queue.get(job)

    def end(self, run: Run, job: str) -> End | None:
        """How a job ended; None while it goes on; a requeued one looks over for a moment, at one look."""
        self._look_again()
        state = self._state(job)
        if not self._is_over(job):
            self._over.pop(job, None)
            return None
        if self._over.setdefault(job, self._look) == self._look:
            return None
        started = self._jobs.runs.get(run.name)
        if state == "COMPLETED" or (started and started.cancelled):
            return End(0, asked=True)
        if state == "CANCELLED":
            return End(1, f"job {job} was cancelled; the same command starts it again", again=False)
        if run.last_line().startswith(GIVEN_UP):
            return End(None, again=False)
        return End(None, f"job {job} ended: {state or 'it is in the queue no more'}")

    def _state(self, job: str) -> str:
        return self._queue[job].state if job in self._queue else ""

    def _is_over(self, job: str) -> bool:
        return self._state(job) in slurm.ENDED | {""}

    def _look_again(self) -> bool:
        """Ask SLURM, once for all jobs; False where it does not answer, and the last look counts on."""
        if time.monotonic() - self._looked_at < self.poll_s / 2:
            return True
        self._looked_at = time.monotonic()
        queue = slurm.queue()
        if queue is None:
            return False
        self._queue, self._look = queue, self._look + 1
        return True

    def _recover(self) -> None:
        """Look, and find the jobs that a killed command had submitted. UserError where SLURM does not answer."""
        self._looked_at = float("-inf")
        if not self._look_again():
            raise UserError("SLURM does not answer squeue, so that running jobs would not be found: try again later")
        submission = self._jobs.submission
        if submission is None:
            return
        mine = {job for job, queued in self._queue.items() if queued.name == submission.name}
        array = next(iter(mine)).partition("_")[0] if mine else ""
        ids = [array] if mine == {array} else [f"{array}_{i}" for i in range(len(submission.runs))]
        self._jobs.submitted(ids if mine else [])

    def _executor(self, name: str, size: int) -> object:
        settings = self._settings
        extra = dict(word.partition("=")[::2] for word in settings.additional)
        extra = {key.replace("_", "-"): value or True for key, value in extra.items()}
        cpus = settings.cpus * size
        executor = _submitit().SlurmExecutor(self._out / "jobs", max_num_timeout=MOST_REQUEUES, python=settings.python)
        parameters = {
            "job_name": name,
            "partition": settings.partition,
            "account": settings.account,
            "time": minutes(settings.time),
            "gpus_per_node": self._gpus or None,
            "cpus_per_task": cpus,
            "mem": f"{round(settings.memory * size * 1024)}M",
            "array_parallelism": settings.parallel,
            "setup": list(settings.setup) or None,
            "stderr_to_stdout": True,
            "srun_args": [f"--cpus-per-task={cpus}"],  # from SLURM 22.05 on srun does not read it from the job
            "additional_parameters": {"requeue": True, "signal": f"USR1@{settings.notice}", **extra},
        }
        executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
        return executor


def _submitit() -> ModuleType:
    """The package. Its jobs are warned by SIGUSR1, as it reads from the environment that they get.

    It configures logging when it is imported, which closes all handlers that there are: absl's closes the stream that
    was standard error when absl was imported. So it is told not to.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    try:
        with _environment(SUBMITIT_LOG_LEVEL="NOCONFIG"):
            import submitit
    except ImportError as error:
        raise UserError("--launcher slurm needs submitit: pip install -e '.[slurm]'") from error
    return submitit


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _sbatch_words(error: Exception) -> str:
    """sbatch's own words in an error of submitit."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.removeprefix("sbatch: error: ") for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(said) or next((line for line in lines if line), type(error).__name__)
