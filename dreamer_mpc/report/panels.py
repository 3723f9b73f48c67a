"""Pictures and tables of an analysis: panels with a line for each method, each point with its interval."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from dreamer_mpc.report.charts import new_figure, save
from dreamer_mpc.report.console import new_table
from dreamer_mpc.report.styles import Style, styles

LETTERS_AN_INCH = 9  # of a title


class Point(NamedTuple):
    """A mean with its interval, if there is one."""

    x: float
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass
class Panel:
    """One plot. `lines` has the points of each method; `names` are labels of the places 0, 1, ... on the x axis."""

    title: str
    xlabel: str
    ylabel: str
    lines: dict[str, list[Point]] = field(default_factory=dict)
    names: Sequence[str] = ()
    joined: bool = True
    log: tuple[bool, bool] = (False, False)  # axes
    reference: float | None = None  # a horizontal line
    diagonal: bool = False  # y = x
    empty: str = "nothing was measured"  # written where there is no line

    def add(self, method: str, x: float, estimate: tuple[float, float | None, float | None] | None) -> None:
        """A point of a method; nothing for None."""
        if estimate is not None:
            self.lines.setdefault(method, []).append(Point(x, *estimate))


def panels_picture(path: str | Path, panels: Sequence[Panel], title: str) -> None:
    """Write a PNG of panels in a grid, at most four in a row; a method has the same colour in all of them.

    A panel without lines has words in their place.
    """
    columns = min(len(panels), 4 if len(panels) != 6 else 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(1 + 4.6 * columns, 1.3 + 3.5 * rows)
    methods = list(dict.fromkeys(method for panel in panels for method in panel.lines))
    drawn_as = styles(methods)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, drawn_as)
    title = textwrap.fill(title, int(LETTERS_AN_INCH * figure.get_figwidth()))
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    drawn = {method: axes for axes, panel in zip(grid.flat, panels, strict=False) for method in panel.lines}
    handles = [_handle(drawn[method], method) for method in methods]
    figure.legend(handles, methods, loc="lower center", ncols=min(len(methods), 5), frameon=False, fontsize=9)
    below = (0.15 + 0.22 * -(-len(methods) // 5)) / figure.get_figheight()
    figure.tight_layout(rect=(0, below, 1, 0.98))
    save(figure, path)


def _draw(axes, panel, drawn_as: dict[str, Style]):
    wide = 0.05 if panel.joined else min(0.12, 0.75 / max(len(panel.lines), 1))
    apart = 0.0 if panel.log[0] or panel.diagonal else wide  # so that none hides another
    for number, (method, points) in enumerate(panel.lines.items()):
        points = sorted(points)
        shift = apart * (number - (len(panel.lines) - 1) / 2)
        x = [point.x + shift for point in points]
        mean = [point.mean for point in points]
        color, marker = drawn_as[method]
        look = {"color": color, "marker": marker, "markersize": 5, "linestyle": "-" if panel.joined else ""}
        axes.plot(x, mean, label=method, **look)
        for place, point in zip(x, points, strict=True):
            if point.low is not None:
                axes.plot([place, place], [point.low, point.high], color=color, linewidth=1.2, alpha=0.7)
    if panel.reference is not None and panel.lines:
        axes.axhline(panel.reference, color="black", linewidth=0.8)
    for axis, wanted in zip(("x", "y"), panel.log, strict=True):
        if wanted:
            getattr(axes, f"set_{axis}scale")("log")
            _plain_ticks(getattr(axes, f"{axis}axis"))
    if panel.diagonal:
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":")
    if panel.names:
        axes.set_xticks(range(len(panel.names)), panel.names, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.5, len(panel.names) - 0.5)
    elif not panel.log[0] and all(float(point.x).is_integer() for points in panel.lines.values() for point in points):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if not panel.lines:
        words = "\n".join(textwrap.wrap(panel.empty, 30))
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
        axes.set(xticks=[], yticks=[])
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axis):
    """1, 2, 5, 10, ... written out on a log axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _handle(axes, method):
    handles, labels = axes.get_legend_handles_labels()
    return handles[labels.index(method)]


def analysis_table(rows: Sequence[dict[str, str]], caption: str) -> Table:
    """Rows with the same titles; the first column is on the left."""
    table = new_table()
    table.caption = caption
    for number, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table
