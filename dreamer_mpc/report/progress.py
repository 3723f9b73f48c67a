"""Progress displays: a live bar or table on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsFloat

from rich import box
from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dreamer_mpc.report.rows import Row
from dreamer_mpc.util.intervals import FEWEST
from dreamer_mpc.util.stop import Stop

WINDOW_S = 60.0
LINE_EVERY_S = 30.0
SEEDING = "seed episodes"  # the phase of random actions
MOST_WIDTH = 1000  # characters of a table


def table_console(width: int) -> Console:
    """The console for a table. A file or pipe has no width: `width` keeps each label on one line there."""
    return Console(width=None if sys.stdout.isatty() else width)


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table with all its letters: a terminal that is too narrow for them breaks the lines itself."""
    console = console or Console()
    before, wide = console.width, console.options.update(width=MOST_WIDTH)
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", False
    console.width = max(before, Measurement.get(console, wide, table).minimum)  # it prints nothing wider than itself
    console.print(table)
    console.width = before


def is_live(console: Console) -> bool:
    """Whether a display can be drawn again and again: not in a file, even where FORCE_COLOR asks for colours there."""
    return console.is_terminal and not console.is_dumb_terminal and (console.file.isatty() or not _forced())


def _forced() -> bool:
    return any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


class _Lines:
    """Prints lines above a live bar or table."""

    _console: Console
    _live: Live | None
    _stop: Stop | None = None  # its notice belongs to the live display, which would overwrite it

    def _show_live(self, shown: bool) -> None:
        """Begin or end the live display; the notice of a stop stays on the screen below its last state."""
        if shown:
            self._live.start()
        else:
            self._live.stop()
        if self._stop:
            self._stop.displayed = shown

    def _with_notice(self, display: Table) -> RenderableType:
        notice = self._stop.notice if self._stop else ""
        return Group(display, Text(notice, style="bold yellow")) if notice else display

    def line(self, text: str) -> None:
        """Print a line above the live display."""
        self._console.print(Text(text), soft_wrap=True)


class Progress(_Lines):
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
        self._console = console or Console()
        self._clock, self._stop, self._alternating = clock, stop, alternating
        self._total = total_env_steps
        self._env_steps, self._updates, self._phase = start_env_steps, 0, ""
        self._train_return = self._eval_return = None
        self._start = self._last_line = clock()
        self._printed = start_env_steps
        self._points = deque()  # (seconds, env steps, updates)
        self._turns = deque()  # the points at which env steps went on after a pause
        self._paused = False  # no env steps between the last two points
        self._live = (
            Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
            if is_live(self._console)
            else None
        )

    def __enter__(self):
        self._start = self._last_line = self._clock()
        if self._live:
            self._show_live(True)
        return self

    def __exit__(self, *error):
        if self._live:
            self._show_live(False)
        elif self._env_steps != self._printed:
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
        if not self._live and (eval_return is not None or now - self._last_line >= LINE_EVERY_S):
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
            "env steps/s": _rate(env_rate),
            "updates/s": _rate(update_rate),
            "train": _return(self._train_return),
            "eval": _return(self._eval_return),
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

    def _render(self):
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(
            width=13, no_wrap=True, overflow="ellipsis"
        )  # fixed width, so that a new phase does not move the bar
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_row(Text(self._phase or "start", style="bold cyan"), self._bar())
        show = self._fields()
        grid.add_row(
            "", f"{show['env steps/s']} env steps/s   {show['updates/s']} updates/s   ETA {show['ETA']}"
        )
        grid.add_row(
            "", f"train return {show['train']}   eval return {show['eval']}   elapsed {show['elapsed']}"
        )
        return self._with_notice(grid)

    def _bar(self):
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_column(justify="right", no_wrap=True)
        counts = Text.assemble((f"{self._env_steps:,}", "bold"), (f"/{self._total:,} env steps", "dim"))
        done = ProgressBar(total=max(self._total, 1), completed=min(self._env_steps, self._total))
        row.add_row(done, self._percent(), counts)
        return row


def results_table(rows: list[Row], subject: str) -> Table:
    """The table that `eval` prints, one row for each planner, titled by what was played; None is a dash."""
    # Text: rich would parse [...] in a folder's name as markup.
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = Text(subject), "left"
    table.add_column("planner", no_wrap=True)
    for name in ("return\nmean ± std", "95 %\ninterval", "ms per\naction", "model\nevals", "failed of\nepisodes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["planner"]),
            mean_and_spread(row["return_mean"], row["return_std"], row["episodes"]),
            _interval(row["return_low"], row["return_high"], ".1f"),
            f"{row['ms_per_action']:.2f}",
            f"{row['model_evaluations']:,.0f}",
            f"{_count(row['failed_episodes'])} of {row['episodes']:d}",
        )
    table.caption_justify = "left"
    table.caption = (
        f"95 % intervals: Student's t, from {FEWEST} episodes on; failed: far below the others. "
        f"±: standard deviation over episodes. "
        f"ms per action: one call of observing and planning, for {plural(rows[0]['num_envs'], 'environment')} at once."
    )
    return table


def mean_and_spread(mean: float, std: float, episodes: int) -> str:
    """A return with the standard deviation over the episodes, which one episode does not have."""
    return f"{mean:.1f} ± {std:.1f}" if episodes > 1 else f"{mean:.1f}"


def plural(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: SupportsFloat) -> str:
    """`0:12:33`, or `2d 03:04` for a day or more."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}" if days else f"{hours}:{minute:02d}:{second:02d}"


def _rate(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _return(value):
    return "-" if value is None else f"{float(value):.1f}"


class EpisodesProgress(_Lines):
    """Context manager that shows how many episodes are played of how many, by which planner, and the time left.

    `steps` are the agent steps of an episode, as far as known: without them the bar moves with whole episodes until one
    has ended. The time left takes the planners to come to be as fast as the present one.
    """

    def __init__(self, episodes: int, done: int = 0, *, steps: int | None = None, console=None, clock=time.monotonic):
        self._console = console or Console()
        self._clock, self._label = clock, ""
        self._started = self._last_line = clock()
        self._pace: float | None = None  # seconds of an episode
        self._longest = steps or 0  # agent steps of the longest episode so far, an estimate of the others' length
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        columns = *columns, TextColumn("ETA {task.fields[left]}")
        self._bar = bars.Progress(*columns, console=self._console, disable=not is_live(self._console))
        self._task = self._bar.add_task("", total=episodes, completed=done, left="-")
        self._episodes, self._total = done, episodes
        if done:
            self.line(f"{done} of {episodes} episodes are there already")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def start(self, label: str, first: int, count: int, rows: int | None = None) -> Callable[[int], None]:
        """`count` episodes from number `first` are now played under `label`, `rows` at a time, by default all at once.

        Returns a callback for their step.
        """
        words = f"{label}, episode {first + 1}" + (f" to {first + count}" if count > 1 else "")
        self._label, self._started, self._last_line = words, self._clock(), self._clock()
        rounds = -(-count // (rows or count))

        def on_step(step: int) -> None:
            # MofNComplete shows whole episodes; the bar moves in between once a length is known.
            share = min(step / (rounds * self._longest), 0.99) if self._longest else 0.0
            done = self._episodes + count * share
            left = self._left(done, count * share)
            self._bar.update(self._task, description=words, completed=done, left=left)
            if not is_live(self._console) and self._clock() - self._last_line >= LINE_EVERY_S:
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


def comparison_table(rows: list[Row], subject: str = "") -> Table:
    """The table that `compare` prints, one row for each planner."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = Text(subject) if subject else None, "left"
    table.add_column("planner", overflow="fold")
    columns = ("return\n[95 %]", "failed", "difference to\npolicy [95 %]", "ms per\naction", "model\nevals")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["planner"]),
            _with_interval(row, "return"),
            _count(row["failed_episodes"]),
            _with_interval(row, "difference", sign="+", mark="* " if decided(row) else ""),
            _short(row["ms_per_action"]),
            f"{row['model_evaluations']:,d}",
        )
    batches = sorted({row["num_envs"] for row in rows})
    table.caption_justify = "left"
    table.caption = (
        f"{plural(rows[0]['episodes'], 'episode')} on {plural(rows[0]['checkpoints'], 'checkpoint')}; 95 % intervals: "
        f"Student's t, from {FEWEST} episodes on; failed: episodes far below the planner's others. {_differences(rows)}"
        f"A call observes and plans for {' or '.join(map(str, batches))} environment{'s' * (batches != [1])} at once."
    )
    return table


def _differences(rows):
    if all(row["difference_mean"] is None for row in rows):
        return ""
    words = [words for words in ("Differences are of the same environment seeds", compared(rows)) if words]
    return "; ".join(words) + ". "


def compared(rows: list[Row]) -> str:
    """The number of differences that were tested at once, in words; empty if there are none."""
    tested = sum(row["difference_p_holm"] is not None for row in rows)
    if tested < 2:
        return "*: decided (p at most 0.05)" if tested else ""
    return f"{tested} compared, each interval by itself; *: decided after Holm's correction over all {tested} (5 %)"


def decided(row: Row) -> bool:
    """Whether a row differs from the bare policy, at 5 % after the correction over all rows."""
    return row["difference_p_holm"] is not None and row["difference_p_holm"] <= 0.05


def _with_interval(row, name, sign="", mark=""):
    value, low, high = (row[f"{name}_{key}"] for key in ("mean", "low", "high"))
    if value is None:
        return "–"
    digits = f"{sign}.{0 if abs(value) >= 10 else 1}f"
    return Text(f"{mark}{value:{digits}} ") + _interval(low, high, digits)


def _interval(low, high, digits):
    return Text("–" if low is None else f"[{low:{digits}}, {high:{digits}}]")  # Text: rich would parse [...] as markup


def _count(number):
    return "–" if number is None else f"{number:d}"


def _short(value):
    """Three digits or more."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


class SweepProgress(_Lines):
    """Context manager that shows the progress of a sweep's runs: a live table, or lines where there is no terminal."""

    def __init__(self, entries: Sequence, *, console=None, clock=time.monotonic, stop: Stop | None = None):
        self._entries, self._console, self._clock, self._stop = entries, console or Console(), clock, stop
        self._said, self._began, self._last_line = {}, clock(), clock()
        self._live = (
            Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            if is_live(self._console)
            else None
        )

    def __enter__(self):
        if self._live:
            self._show_live(True)
        return self

    def __exit__(self, *error):
        if self._live:
            self._show_live(False)
        else:
            print_table(self.table(), self._console)

    def update(self) -> None:
        """Print the changes where there is no live table."""
        if self._live:
            return
        due = self._clock() - self._last_line >= LINE_EVERY_S
        self._last_line = self._clock() if due else self._last_line
        for entry in self._entries:
            said = (shown_state(entry), entry.starts)
            if said != self._said.get(entry.run.name) or (due and shown_state(entry) == "running"):
                self._said[entry.run.name] = said
                name, state, steps, rate, trained, evaluated, left = _sweep_row(entry)
                returns = f"train {trained}  eval {evaluated}"
                self.line(f"{name}: {state}  {steps} env steps  {rate} env steps/s  {returns}  ETA {left}")
        if due:
            self.line(sweep_total(self._entries))

    def _render(self) -> RenderableType:
        return self._with_notice(self.table(most=max(self._console.height - AROUND_TABLE, 1)))

    def table(self, most: int | None = None) -> Table:
        """One row for each run, and all together below; of more than `most` runs the first by `SHOWN_FIRST`."""
        entries = list(self._entries)
        if most is not None and len(entries) > most:
            entries = sorted(entries, key=lambda entry: SHOWN_FIRST.index(shown_state(entry)))[:most]
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for i, name in enumerate(SWEEP_COLUMNS):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold", no_wrap=i > 1)
        for entry in entries:
            table.add_row(*map(Text, _sweep_row(entry)))
        left_out = len(self._entries) - len(entries)
        table.caption = Text(sweep_total(self._entries) + f"; {left_out} of them not shown" * bool(left_out))
        table.caption_justify = "left"
        return table


SHOWN_FIRST = ("failed", "running", "waiting", "queued", "complete")
AROUND_TABLE = 8  # lines of a live table that are no runs


def sweep_total(entries: Sequence) -> str:
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


SWEEP_COLUMNS = ("run", "state", "env steps", "env\nsteps/s", "train\nreturn", "eval\nreturn", "ETA")


def shown_state(entry) -> str:
    """Its state in a word; a run that was started may still be queued."""
    return "queued" if entry.state == "running" and not entry.job.running else entry.state


def _sweep_row(entry):
    standing, total = entry.standing, entry.run.env_steps
    running = entry.state == "running" and entry.job.running
    state = shown_state(entry)
    state += f", {entry.job.where}" if entry.state == "running" else ""
    state += f", start {entry.starts}" if entry.starts > 1 and entry.state != "complete" else ""
    state += f": {entry.reason}" if entry.reason and entry.state in ("waiting", "failed") else ""
    rate = standing.env_steps_per_s if running else None
    left = duration((total - standing.env_steps) / rate) if rate else "-"
    return (
        entry.run.name,
        state,
        f"{standing.env_steps:,}/{total:,}",
        _rate(rate) if rate else "-",
        _return(standing.train_return),
        _return(standing.eval_return),
        left,
    )
