"""The picture of a comparison: what each planner gains over the policy, and what an action costs."""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dreamer_mpc.report.charts import WIDTH, fit, new_figure, save
from dreamer_mpc.report.rows import Row, decided, drawn_by
from dreamer_mpc.report.styles import Style, styles
from dreamer_mpc.report.words import decimals, plural
from dreamer_mpc.util.intervals import FEWEST

BASELINE = "policy"
MOST_LABELS = 12  # points that are named in the panel of costs; more would hide them
LABEL_PLACES = ((9, 0), (-9, 0), (0, 9), (0, -9), (9, 9), (-9, 9), (9, -9), (-9, -9))  # points beside a marker
FARTHER = (1, 3, 5, 7)  # times as far where there is no room, with a line from the marker
FEW = 4  # points that have such lines; those of more would cross


def comparison_picture(path: str | Path, rows: Sequence[Row], title: str) -> None:
    """Write a PNG of planners, a row for each: paired differences to the bare policy, and returns against cost.

    A point is full where its difference is decided after the correction over all of them. Without the policy, or with
    nothing beside it, returns take the place of the differences. 95 % intervals are drawn where there are any.
    """
    paired = any(row["difference_mean"] is not None for row in rows)
    most_lines = max(_row_label(row["planner"]).count("\n") for row in rows)
    figure = new_figure(WIDTH, max(3.7, 1.9 + len(rows) * (0.26 + 0.13 * most_lines)))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06, wspace=0.03)
    main, cost = figure.subplots(1, 2, width_ratios=[1.25, 1])
    drawn = styles(row["planner"] for row in rows)
    own = [drawn[row["planner"]] for row in rows]
    _draw_rows(main, rows, own, "difference" if paired else "return")
    _draw_cost(cost, rows, own)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    heading = figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    words = "\n".join(textwrap.wrap(_explanation(rows, paired), 148))
    figure.supxlabel(words, x=0.01, ha="left", fontsize=8.5, color="0.25")
    figure.draw_without_rendering()  # so that the places of all texts are known
    figure.set_layout_engine("none")
    fit(heading)
    _space_ticks(main)
    low, high = cost.get_xlim()
    if high < 2 * low:  # of several powers of ten there are few
        _space_ticks(cost)
    if len(rows) <= MOST_LABELS:
        _name_points(cost, rows)
    save(figure, path)


def _draw_rows(axes, rows, own: list[Style], key):
    """A row for each planner: a point with its interval, and both in figures."""
    axes.axvline(0, color="0.6", linewidth=1, zorder=1)
    for place, (row, style) in enumerate(zip(rows, own, strict=True)):
        is_policy = key == "difference" and row["difference_mean"] is None
        mean, low, high = (0.0, 0.0, 0.0) if is_policy else _interval(row, key)
        hollow = key == "difference" and not is_policy and not decided(row)
        _point(axes, mean, place, style, hollow, xerr=[[mean - low], [high - mean]])
        words = f"return {figures(row, 'return')}" if is_policy else figures(row, key, "+"[: key != "return"])
        axes.annotate(words, (1.0, place), (4, 0), axes.get_yaxis_transform(), "offset points", va="center", fontsize=9,
                      weight="bold" if decided(row) else "normal")  # fmt: skip
    axes.set_yticks(range(len(rows)), [_row_label(row["planner"]) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(alpha=0.25, axis="x")
    axes.tick_params(axis="y", length=0)
    if key == "difference":
        axes.set_title("gain over the policy, in the same episodes", loc="left", fontsize=10.5)
        axes.set_xlabel("difference of returns (sum of rewards of an episode)")
    else:
        axes.set_title("return", loc="left", fontsize=10.5)
        axes.set_xlabel("return (sum of rewards of an episode)")


def _space_ticks(axes):
    """Fewer numbers below the x axis where they would touch."""
    from matplotlib.ticker import MaxNLocator

    for most in (5, 4, 3, 2):
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted((box for box in boxes if box.width), key=lambda box: box.x0)
        if all(one.x1 + 4 < other.x0 for one, other in zip(boxes, boxes[1:], strict=False)):
            return
        axes.xaxis.set_major_locator(MaxNLocator(most))
        axes.figure.draw_without_rendering()


def _draw_cost(axes, rows, own: list[Style]):
    for row, style in zip(rows, own, strict=True):
        mean, low, high = _interval(row, "return")
        if len(rows) > MOST_LABELS:
            low = high = mean  # the intervals of many would hide the points
        if row["planner"] == BASELINE:
            axes.axhline(mean, color=style.color, linewidth=1.2, linestyle="--", zorder=1)
        _point(axes, row["ms_per_action"], mean, style, False, yerr=[[mean - low], [high - mean]])
    axes.set_xscale("log")
    axes.margins(x=0.18, y=0.14)
    _plain_log_ticks(axes.xaxis)
    axes.set(xlabel="time for an action (ms)", ylabel="return (sum of rewards)")
    axes.set_title("return and cost", loc="left", fontsize=10.5)
    axes.grid(alpha=0.25)


def _point(axes, x, y, style: Style, hollow, **errors):
    axes.errorbar(x, y, fmt=style.marker, color=style.color, markersize=7.5, capsize=3, elinewidth=1.8,
                  markerfacecolor="white" if hollow else style.color, markeredgewidth=1.6, zorder=3,
                  **errors)  # fmt: skip


def _name_points(axes, rows):
    """Name each point beside it where the name hides no other point or name; of few, else farther away with a line."""
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    points = [axes.transData.transform((row["ms_per_action"], row["return_mean"])) for row in rows]
    taken = [_box(x, y, 12) for x, y in points] + [_bar(axes, row) for row in rows]
    for row, (x, y) in zip(rows, points, strict=True):
        planner, _, settings = row["planner"].partition(" ")
        label = axes.annotate(settings or planner, (row["ms_per_action"], row["return_mean"]), fontsize=9, zorder=2,
                              bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5})  # fmt: skip
        for far, (right, up) in itertools.product(FARTHER if len(rows) <= FEW else FARTHER[:1], LABEL_PLACES):
            label.set(ha={9: "left", 0: "center", -9: "right"}[right], va={9: "bottom", 0: "center", -9: "top"}[up])
            label.xyann, label.anncoords = (far * right, far * up), "offset points"
            box = label.get_window_extent(renderer)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            own_point = _box(x, y, 12)
            if inside and not any(box.overlaps(other) for other in taken if other.bounds != own_point.bounds):
                taken.append(box)
                if far > 1:
                    _join(axes, (row["ms_per_action"], row["return_mean"]), label.xyann)
                break
        else:
            label.remove()


def _join(axes, point, offset):
    """A thin line from a point to its name, whose place is in points."""
    look = {"arrowstyle": "-", "linewidth": 0.7, "color": "0.4"}
    axes.annotate("", point, offset, textcoords="offset points", arrowprops=look, zorder=1)


def _box(x, y, half):
    from matplotlib.transforms import Bbox

    return Bbox([[x - half, y - half], [x + half, y + half]])


def _bar(axes, row):
    """The box of an interval."""
    from matplotlib.transforms import Bbox

    _, low, high = _interval(row, "return")
    corners = axes.transData.transform([(row["ms_per_action"], low), (row["ms_per_action"], high)])
    return Bbox([corners[0] - (5, 0), corners[1] + (5, 0)])


def _row_label(planner):
    """The planner's name with the settings of a sweep, on several lines where they are long."""
    return "\n".join(textwrap.wrap(planner, 34, break_long_words=False)) or planner


def figures(row: Row, key: str, sign: str = "") -> str:
    """Mean and interval of `return` or `difference` in figures, marked where a difference is decided."""
    mean, low, high = (row[f"{key}_{name}"] for name in ("mean", "low", "high"))
    digits = f"{sign}.{decimals(0 if abs(mean) >= 100 else 1, mean, low, high)}f"
    interval = "" if low is None else f" [{low:{digits}}, {high:{digits}}]"
    mark = " *" if key == "difference" and decided(row) else ""
    return f"{mean:{digits}}{interval}{mark}".replace("-", "−")


def _interval(row, key):
    """Mean, low and high, without an interval all the same."""
    mean, low, high = (row[f"{key}_{name}"] for name in ("mean", "low", "high"))
    return mean, mean if low is None else low, mean if high is None else high


def _explanation(rows, paired):
    """What points, bars and times are, in words."""
    words = "Points: means. "
    if all(row["return_low"] is None for row in rows):
        words += f"No intervals: they need {FEWEST} episodes or more. "
    else:
        words += "Bars and [ ]: 95 % intervals of the means (Student's t), each by itself. "
    tested = sum(row["difference_p_holm"] is not None for row in rows)
    if paired and tested:
        how = f"after Holm's correction over all {tested}" if tested > 1 else "p at most 0.05"
        words += f"Full point and *: a difference that is decided ({how}); hollow: not decided. "
    envs = sorted({row["num_envs"] for row in rows})
    devices = list(dict.fromkeys(row["device"] for row in rows))
    environments = f"{' or '.join(map(str, envs))} environment{'s' * (envs != [1])}"
    return f"{words}Time: one call of observing and planning for {environments}, {', '.join(devices)}."


def comparison_title(
    env: str, rows: Sequence[Row], render_quality: str | None = None, trained: Sequence[str] = ()
) -> str:
    """The title of a comparison's picture, of agents `trained` with these render qualities."""
    episodes, checkpoints = rows[0]["episodes"], rows[0]["checkpoints"]
    each = "each of " if checkpoints > 1 else ""
    of = f"{each}{plural(checkpoints, 'checkpoint')}{drawn_by(render_quality, *trained)}"
    return f"{env}: {plural(episodes, 'episode')} of {of}"


def _plain_log_ticks(axis):
    """1, 2, 5, 10, ... written out where there is room, else powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
