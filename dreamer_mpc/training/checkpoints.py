"""The checkpoints of a training run: when to write them, their cost, and which one is the best."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamer_mpc.report.words import plural
from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, drop_snapshots, keep_best, keep_snapshot
from dreamer_mpc.runs.saving import Saver
from dreamer_mpc.util.errors import UserError

Position = tuple[Any, ...]  # env steps, and everything else that changes the content of a checkpoint


class Checkpoints:
    """Saves a run with `saver` to `folder`. A disk error does not stop training.

    `position` is the state of the run that needs no saving now. `say` takes a line for the user.
    """

    def __init__(self, folder: Path, saver: Saver, position: Position, say: Callable[[str], None]):
        self.unsaved = False  # the last checkpoint could not be written
        self._folder, self._saver, self._say = folder, saver, say
        self._saved_at, self._tried_at = position, time.monotonic()
        self._number, self._seconds = 0, 0.0  # counted in this process

    def save(
        self, position: Position, checkpoint: Callable[[], Checkpoint], say: bool = False, last: bool = False
    ) -> None:
        """Write a checkpoint if the run has changed since the last one.

        On a disk error a line is printed and training goes on; with `last` there is no later try, so it is a UserError.
        With `say`, a line reports success.
        """
        if position == self._saved_at and not self.unsaved:
            return
        self._tried_at = time.monotonic()
        content = checkpoint()
        try:
            self._saver.save(content, last)
        except UserError as error:
            self._refused(error, position, last)
            return
        evaluating = content.training["evaluating"]
        drop_snapshots(self._folder, evaluating and evaluating["env_steps"])
        self._number += 1
        self._seconds += self.seconds_since_try()
        if say or self.unsaved:
            self._say(f"checkpoint {checkpoint_path(self._folder, position[0])}")
        self.unsaved, self._saved_at = False, position

    def seconds_since_try(self) -> float:
        """Seconds since the last save began, or since the process started."""
        return time.monotonic() - self._tried_at

    def last(self) -> Path | None:
        """The file of the last checkpoint; None where it could not be written."""
        return None if self.unsaved else checkpoint_path(self._folder, self._saved_at[0])

    def snapshot(self) -> Path | None:
        """A file with the last checkpoint that stays until a later one does not wait for its evaluation; None: none.

        Its own file may be replaced before, by updates without a step between, or removed as one of too many.
        """
        if self.unsaved:
            return None
        try:
            return keep_snapshot(self._folder, self._saved_at[0])
        except OSError as error:
            self._say(f"no snapshot for an evaluation beside training ({error.strerror}): it is played now")
            return None

    def keep_best(self, path: Path | None, mean_return: float, best: float | None) -> bool:
        """Keep the checkpoint `path`, if there is one, if its return is above `best`; returns whether it was kept."""
        best = -math.inf if best is None else best
        if path is None or not mean_return > best:
            return False
        try:
            keep_best(self._folder, path)
        except (OSError, UserError) as error:
            self._say(f"the best checkpoint so far is not kept: {error}")
            return False
        return True

    def cost(self, seconds: float) -> str:
        """The time spent on checkpoints in a run of `seconds`, in words."""
        share = self._seconds / seconds
        return f"{plural(self._number, 'checkpoint')} took {self._seconds:.1f} s, {share:.1%} of the run"

    def _refused(self, error: UserError, position: Position, last: bool) -> None:
        if last:
            unsaved = f"{self._saved_at[0]:,} to {position[0]:,}"
            raise UserError(f"{error}; env steps {unsaved} are not saved") from error
        if not self.unsaved:
            self._say(f"{error}; training goes on, the next round tries again")
        self.unsaved = True
