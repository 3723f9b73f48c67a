"""The figures of every picture, and learning curves as PNG files."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamer_mpc.report.rows import without_quality
from dreamer_mpc.report.styles import NAMES, STYLES, Style, in_words, style, styles
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path

if TYPE_CHECKING:
    from dreamer_mpc.report.curves import Curve, Published

# A README shows pictures about 830 pixels wide: at this width letters of 9 points are 10 pixels high there.
WIDTH = 9.6  # inches of a picture that is as wide as a page
DPI = 150
PALETTE = 256  # colours


def new_figure(width, height, dpi=DPI):
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


def fit(title, right: float = 0.985) -> None:
    """Smaller letters for a title that would end behind `right`, as a part of the figure's width."""
    figure = title.get_figure()
    for _ in range(5):  # letters are of whole pixels: their width is not quite proportional to their size
        box = title.get_window_extent(figure.canvas.get_renderer())
        room = right * figure.bbox.width - box.x0
        if box.width <= room:
            return
        title.set_fontsize(title.get_fontsize() * 0.99 * room / box.width)


def save(figure, path: str | Path, photos: bool = False) -> None:
    """Write a figure as a PNG, atomically; one without `photos` has a palette, for a third of the bytes."""
    with atomic_path(path) as temporary:
        if photos:
            figure.savefig(temporary)
            return
        from PIL import Image  # a part of matplotlib's installation

        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
        picture.quantize(PALETTE, dither=Image.Dither.NONE).save(temporary, optimize=True)


def curves_picture(path: str | Path, curves: "Sequence[Curve]", published: "Mapping[str, Published]") -> None:
    """Write a PNG with one panel for each task: ours solid, the paper's dashed, DreamerV3's published returns as stars.

    With several seeds, their mean and a band from the lowest to the highest. `published` has what is known of each
    task, and is drawn up to the longest of our runs. A render quality of evaluations that is another than in training
    is said once below if all curves have it, else in the legend. ValueError without curves.
    """
    tasks = sorted({curve.task for curve in curves})
    if not tasks:
        raise ValueError("no curves to draw")
    columns = 1 if len(tasks) == 1 else 2 if len(tasks) <= 8 else 3
    rows = -(-len(tasks) // columns)
    figure = new_figure({1: 7.0, 2: WIDTH, 3: 1.4 * WIDTH}[columns], 1.4 + 3.1 * rows)
    until = max(curve.env_steps[-1] for curve in curves)
    names = {curve.method for curve in curves}
    order = [*(name for name in STYLES if name in names), *sorted(names - STYLES.keys())]
    drawn = styles(order)
    common = _common_quality(names)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.axis("off")
    titles = [
        _draw_task(axes, task, [curve for curve in curves if curve.task == task], published[task], until, drawn, common)
        for axes, task in zip(grid.flat, tasks, strict=False)
    ]
    pairs = [pair for axes in grid.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = dict(sorted(((label, handle) for handle, label in pairs), key=lambda pair: pair[0]))
    ncols = {1: 2, 2: 3, 3: 4}[columns]
    words = textwrap.wrap(_meaning(curves, published, until, common), 17 * figure.get_figwidth() - 8)
    below = 0.12 + 0.155 * len(words)  # inches
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, below / figure.get_figheight())}
    lines = _legend(figure, handles, ncols, place)
    figure.text(0.012, 0.08 / figure.get_figheight(), "\n".join(words), fontsize=8.5, color="0.25", va="bottom")
    below += 0.12 + 0.21 * lines
    figure.tight_layout(rect=(0, below / figure.get_figheight(), 1, 1))
    for title in titles:
        fit(title, title.axes.get_position().x1)
    save(figure, path)


def _legend(figure, handles: Mapping[str, object], most: int, place: Mapping[str, object]) -> int:
    """Draw the legend in at most that many columns, fewer where it would be wider than the figure; gives its lines."""
    labels = ["\n".join(textwrap.wrap(label, int(11 * figure.get_figwidth()))) for label in handles]
    for columns in range(most, 0, -1):
        legend = figure.legend(handles.values(), labels, ncols=columns, frameon=False, fontsize=9.5, **place)
        if columns == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width < figure.bbox.width:
            return -(-len(labels) // columns) + sum(label.count("\n") for label in labels)
        legend.remove()
    raise ValueError("a legend needs a column")


def _common_quality(methods) -> str:
    """The end of all names that says the render quality of evaluations; empty where it is not the same for all."""
    ends = {method.removeprefix(without_quality(method)) for method in methods}
    return ends.pop() if len(ends) == 1 else ""


def _meaning(curves, published, until, common) -> str:
    """What lines, bands and stars are, in words."""
    several = len({(c.task, c.method) for c in curves}) < len(curves)
    words = "Solid: mean return over the episodes of an evaluation without exploration"
    words += "; of several seeds their mean, and a band from the lowest to the highest" if several else ", one seed"
    words += f"{common}. "
    shown = [published[task] for task in {curve.task for curve in curves}]
    if any(_as_far(steps, until).sum() > 1 for known in shown for steps, _ in known.paper.values()):
        words += "Dashed: the paper's means, read from its figure. "
    if any(steps <= until for known in shown for steps in known.dreamerv3):
        words += "Stars: returns of training episodes with exploration, mean and range of the seeds. "
    return words


def _as_far(steps, until):
    return np.array(steps) <= until


def _draw_task(axes, task, curves, published, until, drawn: dict[str, Style], common: str):
    """One panel; gives its title."""
    from matplotlib.ticker import EngFormatter

    for method in [name for name in drawn if name in {curve.method for curve in curves}]:
        seeds = [curve for curve in curves if curve.method == method]
        x, low, mean, high = _over_seeds(seeds)
        color, marker = drawn[method]
        label = f"ours, {in_words(method).removesuffix(common)}"
        axes.plot(x, mean, label=label, color=color, linewidth=2, marker=marker, markersize=4.5, zorder=3)
        if len(seeds) > 1:
            axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    for method, (steps, returns) in published.paper.items():
        shown = _as_far(steps, until)
        if shown.sum() > 1:
            label, color = f"paper, {NAMES[method]}", style(method).color
            axes.plot(np.array(steps)[shown], np.array(returns)[shown], "--", label=label, color=color, linewidth=1.3)
    marks = {steps: returns for steps, returns in published.dreamerv3.items() if steps <= until}
    if marks:
        low, mean, high = np.array([(min(r), np.mean(r), max(r)) for r in marks.values()]).T
        look = {"fmt": "*", "color": "black", "markersize": 9, "elinewidth": 0.9, "capsize": 2.5}
        axes.errorbar(list(marks), mean, [mean - low, high - mean], label="published, DreamerV3", **look)
    counts = sorted({len([c for c in curves if c.method == method]) for method in {c.method for c in curves}})
    words = " or ".join(map(str, counts))
    title = axes.set_title(f"{task}  ({words} seed{'s' * (counts != [1])})", loc="left", weight="bold", fontsize=11)
    axes.set(xlabel="env steps (steps of the simulator)", ylabel="return (sum of rewards)", xlim=(0, 1.03 * until))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    lowest = min(0, axes.dataLim.y0)
    axes.set_ylim(bottom=lowest if lowest == 0 else axes.get_ylim()[0])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return title


def _over_seeds(curves):
    """Env steps, and lowest, mean and highest return over the runs, as far as all of them go; between evaluations
    on straight lines."""
    start, end = max(c.env_steps[0] for c in curves), min(c.env_steps[-1] for c in curves)
    steps = np.unique(np.concatenate([c.env_steps for c in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    returns = np.stack([np.interp(steps, c.env_steps, c.returns) for c in curves])
    return steps, returns.min(0), returns.mean(0), returns.max(0)
