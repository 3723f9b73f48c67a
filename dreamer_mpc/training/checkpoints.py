"""The checkpoints of a training: when one was written, what they cost, which one is the best."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamer_mpc.report.progress import plural
from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, keep_best
from dreamer_mpc.runs.saving import Saver
from dreamer_mpc.util.errors import UserError

Position = tuple[Any, ...]  # env steps, and all that changes with what a checkpoint holds


class Checkpoints:
    """Saves a run by `saver`, to `folder`. A disk that refuses one costs no more than that: training goes on.

    The run stands at `position`, which is saved or has nothing to save. `say` takes a line for the user.
    """

    def __init__(self, folder: Path, saver: Saver, position: Position, say: Callable[[str], None]):
        self.unsaved = False  # the disk refused the last one
        self._folder, self._saver, self._say = folder, saver, say
        self._saved_at, self._tried_at = position, time.monotonic()
        self._number, self._seconds = 0, 0.0  # of this process

    def save(
        self, position: Position, checkpoint: Callable[[], Checkpoint], say: bool = False, last: bool = False
    ) -> None:
        """Write a checkpoint if anything happened since the last one.

        Where the disk refuses it, that is said, and training goes on; UserError if there is no more time: it was the
        `last`. `say` that it was written.
        """
        if position == self._saved_at and not self.unsaved:
            return
        self._tried_at = time.monotonic()
        content = checkpoint()
        try:
            self._saver.save(content)
        except UserError as error:
            self._refused(error, position, last)
            return
        self._number += 1
        self._seconds += self.seconds_since_try()
        if say or self.unsaved:
            self._say(f"checkpoint {checkpoint_path(self._folder, position[0])}")
        self.unsaved, self._saved_at = False, position

    def seconds_since_try(self) -> float:
        """Since a save was last begun, or this process."""
        return time.monotonic() - self._tried_at

    def keep_best(self, env_steps: int, mean_return: float, best: float | None) -> bool:
        """Keep the checkpoint that was written at `env_steps`, of that return, if above `best`; whether it was kept."""
        best = -math.inf if best is None else best
        if self.unsaved or not mean_return > best:
            return False
        try:
            keep_best(self._folder, checkpoint_path(self._folder, env_steps))
        except (OSError, UserError) as error:
            self._say(f"the best checkpoint so far is not kept: {error}")
            return False
        return True

    def cost(self, seconds: float) -> str:
        """In words, what they took of a run of `seconds`."""
        share = self._seconds / seconds
        return f"{plural(self._number, 'checkpoint')} took {self._seconds:.1f} s, {share:.1%} of the run"

    def _refused(self, error: UserError, position: Position, last: bool) -> None:
        if last:
            unsaved = f"{self._saved_at[0]:,} to {position[0]:,}"
            raise UserError(f"{error}; env steps {unsaved} are not saved") from error
        if not self.unsaved:
            self._say(f"{error}; training goes on, the next round tries again")
        self.unsaved = True
