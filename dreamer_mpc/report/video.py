"""Videos and pictures from numpy arrays: MP4 files, clips side by side, a planning decision."""

from pathlib import Path
from typing import SupportsFloat

import numpy as np

from dreamer_mpc.report.charts import new_figure
from dreamer_mpc.report.encode import encode
from dreamer_mpc.util.files import atomic_path

GAP = 8  # pixels between panels
BACKGROUND = (18, 18, 22)
TEXT = (235, 235, 235)
MAX_FRAMES = 8  # of a plan
MAX_PLOTS = 12  # of action dimensions
BEFORE, AFTER = "#8a8f98", "#0b6bcb"


def write_mp4(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264, yuv420p, atomically. An odd side grows by one pixel.

    ValueError for another shape or type; UserError if there is no ffmpeg; OSError if it fails, and the old file stays.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], T > 0; got {frames.dtype} {list(frames.shape)}")
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    height, width = (side + side % 2 for side in frames.shape[1:3])
    with atomic_path(path) as temporary:
        encode(temporary, (np.pad(frame, [*odd, (0, 0)], mode="edge") for frame in frames), width, height, fps)


def side_by_side(
    columns: dict[str, np.ndarray], scale: int = 4, footer: list[str] | None = None
) -> np.ndarray:
    """Clips uint8 [T, h, w, 3] as labelled panels side by side: uint8 [T, H, W, 3], H and W even.

    Images are enlarged `scale` times, unsmoothed. A shorter clip holds its last frame; `footer` has one line per frame.
    ValueError if the clips differ in h or w, or `footer` in length.
    """
    clips = {title: np.asarray(clip) for title, clip in columns.items()}
    sizes = {clip.shape[1:] for clip in clips.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"clips must be [T, h, w, 3] of one size, got {[list(c.shape) for c in clips.values()]}"
        )
    length = max(map(len, clips.values()))
    if footer is not None and len(footer) != length:
        raise ValueError(f"footer has {len(footer)} lines for {length} frames")
    height, width = (scale * side for side in next(iter(sizes))[:2])
    line = _line_height(width)
    total_height = line + height + (line if footer is not None else GAP)
    total_width = GAP + len(clips) * (width + GAP)
    canvas = np.empty((total_height + total_height % 2, total_width + total_width % 2, 3), np.uint8)
    canvas[:] = BACKGROUND
    for number, title in enumerate(clips):
        _put_text(canvas, title, GAP + number * (width + GAP), 0, width, line)
    video = np.repeat(canvas[None], length, axis=0)
    for number, clip in enumerate(clips.values()):
        left = GAP + number * (width + GAP)
        held = clip[np.minimum(np.arange(length), len(clip) - 1)]
        video[:, line : line + height, left : left + width] = held.repeat(scale, axis=1).repeat(scale, axis=2)
    for frame, text in zip(video, footer or [], strict=False):
        _put_text(frame, text, GAP, line + height, total_width - 2 * GAP, line)
    return video


def decision_picture(
    path: str | Path,
    before: np.ndarray,
    after: np.ndarray,
    j_before: SupportsFloat,
    j_after: SupportsFloat,
    actions_before: np.ndarray,
    actions_after: np.ndarray,
    real: np.ndarray,
    title: str,
) -> None:
    """Write one PNG, 1600x900, of one planning decision: the chosen plan before and after the gradient step.

    `before`, `after`: the plan decoded, uint8 [H, h, w, 3]; `actions_*`: [H, A] in [-1, 1]; `j_*`: the
    objective; `real`: the frame now, uint8 [h, w, 3]. ValueError if the two plans differ in shape.
    """
    before, after, actions_before, actions_after = map(
        np.asarray, (before, after, actions_before, actions_after)
    )
    if before.shape != after.shape or actions_before.shape != actions_after.shape:
        raise ValueError("the plans before and after must have the same shape")
    figure = new_figure(16, 9, dpi=100)
    figure.text(0.02, 0.955, title, fontsize=19, weight="bold", va="center")
    shown = np.unique(np.linspace(0, len(before) - 1, min(MAX_FRAMES, len(before))).round().astype(int))
    change, gain = _amplified_change(before, after)
    rows = [
        (before, f"before\nJ = {j_before:.3f}", BEFORE),
        (after, f"after\nJ = {j_after:.3f}\n({j_after - j_before:+.3f})", AFTER),
        (change, f"|after − before|\n× {gain}" if gain else "|after − before|\nno change", "black"),
    ]
    grid = figure.add_gridspec(
        3, 2 + MAX_FRAMES, left=0.02, right=0.985, top=0.885, bottom=0.375, wspace=0.05, hspace=0.06,
        width_ratios=[1.25, 0.8, *[1] * MAX_FRAMES],
    )  # fmt: skip
    _show(figure.add_subplot(grid[0, 0]), real, "real frame now")
    for row, (frames, label, color) in enumerate(rows):
        words = figure.add_subplot(grid[row, 1])
        words.axis("off")
        words.text(1.0, 0.5, label, ha="right", va="center", fontsize=12.5, color=color, weight="bold")
        for column, step in enumerate(shown):
            axes = figure.add_subplot(grid[row, 2 + column])
            _show(axes, frames[step], f"t + {step + 1}" if row == 0 else "")
    _plot_actions(figure, actions_before, actions_after)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _amplified_change(before, after):
    """|after - before| times an integer factor that clips at most 1 % of the changed pixels; 0 if nothing changed."""
    change = np.abs(after.astype(int) - before.astype(int))
    if not change.any():
        return change.astype(np.uint8), 0
    gain = max(1, int(255 // np.percentile(change[change > 0], 99)))
    return np.minimum(gain * change, 255).astype(np.uint8), gain


def _show(axes, image, title):
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[], anchor="NW")
    if title:
        axes.set_title(title, fontsize=12)


def _plot_actions(figure, before, after):
    """Small plots of actions [H, A] in the lower third; with many dimensions, only those that changed most."""
    steps, dimensions = 1 + np.arange(len(before)), before.shape[1]
    changed = np.argsort(-np.abs(after - before).max(axis=0), kind="stable")[:MAX_PLOTS]
    chosen = np.sort(changed)
    rows = 1 if len(chosen) <= 6 else 2
    grid = figure.add_gridspec(
        rows,
        -(-len(chosen) // rows),
        left=0.045,
        right=0.985,
        top=0.275,
        bottom=0.065,
        wspace=0.14,
        hspace=0.4,
    )
    words = "planned actions by step: before (dashed), after (solid)"
    if len(chosen) < dimensions:
        words += f"; the {len(chosen)} of {dimensions} that changed most"
    figure.text(0.02, 0.335, words, fontsize=13, weight="bold", va="center")
    for place, dimension in enumerate(chosen):
        axes = figure.add_subplot(grid[place])
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.plot(steps, before[:, dimension], "--", color=BEFORE, linewidth=1.8)
        axes.plot(steps, after[:, dimension], "-", color=AFTER, linewidth=1.8)
        axes.set(ylim=(-1.08, 1.08), xlim=(0.5, len(steps) + 0.5), yticks=[-1, 0, 1])
        axes.set_xticks([step for step in steps if step == 1 or step % 5 == 0])
        if place + grid.ncols < len(chosen):
            axes.set_xticklabels([])
        axes.set_title(f"action {dimension}", fontsize=10, pad=3)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)


def _line_height(width):
    return int(np.clip(width / 8, 18, 36))


def _put_text(canvas, text, left, top, width, height):
    """Write one line into a box of `canvas` [H, W, 3], in place; smaller if it is too long for the box."""
    import cv2

    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    size = 0.55 * height / 22  # capital letters of Hershey Simplex are 22 pixels high at size 1
    (wide, _), _ = cv2.getTextSize(text, font, size, thickness)
    size *= min(1.0, width / max(wide, 1))
    (_, high), _ = cv2.getTextSize(text, font, size, thickness)
    baseline = top + (height + high) // 2
    cv2.putText(canvas, text, (left, baseline), font, size, TEXT, thickness, cv2.LINE_AA)
