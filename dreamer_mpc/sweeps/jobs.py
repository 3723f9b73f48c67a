"""The jobs of a sweep that go on without its command, in `jobs.json` of its folder."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dreamer_mpc.util import slurm
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import write_text


@dataclass
class Started:
    """The job of a run whose end no command has seen."""

    job: str
    starts: int  # how often the run was started
    cancelled: bool = False  # by --cancel

    def __post_init__(self):
        if not slurm.JOB_ID.fullmatch(self.job):
            raise ValueError(f"{self.job[:40]!r} is no id of a job")


@dataclass
class Submission:
    """Jobs that are being submitted: written before, so that a killed command's are found by their name."""

    name: str
    runs: list[list[str]]  # of each job of the array
    starts: dict[str, int]


@dataclass
class Jobs:
    """What `jobs.json` holds; each change is written at once."""

    path: Path
    launcher: str
    runs: dict[str, Started] = field(default_factory=dict)  # by name of run
    submission: Submission | None = None

    @classmethod
    def open(cls, folder: Path, launcher: str) -> "Jobs":
        """Those of the sweep in `folder`, none if there is no file. UserError where it is not one of `launcher`."""
        path = folder / "jobs.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            runs = {str(name): Started(**job) for name, job in values["runs"].items()}
            submission = Submission(**values["submission"]) if values["submission"] else None
            written_by = values["launcher"]
        except FileNotFoundError:
            return cls(path, launcher)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"cannot read {path} ({error}): remove it when none of its jobs is in the queue") from error
        if written_by != launcher and (runs or submission):
            raise UserError(
                f"{path} has jobs of --launcher {written_by}: give that, or end them first with --launcher "
                f"{written_by} --cancel"
            )
        return cls(path, launcher, runs, submission)

    def submit(self, name: str, runs: Sequence[Sequence[str]], starts: dict[str, int]) -> None:
        """Before jobs are submitted under `name`."""
        self.submission = Submission(name, [list(names) for names in runs], starts)
        self._write()

    def submitted(self, ids: Sequence[str]) -> None:
        """After that: the job of each list of runs."""
        self.runs |= {
            name: Started(job, self.submission.starts[name])
            for job, names in zip(ids, self.submission.runs, strict=False)
            for name in names
        }
        self.submission = None
        self._write()

    def forget(self, name: str) -> None:
        """The end of the job of run `name` was seen."""
        if self.runs.pop(name, None):
            self._write()

    def cancelled(self, jobs: Sequence[str]) -> None:
        """`jobs` were asked to end by --cancel."""
        for started in self.runs.values():
            started.cancelled = started.cancelled or started.job in jobs
        self._write()

    def _write(self) -> None:
        values = {"launcher": self.launcher, "runs": {name: asdict(job) for name, job in self.runs.items()}}
        values["submission"] = asdict(self.submission) if self.submission else None
        try:
            write_text(self.path, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}): free space there") from error


def new_name() -> str:
    """A name for jobs, another one each time."""
    return f"dreamer-mpc-{secrets.token_hex(4)}"
