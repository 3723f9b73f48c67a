"""The tables that `eval` and `compare` print."""

from rich.table import Table
from rich.text import Text

from dreamer_mpc.report.console import new_table
from dreamer_mpc.report.rows import Row, decided
from dreamer_mpc.report.words import decimals, mean_and_spread, plural
from dreamer_mpc.util.intervals import FEWEST


def results_table(rows: list[Row], subject: str) -> Table:
    """The table that `eval` prints, one row for each planner, titled by what was played; None is a dash."""
    table = new_table(subject)
    table.add_column("planner", no_wrap=True)
    for name in ("return\nmean ± std", "95 %\ninterval", "ms per\naction", "model\nevals", "failed of\nepisodes"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        low, high = row["return_low"], row["return_high"]
        table.add_row(
            str(row["planner"]),
            mean_and_spread(row["return_mean"], row["return_std"], row["episodes"]),
            _interval(low, high, f".{decimals(1, low, high)}f"),
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


def comparison_table(rows: list[Row], subject: str = "") -> Table:
    """The table that `compare` prints, one row for each planner."""
    table = new_table(subject)
    table.add_column("planner", overflow="fold")
    for name in ("return\n[95 %]", "failed", "difference to\npolicy [95 %]", "ms per\naction", "model\nevals"):
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
    words = ("Differences are of the same environment seeds", _compared(rows))
    return "; ".join(filter(None, words)) + ". "


def _compared(rows: list[Row]) -> str:
    """The number of differences that were tested at once, in words; empty if there are none."""
    tested = sum(row["difference_p_holm"] is not None for row in rows)
    if tested < 2:
        return "*: decided (p at most 0.05)" if tested else ""
    return f"{tested} compared, each interval by itself; *: decided after Holm's correction over all {tested} (5 %)"


def _with_interval(row, name, sign="", mark=""):
    value, low, high = (row[f"{name}_{key}"] for key in ("mean", "low", "high"))
    if value is None:
        return "–"
    digits = f"{sign}.{decimals(0 if abs(value) >= 10 else 1, value, low, high)}f"
    return Text(f"{mark}{value:{digits}} ") + _interval(low, high, digits)


def _interval(low, high, digits):
    return Text("–" if low is None else f"[{low:{digits}}, {high:{digits}}]")  # Text: rich would parse [...] as markup


def _count(number):
    return "–" if number is None else f"{number:d}"


def _short(value):
    """Three digits or more."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
