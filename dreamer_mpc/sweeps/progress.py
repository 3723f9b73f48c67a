"""The progress of a sweep: a row for each run, and how far all of them are."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamer_mpc.report.console import new_table, print_table
from dreamer_mpc.report.display import LINE_EVERY_S, LiveDisplay
from dreamer_mpc.report.words import duration, plural, rate_in_words, return_in_words
from dreamer_mpc.sweeps.sweep import Entry
from dreamer_mpc.util.stop import Stop

COLUMNS = ("run", "state", "env steps", "env\nsteps/s", "train\nreturn", "eval\nreturn", "ETA")
SHOWN_FIRST = ("failed", "running", "waiting", "queued", "complete")
AROUND_TABLE = 8  # lines of a live table that are no runs


class SweepProgress(LiveDisplay):
    """Context manager that shows the progress of a sweep's runs: a live table, or lines where there is no terminal."""

    REFRESHES_PER_S = 2

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        stop: Stop | None = None,
    ):
        super().__init__(console, stop)
        self._entries, self._clock = entries, clock
        self._said, self._last_line = {}, clock()

    def _end(self) -> None:
        print_table(self.table(), self._console)

    def update(self) -> None:
        """Print the changes where there is no live table."""
        if self._is_live:
            return
        due = self._clock() - self._last_line >= LINE_EVERY_S
        self._last_line = self._clock() if due else self._last_line
        for entry in self._entries:
            said = (shown_state(entry), entry.starts)
            if said != self._said.get(entry.run.name) or (due and shown_state(entry) == "running"):
                self._said[entry.run.name] = said
                name, state, steps, rate, trained, evaluated, left = _row(entry)
                returns = f"train {trained}  eval {evaluated}"
                self.line(f"{name}: {state}  {steps} env steps  {rate} env steps/s  {returns}  ETA {left}")
        if due:
            self.line(total_line(self._entries))

    def _display(self) -> Table:
        return self.table(most=max(self._console.height - AROUND_TABLE, 1))

    def table(self, most: int | None = None) -> Table:
        """One row for each run, and all together below; of more than `most` runs the first by `SHOWN_FIRST`."""
        entries = list(self._entries)
        if most is not None and len(entries) > most:
            entries = sorted(entries, key=lambda entry: SHOWN_FIRST.index(shown_state(entry)))[:most]
        table = new_table()
        for i, name in enumerate(COLUMNS):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold", no_wrap=i > 1)
        for entry in entries:
            table.add_row(*map(Text, _row(entry)))
        left_out = len(self._entries) - len(entries)
        table.caption = Text(total_line(self._entries) + f"; {left_out} of them not shown" * bool(left_out))
        table.caption_justify = "left"
        return table


def total_line(entries: Sequence[Entry]) -> str:
    """How many runs are in which state, the share of their env steps that is done, and the time to their end.

    The time is that at the present rate of all runs together, and at least that of the slowest one.
    """
    states = Counter(map(shown_state, entries))
    done = sum(min(entry.standing.env_steps, entry.run.env_steps) for entry in entries)
    total = sum(entry.run.env_steps for entry in entries)
    running = [entry for entry in entries if shown_state(entry) == "running"]
    rates = {entry.run.name: entry.standing.env_steps_per_s or 0.0 for entry in running}
    lefts = [
        (entry.run.env_steps - entry.standing.env_steps) / rates[entry.run.name]
        for entry in running
        if rates[entry.run.name]
    ]
    failed = sum(entry.run.env_steps - entry.standing.env_steps for entry in entries if entry.state == "failed")
    rate = sum(rates.values())
    left = f"ETA {duration(max((total - done - failed) / rate, *lefts))}" if rate else "ETA -"
    names = ("complete", "running", "queued", "waiting", "failed")
    words = [f"{states[name]} {name}" for name in names if states[name]]
    percent = math.floor(1000 * done / max(total, 1)) / 10
    return f"{plural(len(entries), 'run')}: {', '.join(words)}; {percent:.1f} % of {total:,} env steps, {left}"


def shown_state(entry: Entry) -> str:
    """Its state in a word; a run that was started may still be queued."""
    return "queued" if entry.state == "running" and not entry.job.running else entry.state


def _row(entry: Entry) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    standing, total = entry.standing, entry.run.env_steps
    state = shown_state(entry)
    rate = standing.env_steps_per_s if state == "running" else None
    left = duration((total - standing.env_steps) / rate) if rate else "-"
    state += f", {entry.job.where}" if entry.state == "running" else ""
    state += f", start {entry.starts}" if entry.starts > 1 and entry.state != "complete" else ""
    state += f": {entry.reason}" if entry.reason and entry.state in ("waiting", "failed") else ""
    return (
        entry.run.name,
        state,
        f"{standing.env_steps:,}/{total:,}",
        rate_in_words(rate) if rate else "-",
        return_in_words(standing.train_return),
        return_in_words(standing.eval_return),
        left,
    )
