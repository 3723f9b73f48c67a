"""The progress of a training run: env steps, rates, returns and the time left."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import SupportsFloat

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreamer_mpc.report.display import LINE_EVERY_S, LiveDisplay
from dreamer_mpc.report.words import duration, rate_in_words, return_in_words
from dreamer_mpc.util.stop import Stop

WINDOW_S = 60.0
SEEDING = "seed episodes"  # the phase of random actions


class Progress(LiveDisplay):
    """Context manager that shows the progress of a run.

    Rates cover the last minute, or the last tenth of the run, and at least one whole turn: env steps pause for an
    evaluation and, with `alternating`, for the updates of a round. Then the ETA is computed from whole turns alone,
    and not said before there was one: within a burst of updates or steps, a rate is wrong by orders of magnitude.
    """

    def __init__(
        self,
        total_env_steps: int,
        start_env_steps: int = 0,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        stop: Stop | None = None,
        alternating: bool = False,
    ):
        super().__init__(console, stop)
        self._clock, self._alternating, self._total = clock, alternating, total_env_steps
        self._env_steps, self._updates, self._phase = start_env_steps, 0, ""
        self._train_return = self._eval_return = None
        self._start = self._last_line = clock()
        self._printed = start_env_steps
        self._points = deque()  # (seconds, env steps, updates)
        self._turns = deque()  # the points at which env steps went on after a pause
        self._paused = False  # no env steps between the last two points

    def __enter__(self):
        self._start = self._last_line = self._clock()
        return super().__enter__()

    def _end(self) -> None:
        if self._env_steps != self._printed:
            self._plain_line()

    def update(
        self,
        env_steps: int,
        updates: int,
        phase: str = "",
        train_return: SupportsFloat | None = None,
        eval_return: SupportsFloat | None = None,
    ) -> None:
        """Update the display. Values that are not given stay; pass `eval_return` when an evaluation ends."""
        now = self._clock()
        if self._phase == SEEDING and phase not in ("", SEEDING):
            self._points.clear()
            self._turns.clear()
        self._env_steps, self._updates, self._phase = env_steps, updates, phase or self._phase
        self._train_return = self._train_return if train_return is None else train_return
        self._eval_return = self._eval_return if eval_return is None else eval_return
        self._remember(now)
        if not self._is_live and (eval_return is not None or now - self._last_line >= LINE_EVERY_S):
            self._plain_line()

    def rates(self) -> tuple[float, float]:
        """Env steps per second and updates per second, over the sliding window."""
        if not self._points:
            return 0.0, 0.0
        seconds, env_steps, updates = self._points[0]
        elapsed = self._clock() - seconds
        if elapsed <= 0:
            return 0.0, 0.0
        return (self._env_steps - env_steps) / elapsed, (self._updates - updates) / elapsed

    def _remember(self, now):
        points, turns = self._points, self._turns
        if points and now - points[-1][0] < 0.5:
            return
        moved = bool(points) and self._env_steps > points[-1][1]
        if moved and self._paused:
            turns.append(points[-1])
            if len(turns) == 1 and not self._alternating:  # updates before the first step are made once in a run
                self._points = points = deque(turns)
        self._paused = bool(points) and not moved
        points.append((now, self._env_steps, self._updates))
        edge = now - max(WINDOW_S, 0.1 * (now - self._start))
        while len(turns) > 2 and turns[1][0] <= edge:
            turns.popleft()
        if len(turns) > 1:
            edge = min(edge, turns[0][0])
        elif turns or self._paused:
            return
        while len(points) > 1 and points[1][0] <= edge:
            points.popleft()

    def _seconds_left(self):
        """None: not known yet."""
        rate, turns = self.rates()[0], self._turns
        if self._alternating and (turns or self._paused):
            if len(turns) < 2:
                return None
            rate = (turns[-1][1] - turns[0][1]) / (turns[-1][0] - turns[0][0])
        return max(self._total - self._env_steps, 0) / rate if rate > 0 else None

    def _fields(self):
        env_rate, update_rate = self.rates()
        left = self._seconds_left()
        return {
            "env steps/s": rate_in_words(env_rate),
            "updates/s": rate_in_words(update_rate),
            "train": return_in_words(self._train_return),
            "eval": return_in_words(self._eval_return),
            "elapsed": duration(self._clock() - self._start),
            "ETA": "-" if left is None else duration(left),
        }

    def _plain_line(self):
        self._last_line, self._printed = self._clock(), self._env_steps
        fields = self._fields()
        words = [f"env steps {self._env_steps:,}/{self._total:,} ({self._percent()})", self._phase]
        words += [f"{fields.pop(name)} {name}" for name in ("env steps/s", "updates/s")]
        words += [f"{name} {value}" for name, value in fields.items()]
        self.line("  ".join(word for word in words if word))

    def _percent(self):
        # Rounded down: 100 % means done.
        return f"{math.floor(1000 * min(self._env_steps / max(self._total, 1), 1)) / 10:.1f} %"

    def _display(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        # Of fixed width, so that a new phase does not move the bar.
        grid.add_column(width=13, no_wrap=True, overflow="ellipsis")
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_row(Text(self._phase or "start", style="bold cyan"), self._bar())
        show = self._fields()
        grid.add_row("", f"{show['env steps/s']} env steps/s   {show['updates/s']} updates/s   ETA {show['ETA']}")
        grid.add_row("", f"train return {show['train']}   eval return {show['eval']}   elapsed {show['elapsed']}")
        return grid

    def _bar(self):
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_column(justify="right", no_wrap=True)
        counts = Text.assemble((f"{self._env_steps:,}", "bold"), (f"/{self._total:,} env steps", "dim"))
        done = ProgressBar(total=max(self._total, 1), completed=min(self._env_steps, self._total))
        row.add_row(done, self._percent(), counts)
        return row
