"""One training of a sweep, and its progress. Imports no torch: jobs on a cluster start runs with this."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.files import from_json
from dreamer_mpc.util.program import start_words

RATE_RECORDS = 20
GIVEN_UP = "given up after "  # begins the last line of the output of a run that is not started again


@dataclass(frozen=True)
class Run:
    """One training of a sweep."""

    folder: RunFolder
    env_steps: int  # at its end
    device: str
    args: tuple[str, ...]  # arguments of run.py train
    changes: tuple[str, ...] = ()  # options that it is resumed with, where they are other ones than it had

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.name

    @property
    def log(self) -> Path:
        """The file with everything that it printed."""
        return self.folder.path.parent / "logs" / f"{self.name}.txt"

    def command(self) -> list[str]:
        """The command that starts it, or resumes it from its checkpoint."""
        args = self.args
        if self.folder.config.exists():
            args = ("--resume", str(self.folder.path), "--env-steps", str(self.env_steps), *self.changes)
        return [*start_words(), "train", *args]

    def last_line(self) -> str:
        """What it printed last; "" if nothing."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError as error:
            return f"what it printed cannot be read: {error.strerror}"
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


class Standing:
    """Progress of a run, from its metrics; only new lines are read each time."""

    def __init__(self, run: Run):
        self._path, self._total = run.folder.metrics, run.env_steps
        self._forget()

    def _forget(self) -> None:
        self._offset, self.env_steps, self.finished = 0, 0, False
        self.train_return: float | None = None
        self.eval_return: float | None = None
        self._points = deque(maxlen=RATE_RECORDS)  # (seconds, env steps)

    def read(self) -> None:
        """Read the lines written since the last call."""
        try:
            with self._path.open("rb") as file:  # on NFS, opening a file shows its present content
                if file.seek(0, 2) < self._offset:  # a resumed run removes the records after its checkpoint
                    self._forget()
                file.seek(self._offset)
                lines = file.read().split(b"\n")
        except OSError:  # no metrics yet
            return
        for line in lines[:-1]:  # text after the last newline is an incomplete line
            self._offset += len(line) + 1
            try:
                self._note(from_json(line))
            except (ValueError, KeyError, TypeError, OverflowError):
                continue

    def _note(self, record: dict[str, Any]) -> None:
        evaluated, env_steps = "eval/return_mean" in record, int(record["env_steps"])
        if not evaluated or env_steps >= self.env_steps:  # else it was played beside training that went on
            self.env_steps = env_steps
            self._points.append((float(record["time_s"]), env_steps))
        self.train_return = record.get("train/return", self.train_return)
        self.eval_return = record.get("eval/return_mean", self.eval_return)
        self.finished = evaluated and env_steps >= self._total

    @property
    def env_steps_per_s(self) -> float | None:
        """Env steps per second over the last records, by the run's own clock."""
        if len(self._points) < 2:
            return None
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start else None
