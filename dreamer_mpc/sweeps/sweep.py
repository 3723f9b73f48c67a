"""Many training runs: the state of each, and which to start next. Starting a run is left to a `Launcher`."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

from dreamer_mpc.sweeps.launcher import End, Job, Launcher
from dreamer_mpc.sweeps.run import Run, Standing
from dreamer_mpc.util.stop import INTERRUPTED, Stop, Stopped

STOP_S = 0.5  # seconds until a stop is noted
GOES_ON = "stopped: the same command goes on from here"
DETACHED = "detached: the jobs go on; the same command shows them again, and with --cancel it ends them"


class Entry:
    """A run of a sweep and its state."""

    def __init__(self, run: Run):
        self.run, self.standing = run, Standing(run)
        self.job: Job | None = None
        self.state: Literal["waiting", "running", "complete", "failed"] = "waiting"
        self.starts, self.reason = 0, ""
        self.standing.read()
        self.reached = self.standing.env_steps  # when its process ended the last time
        if self.standing.finished:
            self.state = "complete"


class Sweep:
    """Starts every run when there is room; restarts a failed run from its checkpoint, at most `restarts` times.

    Runs that an earlier command started, and that still go on, are not started but followed.
    """

    def __init__(self, runs: Sequence[Run], launcher: Launcher, restarts: int):
        self.entries = [Entry(run) for run in runs]
        self._stop: Stop | None = None
        self._launcher, self._restarts = launcher, restarts
        found = launcher.find(runs)
        for entry in self.entries:
            if entry.run.name in found:
                entry.job, entry.starts = found[entry.run.name]
                entry.state = "running"

    @property
    def failed(self) -> list[Entry]:
        """Runs that failed too often."""
        return [entry for entry in self.entries if entry.state == "failed"]

    def work(self, stop: Stop, show: Callable[[], None]) -> None:
        """Work until no run is left; `show` is called whenever the state of a run may have changed.

        When `stop` requests it, `Stopped` is raised; runs that cannot go on alone save and end before that, and
        KeyboardInterrupt kills them at once.
        """
        self._stop, lasting = stop, self._launcher.lasting
        try:
            while any(entry.state in ("waiting", "running") for entry in self.entries):
                stop.check(DETACHED if lasting else GOES_ON)
                self._advance()
                show()
                self._pause(stop)
        except Stopped:
            for entry in [] if lasting else self._running():
                entry.job.stop()
            while self._running() and not lasting:
                self._advance(start=False)
                show()
                time.sleep(STOP_S if self._launcher.poll_s else 0)
            raise
        finally:
            for entry in [] if lasting else self._running():
                entry.job.kill()

    def _pause(self, stop: Stop) -> None:
        """Wait for the next look, or for a stop."""
        end = time.monotonic() + self._launcher.poll_s
        while not stop.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, STOP_S))

    def _stopping(self) -> bool:
        """Whether this command ends its runs; a signal may have reached them first."""
        return self._stop is not None and self._stop.requested

    def _running(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.state == "running"]

    def _advance(self, start: bool = True) -> None:
        for entry in self._running():
            end = entry.job.poll()  # before the metrics, which then hold its last records
            entry.standing.read()
            if end is not None:
                self._end(entry, end)
        waiting = [entry for entry in self.entries if entry.state == "waiting"] if start else []
        if not waiting:
            return
        jobs = self._launcher.start([entry.run for entry in waiting], [entry.starts + 1 for entry in waiting])
        for entry, job in zip(waiting, jobs, strict=False):
            entry.job, entry.state, entry.starts = job, "running", entry.starts + 1

    def _end(self, entry: Entry, end: End) -> None:
        """Handle a run that ended: it is complete, failed, or starts again.

        One that ended with 0, or by Ctrl-C, before the run was complete was stopped from outside if it was asked to, or
        had got further than before; otherwise something in it ended it, and would do so for ever.
        """
        self._launcher.forget(entry.run)
        if end.code in (0, None) and entry.standing.finished:
            entry.state = "complete"
            return
        further, entry.reached = entry.standing.env_steps > entry.reached, entry.standing.env_steps
        if end.code in (0, INTERRUPTED) and (end.asked or self._stopping() or further):
            entry.state = "waiting"
            return
        early = "its process ended with exit code 0 before the run was complete" if end.code == 0 else ""
        entry.reason = (
            end.said or early or entry.run.last_line().removeprefix("error: ") or f"exit code {end.code}"
        )
        # A run that never began would fail in the same way if it were started again.
        hopeless = not end.again or (end.code == 2 and not entry.run.folder.config.exists())
        entry.state = "failed" if hopeless or entry.starts > self._restarts else "waiting"
