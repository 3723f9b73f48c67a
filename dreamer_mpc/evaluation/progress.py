"""The progress of episodes that are played under one planner after the other."""

import time
from collections.abc import Callable, Iterable, Sequence

from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from dreamer_mpc.report.display import LINE_EVERY_S, Lines
from dreamer_mpc.report.words import duration


class EpisodesProgress(Lines):
    """Context manager that shows how many episodes are played of how many, by which planner, and the time left.

    `steps` are the agent steps of an episode, as far as known: without them the bar moves with whole episodes until one
    has ended. The time left takes the planners to come to be as fast as the present one.
    """

    def __init__(
        self,
        episodes: int,
        done: int = 0,
        *,
        steps: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(console)
        self._clock, self._label = clock, ""
        self._started = self._last_line = clock()
        self._pace: float | None = None  # seconds of an episode
        self._longest = steps or 0  # agent steps of the longest episode so far, an estimate of the others' length
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        columns = *columns, TextColumn("ETA {task.fields[left]}")
        self._bar = bars.Progress(*columns, console=self._console, disable=not self._is_live)
        self._task = self._bar.add_task("", total=episodes, completed=done, left="-")
        self._episodes, self._total = done, episodes
        if done:
            self.line(f"{done} of {episodes} episodes are there already")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def start(self, label: str, first: int, count: int, rows: int | None = None) -> Callable[[int, int], None]:
        """`count` episodes from number `first` are now played under `label`, `rows` at a time, by default all at once.

        Returns a callback for their step.
        """
        words = f"{label}, episode {first + 1}" + (f" to {first + count}" if count > 1 else "")
        self._label, self._started, self._last_line = words, self._clock(), self._clock()
        rounds = -(-count // (rows or count))

        def on_step(step: int, _: int = 0) -> None:
            # MofNComplete shows whole episodes; the bar moves in between once a length is known.
            share = min(step / (rounds * self._longest), 0.99) if self._longest else 0.0
            done = self._episodes + count * share
            left = self._left(done, count * share)
            self._bar.update(self._task, description=words, completed=done, left=left)
            if not self._is_live and self._clock() - self._last_line >= LINE_EVERY_S:
                self._last_line = self._clock()
                self.line(f"{words}: step {step}, {int(done)} of {self._total} episodes, ETA {left}")

        on_step(0)
        return on_step

    def _left(self, done: float, played: float) -> str:
        """The time left after `done` episodes, `played` of them since this start; a dash while that is not known."""
        if played > 0:
            self._pace = (self._clock() - self._started) / played
        return "-" if self._pace is None else duration(self._pace * (self._total - done))

    def finish(self, returns: Iterable[float], lengths: Sequence[int], counted: bool = True) -> None:
        """The episodes that were started have ended; `counted` is false for those played again for a video."""
        self._longest = max(self._longest, *lengths)
        self._episodes += len(lengths) if counted else 0
        self._bar.update(self._task, completed=self._episodes, left=self._left(self._episodes, len(lengths)))
        mean = sum(map(float, returns)) / len(lengths)
        self.line(f"{self._label}: mean return {mean:.1f} in {duration(self._clock() - self._started)}")


def lines_of_evaluation(
    say: Callable[[str], None], planner: str, episodes: int, rows: int, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """A callback for the steps of an evaluation of a run: while it lasts, `say` gets a line from time to time.

    It plays `episodes` under `planner`, `rows` at a time.
    """
    last = clock()

    def on_step(step: int, ended: int) -> None:
        nonlocal last
        if clock() - last < LINE_EVERY_S:
            return
        last = clock()
        first, most = min(ended, episodes - 1) + 1, min(ended + rows, episodes)
        playing = f"episode {first}" + (f" to {most}" if most > first else "")
        say(f"evaluating {planner}: {playing} of {episodes}, step {step:,} of the evaluation")

    return on_step
