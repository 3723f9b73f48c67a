"""Charts as PNG files: curves of methods on tasks, returns and cost of planners."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamer_mpc.report.progress import compared, decided
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path

if TYPE_CHECKING:
    from dreamer_mpc.report.curves import Curve, Published
    from dreamer_mpc.report.rows import Row

COLORS = {"dream-mpc": "C0", "dreamer": "C1", "planet": "C2", "sac-ae": "C7"}
OTHER_COLORS = ("C3", "C4", "C5", "C6", "C8", "C9")
NAMES = {"dream-mpc": "Dream-MPC", "dreamer": "Dreamer", "planet": "PlaNet", "sac-ae": "SAC+AE"}


def new_figure(width, height, dpi=100):
    """A matplotlib figure, inches."""
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures in a global table and may want a display.
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _import_matplotlib():
    """Import it without MPLBACKEND, which a notebook sets to a backend that may be missing, and then nothing works."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"pictures need matplotlib ({error}): pip install matplotlib") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def curves_picture(path: str | Path, curves: "Sequence[Curve]", published: "Mapping[str, Published]") -> None:
    """Write a PNG with one panel for each task: ours solid, the paper's dashed, DreamerV3's published returns as stars.

    With several seeds, their mean and a band from the lowest to the highest. `published` has what is known of each
    task, and is drawn up to the longest of our runs. ValueError without curves.
    """
    tasks = sorted({curve.task for curve in curves})
    if not tasks:
        raise ValueError("no curves to draw")
    columns = {1: 1, 2: 2, 4: 2}.get(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure = new_figure(1.5 + 6 * columns, 1.2 + 3.9 * rows, dpi=120)
    until = max(curve.env_steps[-1] for curve in curves)
    others = sorted({curve.method for curve in curves} - COLORS.keys())
    colors = COLORS | {method: OTHER_COLORS[i % len(OTHER_COLORS)] for i, method in enumerate(others)}
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(grid.flat, tasks, strict=False):
        _draw_task(axes, task, [curve for curve in curves if curve.task == task], published[task], until, colors)
    drawn = [pair for axes in grid.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in drawn}
    ncols = 2 * columns
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=ncols, frameon=False, fontsize=9)
    legend_height = 0.1 + 0.22 * -(-len(handles) // ncols)  # inches
    figure.tight_layout(rect=(0, legend_height / figure.get_figheight(), 1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_task(axes, task, curves, published, until, colors):
    """One panel."""
    from matplotlib.ticker import EngFormatter

    for method in sorted({curve.method for curve in curves}, key=list(colors).index):
        seeds = [curve for curve in curves if curve.method == method]
        x, low, mean, high = _over_seeds(seeds)
        label = f"ours, {NAMES.get(method, method)}"
        axes.plot(x, mean, label=label, color=colors[method], linewidth=2.2, zorder=3)
        if len(seeds) > 1:
            axes.fill_between(x, low, high, color=colors[method], alpha=0.18, linewidth=0)
    for method, (steps, returns) in published.paper.items():
        shown = np.array(steps) <= until
        if shown.sum() > 1:
            label, color = f"paper, {NAMES[method]}", colors[method]
            axes.plot(np.array(steps)[shown], np.array(returns)[shown], "--", label=label, color=color, linewidth=1.4)
    marks = {steps: returns for steps, returns in published.dreamerv3.items() if steps <= until}
    if marks:
        low, mean, high = np.array([(min(r), np.mean(r), max(r)) for r in marks.values()]).T
        style = {"fmt": "*", "color": "black", "markersize": 9, "elinewidth": 0.9, "capsize": 2.5}
        axes.errorbar(list(marks), mean, [mean - low, high - mean], label="published, DreamerV3", **style)
    counts = sorted({len([c for c in curves if c.method == method]) for method in {c.method for c in curves}})
    words = " or ".join(map(str, counts))
    axes.set_title(f"{task}  ({words} seed{'s' * (counts != [1])})", loc="left", weight="bold")
    axes.set(xlabel="env steps", ylabel="return", xlim=(0, 1.03 * until))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    lowest = min(0, axes.dataLim.y0)
    axes.set_ylim(bottom=lowest if lowest == 0 else axes.get_ylim()[0])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _over_seeds(curves):
    """Env steps, and lowest, mean and highest return over the runs, as far as all of them go; between evaluations
    on straight lines."""
    start, end = max(c.env_steps[0] for c in curves), min(c.env_steps[-1] for c in curves)
    steps = np.unique(np.concatenate([c.env_steps for c in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    returns = np.stack([np.interp(steps, c.env_steps, c.returns) for c in curves])
    return steps, returns.min(0), returns.mean(0), returns.max(0)


def comparison_picture(path: str | Path, rows: "list[Row]", title: str) -> None:
    """Write a PNG of planners, differences None where there are none.

    Planners: returns as bars, with the paired differences to the bare policy in figures, those that are decided marked;
    and returns against model evaluations. A sweep, where returns are close to each other: returns,
    and paired differences to the bare policy, as points, full where a difference is decided after the correction over
    all of them. With 95 % intervals where there are any.
    """
    figure = new_figure(15, max(4.2, 1.8 + 0.36 * len(rows)))
    names = list(dict.fromkeys(row["planner"].split()[0] for row in rows))  # values of a sweep share a colour
    colors = [f"C{names.index(row['planner'].split()[0])}" for row in rows]
    swept = any(" " in row["planner"] for row in rows)  # settings stand behind the planner's name
    (_draw_sweep if swept else _draw_planners)(figure, rows, colors)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    title += "; in brackets: model evaluations per action" if swept else ""
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    figure.set_layout_engine("tight")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_planners(figure, rows, colors):
    """A planner without model evaluations, the bare policy, has no place on the log axis: it is a line with a band."""
    bars, cost = figure.subplots(1, 2, width_ratios=[1.25, 1])
    for place, (row, color) in enumerate(zip(rows, colors, strict=True)):
        value, low, high = _interval(row, "return")
        bars.barh(place, value, color=color, alpha=0.75)
        bars.plot([low, high], [place, place], color="black", linewidth=1.6, solid_capstyle="butt")
        if row["difference_mean"] is not None:
            words = f"{row['difference_mean']:+.0f}{' *' if decided(row) else ''}"
            bars.annotate(words, (high, place), (6, 0), textcoords="offset points", va="center", fontsize=9,
                          weight="bold" if decided(row) else "normal")  # fmt: skip
        if row["model_evaluations"]:
            x = _beside(row["model_evaluations"], [r["model_evaluations"] for r in rows], place)
            cost.errorbar(x, value, [[value - low], [high - value]], fmt="o", color=color, capsize=3)
            left = x < row["model_evaluations"]  # of points that stand beside each other
            cost.annotate(row["planner"], (x, value), (-6 if left else 6, 4), textcoords="offset points", fontsize=9,
                          color=color, ha="right" if left else "left")  # fmt: skip
        else:
            cost.axhline(value, color=color)
            cost.axhspan(low, high, color=color, alpha=0.15, linewidth=0)
            cost.annotate(row["planner"], (0.99, value), (0, 4), cost.get_yaxis_transform(), "offset points",
                          fontsize=9, color=color, ha="right")  # fmt: skip
    _name_rows(bars, [row["planner"] for row in rows])
    bars.set(xlabel=f"return ({_mean_of(rows)})")
    if words := compared(rows):
        bars.set_title(f"difference to the policy beside each bar; {words}", loc="left", fontsize=9)
    bars.axvline(0, color="black", linewidth=0.8)
    bars.margins(x=0.12)
    bars.grid(alpha=0.25, axis="x")
    cost.set(xscale="log", xlabel="model evaluations per action", ylabel="return")
    cost.grid(alpha=0.25)
    cost.margins(x=0.3)
    _plain_log_ticks(cost.xaxis)


def _draw_sweep(figure, rows, colors):
    paired = any(row["difference_mean"] is not None for row in rows)
    panels = [("return", f"return ({_mean_of(rows)})")]
    panels += [("difference", f"paired difference to the bare policy ({_mean_of(rows)})")] if paired else []
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(columns, panels, strict=True):
        for place, (row, color) in enumerate(zip(rows, colors, strict=True)):
            if row[f"{key}_mean"] is None:  # the policy itself
                axes.axvline(0, color=color)
                continue
            value, low, high = _interval(row, key)
            hollow = key == "difference" and not decided(row)
            axes.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=3,
                          markerfacecolor="white" if hollow else color)  # fmt: skip
            if not row["model_evaluations"]:
                axes.axvline(value, color=color)
                axes.axvspan(low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel=label)
        axes.grid(alpha=0.25)
    _name_rows(columns[0], [f"{row['planner']}  ({row['model_evaluations']:,.0f})" for row in rows])
    if words := compared(rows):
        columns[-1].set_title(words.replace("*:", "full point:"), loc="right", fontsize=9)


def _interval(row, key):
    """Mean, low and high, without an interval all the same."""
    mean, low, high = (row[f"{key}_{name}"] for name in ("mean", "low", "high"))
    return mean, mean if low is None else low, mean if high is None else high


def _mean_of(rows):
    return "mean" if all(row["return_low"] is None for row in rows) else "mean, 95 % interval"


def _name_rows(axes, labels):
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _beside(x, others, place):
    """`x`, moved by a twelfth at most, so that points at the same `x` stand beside each other."""
    same = [number for number, other in enumerate(others) if other == x]
    return x * 1.08 ** (2 * same.index(place) / (len(same) - 1) - 1) if len(same) > 1 else x


def _plain_log_ticks(axis):
    """1, 2, 5, 10, ... written out where there is room, else powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
