"""Many training runs: the list of them, the progress of each, and which to start next.

Starting a run is left to a `Launcher` (`launch.py`: processes on this machine).
"""

import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from dreamer_mpc.config import (
    Config,
    SweepConfig,
    check_start,
    differences,
    flag_names,
    load_presets,
    load_saved,
    option,
    parse,
    planner_names,
    resolve,
)
from dreamer_mpc.runs.folder import RunFolder, run_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.stop import Stop, Stopped

PROGRAM = Path(__file__).resolve().parents[2] / "run.py"
OWN = ("env", "planner", "seed", "run-dir", "resume", "overwrite")  # options that a sweep sets for each run, or forbids
MAY_DIFFER = (  # of an existing run
    "env_steps", "run_dir", "resume", "profile", "device", "logger", "config", "eval.beside",
)  # fmt: skip
RATE_RECORDS = 20
POLL_S = 0.5


@runtime_checkable
class Job(Protocol):
    """A run that was started."""

    where: str  # where it runs, for the user

    def poll(self) -> int | None:
        """Its exit code, negative after a signal; None while it runs."""

    def stop(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """Kill it."""


@runtime_checkable
class Launcher(Protocol):
    """Starts runs."""

    def start(self, command: Sequence[str], log: Path) -> Job | None:
        """Start `command`, with its output appended to `log`; None if there is no room for it now."""


@dataclass(frozen=True)
class Run:
    """One training of a sweep."""

    config: Config
    args: tuple[str, ...]  # arguments of run.py train

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.name

    @property
    def folder(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(Path(self.config.run_dir))

    def command(self) -> list[str]:
        """The command that starts it, or resumes it from its checkpoint."""
        args = self.args
        if self.folder.config.exists():
            args = ("--resume", str(self.folder.path), "--env-steps", str(self.config.env_steps), *self._changes())
        return [sys.executable, str(PROGRAM), "train", *args]

    def _changes(self) -> list[str]:
        """The options that an existing run may be resumed with, where they are other ones than it had."""
        saved = load_presets(str(self.folder.config))
        names = [name for name in ("device", "logger") if getattr(saved, name) != getattr(self.config, name)]
        given = [word for name in names for word in (f"--{name}", getattr(self.config, name))]
        return [*given, *["--profile"] * self.config.profile]


def list_runs(sweep: SweepConfig, rest: Sequence[str]) -> list[Run]:
    """One run for each environment, planner and seed, with the options `rest`. UserError where one is invalid."""
    for name in OWN:
        if name in flag_names(rest):
            raise UserError(f"--{name} does not go with sweep, which sets it for each run: see run.py sweep --help")
    default = load_presets(option(rest, "config") or "default")
    runs = []
    for env, planner, seed in itertools.product(_words(sweep.envs), planner_names(sweep.planners), _words(sweep.seeds)):
        folder = Path(sweep.out) / run_name(env, planner, seed)
        own = ("--env", env, "--planner", planner, "--seed", seed, "--run-dir", str(folder))
        config = resolve(parse(Config, [*rest, *own], default, prog="run.py sweep"))
        check_start(config)
        if config.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {config.device}: a sweep gives each run its GPU; leave it out, or say cpu")
        run = Run(config, (*rest, *own))
        if run.folder.config.exists():
            _check_same(run)
        runs.append(run)
    return runs


def _words(text: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{text!r} names nothing: give one or more, joined by commas")
    return words


def _check_same(run: Run) -> None:
    """UserError where the folder holds a run with other settings: the sweep would continue it with those."""
    saved = load_saved(run.folder.config)
    other = [line for line in differences(saved, run.config) if line.partition(":")[0] not in MAY_DIFFER]
    if other:
        raise UserError(f"{run.folder.path} has a run with other settings ({other[0]}): choose another --out")


class Standing:
    """Progress of a run, from its metrics; only new lines are read each time."""

    def __init__(self, run: Run):
        self._path, self._total = run.folder.metrics, run.config.env_steps
        self._forget()

    def _forget(self) -> None:
        self._offset, self.env_steps, self.finished = 0, 0, False
        self.train_return: float | None = None
        self.eval_return: float | None = None
        self._points = deque(maxlen=RATE_RECORDS)  # (seconds, env steps)

    def read(self) -> None:
        """Read the lines written since the last call."""
        try:
            if self._path.stat().st_size < self._offset:  # a resumed run removes the records after its checkpoint
                self._forget()
            with self._path.open("rb") as file:
                file.seek(self._offset)
                lines = file.read().split(b"\n")
        except OSError:  # no metrics yet
            return
        for line in lines[:-1]:  # text after the last newline is an incomplete line
            self._offset += len(line) + 1
            try:
                self._note(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue

    def _note(self, record: dict[str, Any]) -> None:
        evaluated = "eval/return_mean" in record
        if not evaluated or record["env_steps"] >= self.env_steps:  # else it was played beside training that went on
            self.env_steps = record["env_steps"]
            self._points.append((record["time_s"], self.env_steps))
        self.train_return = record.get("train/return", self.train_return)
        self.eval_return = record.get("eval/return_mean", self.eval_return)
        self.finished = evaluated and record["env_steps"] >= self._total

    @property
    def env_steps_per_s(self) -> float | None:
        """Env steps per second over the last records, by the run's own clock."""
        if len(self._points) < 2:
            return None
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start else None


class Entry:
    """A run of a sweep and its state."""

    def __init__(self, run: Run):
        self.run, self.standing = run, Standing(run)
        self.job: Job | None = None
        self.state: Literal["waiting", "running", "complete", "failed"] = "waiting"
        self.starts, self.reason = 0, ""
        self.standing.read()
        if self.standing.finished:
            self.state = "complete"


class Sweep:
    """Starts every run when there is room; restarts a failed run from its checkpoint, at most `restarts` times."""

    def __init__(self, runs: Sequence[Run], launcher: Launcher, logs: Path, restarts: int):
        self.entries = [Entry(run) for run in runs]
        self._launcher, self._logs, self._restarts = launcher, logs, restarts

    @property
    def failed(self) -> list[Entry]:
        """Runs that failed too often."""
        return [entry for entry in self.entries if entry.state == "failed"]

    def log(self, entry: Entry) -> Path:
        """The file with everything that a run printed."""
        return self._logs / f"{entry.run.name}.txt"

    def work(self, stop: Stop, show: Callable[[], None]) -> None:
        """Work until no run is left; `show` is called whenever the state of a run may have changed.

        When `stop` requests it, the runs save and end, and `Stopped` is raised; KeyboardInterrupt kills them at once.
        """
        try:
            while any(entry.state in ("waiting", "running") for entry in self.entries):
                stop.check("stopped: the same command goes on from here")
                self._advance()
                show()
                time.sleep(POLL_S)
        except Stopped:
            for entry in self._running():
                entry.job.stop()
            while self._running():
                self._advance(start=False)
                show()
                time.sleep(POLL_S)
            raise
        finally:
            for entry in self._running():
                entry.job.kill()

    def _running(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == "running"]

    def _advance(self, start: bool = True) -> None:
        for entry in self._running():
            entry.standing.read()
            code = entry.job.poll()
            if code is not None:
                entry.standing.read()  # its last records
                self._end(entry, code)
        for entry in self.entries if start else []:
            if entry.state == "waiting":
                entry.job = self._launcher.start(entry.run.command(), self.log(entry))
                if entry.job is None:
                    break
                entry.state, entry.starts = "running", entry.starts + 1

    def _end(self, entry: Entry, code: int) -> None:
        """Handle a process that ended: the run is done, stopped, or to be started again."""
        if code == 0:
            entry.state = "complete" if entry.standing.finished else "waiting"
            return
        lines = [line for line in self.log(entry).read_text(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip() if code > 0 and lines else f"killed by signal {-code}"
        entry.reason = said.removeprefix("error: ")
        # A run that never began would fail in the same way if it were started again.
        hopeless = code == 2 and not entry.run.folder.config.exists()
        entry.state = "failed" if hopeless or entry.starts > self._restarts else "waiting"
