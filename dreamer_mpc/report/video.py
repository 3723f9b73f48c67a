"""Videos and pictures from numpy arrays: MP4 files, the page of an episode's video, a planning decision."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dreamer_mpc.report.charts import fit, new_figure, save
from dreamer_mpc.util.encode import encode
from dreamer_mpc.util.files import atomic_path

GAP = 8  # pixels between panels
LINE = 24  # pixels of a line of text
TITLE = 34  # pixels of the line above all
VIEW = 480  # height of the view at full size
PANEL = 192  # side of the panels of what the agent sees and imagines
BACKGROUND = (18, 18, 22)
TEXT = (235, 235, 235)
SMALLEST = 0.3  # size of letters that can be read
MAX_FRAMES = 8  # of a plan
MAX_PLOTS = 6  # of action dimensions
BEFORE = "#8a8f98"
VISIBLE = 8  # least change of a pixel, of 255, that is called visible


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write uint8 frames [H, W, 3] of one size as H.264, yuv420p, atomically. An odd side grows by one pixel.

    ValueError for another shape or type; UserError if there is no ffmpeg; OSError if it fails, and the old file stays.
    """
    frames = iter(frames)
    first = _checked(next(frames, None), None)
    odd = [(0, side % 2) for side in first.shape[:2]]
    height, width = (side + side % 2 for side in first.shape[:2])
    checked = (_checked(frame, first.shape) for frame in chain([first], frames))
    with atomic_path(path) as temporary:
        encode(temporary, (np.pad(frame, [*odd, (0, 0)], mode="edge") for frame in checked), width, height, fps)


def _checked(frame, shape):
    found = "none" if frame is None else f"{np.asarray(frame).dtype} {list(np.shape(frame))}"
    wrong = frame is None or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3
    if wrong or (shape is not None and frame.shape != shape):
        raise ValueError(f"frames must be uint8 [H, W, 3] of one size, one or more; got {found}")
    return frame


class Page:
    """The page of an episode's video: the view at full size, beside it three panels and, a line each, facts."""

    def __init__(self, title: str, color: str, panels: Sequence[str], view: UInt8[np.ndarray, "h w 3"]):
        self._size = max(1, round(view.shape[1] * VIEW / view.shape[0])), VIEW  # width and height
        width = GAP + self._size[0] + GAP + 2 * (PANEL + GAP)
        height = TITLE + VIEW + GAP
        self._blank = np.empty((height, width + width % 2, 3), np.uint8)
        self._blank[:] = BACKGROUND
        mark = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
        self._blank[TITLE // 2 - 7 : TITLE // 2 + 7, GAP : GAP + 14] = mark
        _put_text(self._blank, title, GAP + 24, 0, width - 2 * GAP - 24, TITLE)
        left = 2 * GAP + self._size[0]
        self._corners = [(TITLE + row * (PANEL + LINE + GAP), left + column * (PANEL + GAP))
                         for row in range(2) for column in range(2)]  # fmt: skip
        for name, (top, left) in zip(panels, self._corners, strict=False):
            _put_text(self._blank, name, left, top, PANEL, LINE)

    def frame(
        self, view: UInt8[np.ndarray, "h w 3"], panels: Iterable[UInt8[np.ndarray, "_ _ 3"]], facts: Sequence[str]
    ) -> UInt8[np.ndarray, "H W 3"]:
        """One frame; small images are enlarged unsmoothed."""
        page = self._blank.copy()
        page[TITLE : TITLE + VIEW, GAP : GAP + self._size[0]] = _resized(view, self._size)
        for panel, (top, left) in zip(panels, self._corners, strict=False):
            page[top + LINE : top + LINE + PANEL, left : left + PANEL] = _resized(panel, (PANEL, PANEL))
        top, left = self._corners[-1]
        for number, fact in enumerate(facts):
            _put_text(page, fact, left, top + LINE + number * LINE, PANEL, LINE)
        return page


def _resized(image, size):
    import cv2

    if (image.shape[1], image.shape[0]) == tuple(size):
        return image
    smaller = size[1] < image.shape[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)


class Decision(NamedTuple):
    """A plan before and after the ascent, for H steps."""

    real: UInt8[np.ndarray, "h w 3"]  # the frame now
    before: UInt8[np.ndarray, "H h w 3"]  # decoded
    after: UInt8[np.ndarray, "H h w 3"]
    actions_before: Float[np.ndarray, "H A"]  # in [-1, 1]
    actions_after: Float[np.ndarray, "H A"]
    j_before: float
    j_after: float
    j_error: float  # standard error of the difference; 0: J has no noise
    names: Sequence[str]  # of the actions
    meaning: str  # of J, a sentence


def decision_picture(path: str | Path, decision: Decision, title: str, color: str) -> None:
    """Write one PNG of a planning decision: frames, actions and J, before and after, and what changed in each.

    ValueError if the two plans differ in shape.
    """
    before, after = decision.before, decision.after
    if before.shape != after.shape or decision.actions_before.shape != decision.actions_after.shape:
        raise ValueError("the plans before and after must have the same shape")
    figure = new_figure(11, 7.6)
    fit(figure.text(0.015, 0.965, title, fontsize=14, weight="bold", va="center"))
    figure.text(0.015, 0.935, "\n".join(textwrap.wrap(decision.meaning, 150)), fontsize=9.5, va="top", color="0.25")
    shown = np.unique(np.linspace(0, len(before) - 1, min(MAX_FRAMES, len(before))).round().astype(int))
    grid = figure.add_gridspec(
        3, 2 + MAX_FRAMES, left=0.015, right=0.99, top=0.85, bottom=0.42, wspace=0.05, hspace=0.06,
        width_ratios=[1.15, 0.9, *[1] * MAX_FRAMES],
    )  # fmt: skip
    _show(figure.add_subplot(grid[0, 0]), decision.real, "real frame now")
    gained = decision.j_after - decision.j_before
    error = f"\n± {decision.j_error:.3f} (s.e.)" if decision.j_error else ""
    change, gain, most = _amplified_change(before, after)
    what = f"change\n× {gain}" if gain else "change"
    rows = [
        (before, f"before\nJ = {decision.j_before:.3f}", BEFORE),
        (after, f"after\nJ = {decision.j_after:.3f}\n{gained:+.3f}{error}", color),
        (change, what, "black"),
    ]
    for row, (frames, label, hue) in enumerate(rows):
        words = figure.add_subplot(grid[row, 1])
        words.axis("off")
        words.text(1.0, 0.5, label.replace("-", "−"), ha="right", va="center", fontsize=10, color=hue, weight="bold")
        if row == 2 and not gain:
            plain = figure.add_subplot(grid[row, 2:])
            plain.axis("off")
            seen = f"no visible change (at most {most} of 255)" if most else "no change in any frame"
            plain.text(0.01, 0.5, seen, va="center", fontsize=12)
            continue
        for column, step in enumerate(shown):
            _show(figure.add_subplot(grid[row, 2 + column]), frames[step], f"t + {step + 1}" if row == 0 else "")
    _plot_actions(figure, decision, color)
    save(figure, path, photos=True)


def _amplified_change(before, after):
    """|after - before| times an integer factor that clips at most 1 % of the changed pixels, and its largest pixel.

    The factor is 0 if the change is not visible.
    """
    change = np.abs(after.astype(int) - before.astype(int))
    if change.max() < VISIBLE:
        return change.astype(np.uint8), 0, int(change.max())
    gain = max(1, int(255 // np.percentile(change[change > 0], 99)))
    return np.minimum(gain * change, 255).astype(np.uint8), gain, int(change.max())


def _show(axes, image, title):
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="NW")
    if title:
        axes.set_title(title, fontsize=10)


def _plot_actions(figure, decision: Decision, color):
    """A column for each action dimension, those that changed most: the plan before and after, and the difference."""
    before, after = decision.actions_before, decision.actions_after
    steps, dimensions = 1 + np.arange(len(before)), before.shape[1]
    most = np.abs(after - before).max(axis=0)
    chosen = np.sort(np.argsort(-most, kind="stable")[:MAX_PLOTS])
    grid = figure.add_gridspec(2, len(chosen), left=0.065, right=0.985, top=0.315, bottom=0.065, wspace=0.12,
                               hspace=0.12, height_ratios=[1.25, 1])  # fmt: skip
    words = "planned actions: before (dashed) and after (solid), and their difference"
    if len(chosen) < dimensions:
        words += f"; the {len(chosen)} of {dimensions} that changed most"
    if most.max() == 0:
        words += ": no change"
    figure.text(0.015, 0.375, words, fontsize=11, weight="bold", va="center")
    limit = 1.15 * most.max() or 1.0
    for column, dimension in enumerate(chosen):
        plan, change = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        plan.plot(steps, before[:, dimension], "--", color=BEFORE, linewidth=1.6)
        plan.plot(steps, after[:, dimension], "-", color=color, linewidth=1.6)
        plan.set(ylim=(-1.08, 1.08), yticks=[-1, 0, 1], xticklabels=[])
        plan.set_title(decision.names[dimension], fontsize=9.5, pad=3)
        change.bar(steps, after[:, dimension] - before[:, dimension], color=color, width=0.7)
        change.set(ylim=(-limit, limit))
        change.set_xlabel("step of the plan", fontsize=9)
        for axes in (plan, change):
            axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            axes.set_xlim(0.4, len(steps) + 0.6)
            axes.set_xticks([step for step in steps if step == 1 or step % 5 == 0])
            axes.tick_params(labelsize=8.5, labelleft=column == 0)
            axes.spines[["top", "right"]].set_visible(False)
        plan.tick_params(labelbottom=False)
        if column == 0:
            plan.set_ylabel("action", fontsize=9)
            change.set_ylabel("after − before", fontsize=9)
            figure.align_ylabels([plan, change])


def _put_text(canvas, text, left, top, width, height):
    """Write one line into a box of `canvas` [H, W, 3], in place; smaller, then cut, if it is too long for the box."""
    import cv2

    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    size = 0.55 * height / 26  # capital letters of Hershey Simplex are 22 pixels high at size 1
    (wide, high), _ = cv2.getTextSize(text, font, size, thickness)
    while wide > width and len(text) > 1:  # its sizes are whole pixels: a width is no multiple of another
        size, text = (0.95 * size, text) if size > SMALLEST else (size, text[:-1])
        (wide, high), _ = cv2.getTextSize(text, font, size, thickness)
    baseline = top + (height + high) // 2
    cv2.putText(canvas, text, (left, baseline), font, size, TEXT, thickness, cv2.LINE_AA)
