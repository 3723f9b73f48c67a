"""Figures of a folder from its CSV files: `run.py plot`, and the figures at the end of `compare`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from dreamer_mpc.config import PlotConfig, parse
from dreamer_mpc.report.charts import curves_picture
from dreamer_mpc.report.comparison import comparison_picture
from dreamer_mpc.report.console import new_table, print_table, table_console
from dreamer_mpc.report.curves import CURVES, Curve, gather, published, read_curves, write_curves
from dreamer_mpc.report.found import COMPARE, FoundComparison
from dreamer_mpc.report.words import mean_and_spread
from dreamer_mpc.util.errors import UserError, cannot_write, in_one_line
from dreamer_mpc.util.files import user_path
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.program import program


def main(args: Sequence[str]) -> int:
    """Draw the figures of a folder from its CSV files; with --runs, gather those from runs first."""
    config = parse(PlotConfig, args, prog=program("plot"))
    left_out: list[str] = []
    written = plot(user_path(config.folder), config.runs, config.until, left_out.append)
    if config.runs:
        print_table(final_table(read_curves(written[0])), table_console(120))
    for path in written:
        print(f"wrote {path}")
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    return 0


def plot(
    folder: Path,
    runs: tuple[str, ...] = (),
    until: int | None = None,
    leave_out: Callable[[str], None] = lambda reason: None,
) -> list[Path]:
    """Draw every curves.csv and compare.csv in `folder` and below; returns the files that were written.

    With `runs`, curves.csv and final.csv of those are first written to `folder`, and only they are drawn. What
    cannot be drawn is left out: `leave_out` gets the reason. UserError where nothing can be drawn.
    """
    if not runs and not folder.is_dir():
        raise UserError(f"no folder {folder}: name one with {CURVES} or {COMPARE}, or give runs to gather with --runs")
    # With a lock of its own: the curves of a sweep may be drawn while it goes on.
    with alone_in(folder, "wait for it, or name another folder", name=".plot.lock"):
        if runs:
            return [*write_curves(folder, gather(runs, until, leave_out)), draw_curves(folder)]
        return _draw_all(folder, leave_out)


def _draw_all(folder: Path, leave_out: Callable[[str], None]) -> list[Path]:
    drawn, errors = [], []
    for name, draw in ((CURVES, draw_curves), (COMPARE, draw_comparison)):
        for file in sorted(folder.rglob(name)):
            try:
                drawn.append(draw(file.parent))
            except UserError as error:
                errors.append(error)
    if not drawn:
        nothing = UserError(f"no {CURVES} or {COMPARE} in {folder} or below: give runs to gather with --runs")
        raise errors[0] if errors else nothing
    for error in errors:
        leave_out(str(error))
    return drawn


def draw_curves(folder: Path) -> Path:
    """Draw curves.csv as curves.png."""
    curves = read_curves(folder / CURVES)
    return _draw(folder / "curves.png", curves_picture, curves, {curve.task: published(curve.task) for curve in curves})


def draw_comparison(folder: Path) -> Path:
    """Draw compare.csv as compare.png, with a title from compare.json."""
    found = FoundComparison.read(folder)
    return _draw(folder / "compare.png", comparison_picture, found.rows, found.title)


def _draw(path: Path, picture, *content) -> Path:
    try:
        picture(path, *content)
    except OSError as error:
        raise cannot_write(path, error, "copy the CSV elsewhere") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot draw {path} ({in_one_line(error)}): the numbers are in the CSV beside it") from error
    return path


def final_table(curves: list[Curve]) -> Table:
    """One row for each run: its last evaluation, and the paper's mean return at that step."""
    table = new_table()
    for name in ("task", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", "env steps", "return\nmean ± std", "episodes", "paper\nat that step"):
        table.add_column(name, justify="right", no_wrap=True)
    for curve in curves:
        paper = published(curve.task).paper_return(curve)
        table.add_row(
            curve.task, curve.method, str(curve.seed), f"{curve.env_steps[-1]:,}",
            mean_and_spread(curve.returns[-1], curve.stds[-1], int(curve.episodes[-1])), str(curve.episodes[-1]),
            "–" if paper is None else f"{paper:.0f}",
        )  # fmt: skip
    return table
