import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from dreamer_mpc.report import comparison, video
from dreamer_mpc.report.comparison import comparison_picture
from dreamer_mpc.report.rows import COMPARISON, from_comparison
from dreamer_mpc.report.styles import STYLES, styles
from dreamer_mpc.report.video import Decision, Page, decision_picture, write_mp4
from dreamer_mpc.report.words import decimals, mean_and_spread, return_in_words
from dreamer_mpc.util import encode
from dreamer_mpc.util.device import device_name
from tests.support.commands import ROOT


def clip(length=5, height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (length, height, width, 3), dtype=np.uint8)


def read_video(path):
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    with imageio.get_reader(path, format="FFMPEG") as reader:
        return np.stack(list(reader.iter_data())), reader.get_meta_data()


def read_png(path):
    import cv2

    return cv2.imread(str(path))


@pytest.mark.parametrize("height, width", [(64, 64), (63, 65)])
def test_an_mp4_is_read_back_with_its_frames_colours_size_and_rate(tmp_path, height, width):
    path, frames = tmp_path / "videos" / "a.mp4", np.zeros((7, height, width, 3), np.uint8)
    frames[0, ..., 0] = frames[1, ..., 1] = frames[2, ..., 2] = 200
    write_mp4(path, frames, fps=25)
    seen, meta = read_video(path)
    assert seen.shape == (7, 64, width + width % 2, 3)
    np.testing.assert_allclose(seen[:, :height, :width].mean((1, 2)), frames.mean((1, 2)), atol=8)
    assert meta["fps"] == 25
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert os.listdir(path.parent) == ["a.mp4"]


@pytest.mark.parametrize(
    "frames",
    [clip().astype(np.float32), clip()[0], clip()[:0], clip()[..., :1]],
    ids=["float", "one frame", "no frame", "gray"],
)
def test_write_mp4_refuses_other_arrays(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8"):
        write_mp4(tmp_path / "a.mp4", frames, fps=10)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_video_leaves_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_text("previous")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        write_mp4(path, clip(), fps=10)
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("reads", [True, False], ids=["at its end", "at once"])
def test_an_ffmpeg_that_fails_leaves_the_previous_video(tmp_path, monkeypatch, reads):
    path, program = tmp_path / "a.mp4", tmp_path / "ffmpeg"
    path.write_text("previous")
    program.write_text(
        f"#!/bin/sh\n{'cat > /dev/null' if reads else ''}\n"
        'for name; do :; done\necho broken > "${name#file:}"\necho "No space left" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(encode, "find_ffmpeg", lambda: str(program))
    with pytest.raises(OSError, match="exit status 1: No space left"):
        write_mp4(path, clip(40), fps=10)
    assert path.read_text() == "previous"
    assert {file.name for file in tmp_path.iterdir()} == {"a.mp4", "ffmpeg"}


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mp4("lr:1/a.mp4", clip(), fps=10)
    assert len(read_video(tmp_path / "lr:1" / "a.mp4")[0]) == 5


def test_a_backend_of_a_notebook_does_not_matter(tmp_path):
    code = "from dreamer_mpc.report.charts import new_figure\nnew_figure(2, 1).savefig('a.png')\n"
    settings = {"cwd": tmp_path, "env": os.environ | {"MPLBACKEND": "module://nowhere", "PYTHONPATH": str(ROOT)}}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    assert read_png(tmp_path / "a.png").shape == (150, 300, 3)


def page(view=None, panels=("agent", "decoded", "imagined"), title="cheetah-run, dream-mpc"):
    return Page(title, "#0072B2", panels, clip(1, 480, 640)[0] if view is None else view)


def find(frame, patch):
    """Whether `patch` [h, w, 3] is somewhere in `frame`, pixel by pixel."""
    h, w = patch.shape[:2]
    starts = np.argwhere((frame[: len(frame) - h + 1, : frame.shape[1] - w + 1] == patch[0, 0]).all(2))
    return any((frame[y : y + h, x : x + w] == patch).all() for y, x in starts)


def test_a_page_holds_the_view_at_full_size_and_the_panels_enlarged_unsmoothed():
    view, panels = clip(1, 480, 640, seed=1)[0], clip(3, seed=2)
    frame = page(view).frame(view, panels, ["one", "two"])
    assert frame.dtype == np.uint8 and frame.shape[1] % 2 == 0
    assert find(frame, view)
    for panel in panels:
        assert find(frame, panel.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("height, width", [(64, 64), (1080, 1920), (30, 7)])
def test_a_view_of_any_size_has_the_height_of_the_page(height, width):
    view = np.full((height, width, 3), 200, np.uint8)
    frame = page(view).frame(view, clip(3), [])
    assert frame.shape[0] == 522 and (frame[34:514, 8 : 8 + round(480 * width / height)] == 200).all()
    other = np.full((height * 2, width, 3), 100, np.uint8)
    assert page(view).frame(other, clip(3), []).shape == frame.shape, "one that changes its size is fitted in"


def test_each_fact_has_its_line_and_is_not_cut():
    panels, view = np.zeros((3, 64, 64, 3), np.uint8), np.zeros((480, 640, 3), np.uint8)
    empty = page(view).frame(view, panels, [])
    rows = []
    for number in range(6):
        facts = [""] * number + ["return so far 1234567.8 and much too long for its line"]
        changed = (page(view).frame(view, panels, facts) != empty).any(2)
        assert changed.any() and not changed[:, -8:].any() and not changed[:, : 640 + 200].any()
        rows.append(set(np.flatnonzero(changed.any(1))))
    assert not any(rows[i] & rows[j] for i in range(6) for j in range(i))


def test_a_title_has_its_method_s_colour():
    view = np.zeros((480, 640, 3), np.uint8)
    frame = page(view).frame(view, np.zeros((3, 64, 64, 3), np.uint8), [])
    assert (frame[:34] == (0x00, 0x72, 0xB2)).all(2).sum() >= 14 * 14
    assert (frame[:34] > 200).all(2).any(), "the words"


def decision(before, after, actions_before=None, actions_after=None, **more):
    """A decision with two actions of no change."""
    none = np.zeros((len(before), 2))
    actions = (none if actions_before is None else actions_before, none if actions_after is None else actions_after)
    about = {"j_before": 1.0, "j_after": 2.0, "j_error": 0.1, "names": ("hip", "knee") * 20, "meaning": "J: it is."}
    return Decision(before[0], before, after, *actions, **about | more)


def drawn(path, *args, **more):
    decision_picture(path, decision(*args, **more), "one decision", "#0072B2")
    return read_png(path).astype(int)


def test_plans_of_different_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same shape"):
        drawn(tmp_path / "a.png", clip(5), clip(4))


@pytest.mark.parametrize("horizon, action_dim", [(15, 6), (1, 1), (12, 21)])
def test_the_decision_picture_is_written_whatever_the_sizes(tmp_path, horizon, action_dim):
    actions = np.random.default_rng(0).uniform(-1, 1, (2, horizon, action_dim))
    path = tmp_path / "a.png"
    assert drawn(path, clip(horizon), clip(horizon, seed=1), *actions).shape == (1140, 1650, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_the_decision_picture_shows_the_change_that_was_made_and_says_where_there_is_none(tmp_path):
    before = np.zeros((4, 64, 64, 3), np.uint8)

    def change(level):
        after = before.copy()
        after[:, 20:40, 20:40, 1] = level
        return drawn(tmp_path / "a.png", before, after)[500:662, 355:]

    seen = change(10)
    assert (seen[..., 1] - seen[..., 0]).max() > 200, "a change of 10 grey levels is amplified until it can be seen"
    for level in (0, 3):
        unseen = change(level)
        assert (unseen > 200).all(2).mean() > 0.8 and unseen.min() < 100, "words in place of black frames"


@pytest.mark.parametrize("times", [1, 2])
def test_the_title_of_a_decision_does_not_run_off_its_picture(tmp_path, times):
    title = "cheetah-run, dream-mpc, 25,000 env steps, drawn with full (trained with fast): the decision at step 250"
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    decision_picture(tmp_path / "a.png", decision(frames, frames), ", ".join([title] * times), "#0072B2")
    top = read_png(tmp_path / "a.png")[:62]
    assert (top < 128).any() and (top[:, -15:] == 255).all()


def test_the_title_of_a_comparison_does_not_run_off_its_picture(tmp_path):
    title = "tests.example_env:make: 10 episodes of each of 12 checkpoints, drawn with full (some trained with fast)"
    comparison_picture(tmp_path / "a.png", RESULTS["one"], title)
    top = read_png(tmp_path / "a.png")[:40]
    assert (top < 128).any() and (top[:, -10:] == 255).all()


def test_negative_j_has_the_same_minus_before_and_after(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(video, "save", lambda figure, path, photos: figures.append(figure))
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    told = decision(frames, frames, j_before=-0.075, j_after=-0.08)
    decision_picture(tmp_path / "a.png", told, "one decision", "#0072B2")
    words = [text.get_text() for text in figures[0].findobj(Text)]
    assert "before\nJ = −0.075" in words and "after\nJ = −0.080\n−0.005\n± 0.100 (s.e.)" in words


def test_the_decision_picture_shows_changed_actions_j_and_names(tmp_path):
    frames, actions = np.zeros((4, 64, 64, 3), np.uint8), np.zeros((4, 2))
    plain = drawn(tmp_path / "a.png", frames, frames)
    others = [
        {"actions_after": actions + [[0, 0.01]]}, {"j_after": 3.0}, {"j_error": 0.2}, {"names": ("waist", "knee")},
        {"meaning": "J: something else."},
    ]  # fmt: skip
    for more in others:
        assert (drawn(tmp_path / "a.png", frames, frames, **more) != plain).any(), more


def result(planner, value, evaluations, spread=10.0, difference=None):
    """A row with the fields that the picture reads."""
    values = {"planner": planner, "return_mean": value, "return_low": value - spread, "return_high": value + spread}
    low, high = (None, None) if difference is None else (difference - spread, difference + spread)
    differences = {"difference_mean": difference, "difference_low": low, "difference_high": high}
    differences["difference_p_holm"] = None if difference is None else 0.2
    cost = {"model_evaluations": evaluations, "ms_per_action": 1 + evaluations / 100, "num_envs": 2, "device": "CPU"}
    return values | differences | cost


def without_intervals(*rows):
    """The same for fewer than five episodes."""
    lacking = ("return_low", "return_high", "difference_low", "difference_high", "difference_p_holm")
    return [row | dict.fromkeys(lacking) for row in rows]


def sweep(count=30, last=5.0, value=10.0):
    """The policy and `count` settings; the last one's return and difference."""
    rows = [result(f"dream-mpc step_size={i}", 10.0 + i, 75 * i, difference=float(i)) for i in range(1, count)]
    return [result("policy", 10.0, 0), *rows, result("dream-mpc step_size=9", value, 75, difference=last)]


RESULTS = {
    "six planners": [
        result("policy", 812.0, 0), result("dream-mpc", 850.0, 75), result("policy-grad-mpc", 830.0, 75),
        result("grad-mpc", 300.0, 120_000), result("cem", 400.0, 120_000), result("mppi", 820.0, 9264),
    ],
    "one": [result("cem", 400.0, 120_000)],
    "the policy alone": [result("policy", 812.0, 0)],
    "negative returns": [result("policy", -812.0, 0), result("cem", -100.0, 160), result("mppi", 30.0, 100)],
    "returns without spread": [result("policy", 0.0, 0, 0.0), result("cem", 0.0, 160, 0.0)],
    "two of one cost": [result("cem", 400.0, 160), result("mppi", 300.0, 160), result("policy", 1.0, 0)],
    "a long sweep": sweep(),
    "a short sweep": sweep(1),
    "planners without intervals": without_intervals(result("policy", 812.0, 0), result("cem", 850.0, 75)),
    "a sweep without intervals": without_intervals(*sweep(3)),
    "a long sweep without the policy": [result(f"cem horizon={i}", float(i), 75 * i) for i in range(1, 31)],
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_the_comparison_is_drawn(tmp_path, name, recwarn):
    path = tmp_path / "compare.png"
    comparison_picture(path, RESULTS[name], "cheetah-run: 5 checkpoints, 10 episodes each")
    image = read_png(path)
    assert image.shape[1] >= 1200 and 400 <= image.shape[0] <= 1800
    for half in np.array_split(image, 2, axis=1):
        assert (half < 200).any(2).mean() > 0.005, "each half shows something"
    assert list(tmp_path.iterdir()) == [path] and not [str(warning.message) for warning in recwarn]


def test_the_comparison_s_picture_follows_its_rows(tmp_path):
    def picture(*rows):
        comparison_picture(tmp_path / "compare.png", list(rows), "title")
        return read_png(tmp_path / "compare.png").astype(int)

    policy, cem = result("policy", 800.0, 0), result("cem", 400.0, 160)
    drawn = picture(policy, cem)
    others = [result("cem", 200.0, 160), result("cem", 400.0, 16_000), result("cem", 400.0, 160, 200.0)]
    for other in [*others, result("mppi", 400.0, 160)]:
        assert (picture(policy, other) != drawn).any()
    assert (picture(policy, cem) == drawn).all()
    many = picture(*sweep(12))
    assert (picture(*sweep(12, last=-5.0)) != many).any() and (picture(*sweep(12, value=20.0)) != many).any()


def texts(path, rows, monkeypatch):
    """The figure of a comparison and all of its words."""
    figures = []
    monkeypatch.setattr(comparison, "save", lambda figure, path: figures.append(figure))
    comparison_picture(path, rows, "title")
    return figures[0], [text.get_text() for text in figures[0].findobj(Text) if text.get_visible()]


SMALL = {"return_low": 0.02, "return_high": 0.25}


@pytest.mark.parametrize("ms", [10.0, 10.001, 10.3, 12.0])
def test_the_policy_and_its_samples_are_told_apart(tmp_path, monkeypatch, ms):
    rows = [result("policy", 0.13, 0) | SMALL, result("policy sample=True", 0.12, 0, difference=-0.155) | SMALL]
    rows[1] |= {"difference_low": -0.21, "difference_high": -0.10}
    rows = [row | {"ms_per_action": time} for row, time in zip(rows, (10.0, ms), strict=True)]
    figure, words = texts(tmp_path / "compare.png", rows, monkeypatch)
    assert {"policy", "sample=True", "policy sample=True"} <= set(words), "both points have their names"
    assert styles(["policy", "policy sample=True"])["policy sample=True"].color != STYLES["policy"].color
    assert "return 0.13 [0.02, 0.25]" in words and "−0.15 [−0.21, −0.10]" in words, "digits of small returns"
    for axes in figure.axes:
        shown = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted((box for box in shown if box.width), key=lambda box: box.x0)
        assert len(boxes) > 1 and all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False)), "numbers touch"


@pytest.mark.parametrize(
    "usual, values, expected",
    [(1, (0.5, -0.2), 2), (1, (0.03,), 3), (1, (0.03, 1.0), 1), (0, (0.1,), 0), (1, (0.0, None), 1), (1, (1e-9,), 4),
     (1, (math.nan,), 1)],
)  # fmt: skip
def test_small_numbers_have_more_digits(usual, values, expected):
    assert decimals(usual, *values) == expected
    assert mean_and_spread(0.25, 0.031, 3) == "0.25 ± 0.03" and mean_and_spread(25.0, 0.03, 3) == "25.0 ± 0.0"
    assert return_in_words(0.018) == "0.018" and return_in_words(18) == "18.0"


def test_one_thread_is_called_so():
    assert device_name(torch.device("cpu")) == "CPU, 1 thread"
    cells = dict.fromkeys(COMPARISON.values(), "1") | {"device": "CPU, 1 threads"}
    assert from_comparison(cells)["device"] == "CPU, 1 thread", "of older versions"


def test_a_decided_difference_is_a_full_point(tmp_path):
    def coloured(p):
        rows = [result("policy", 10.0, 0), result("cem horizon=1", 15.0, 75, 1.0, difference=5.0)]
        comparison_picture(tmp_path / "compare.png", [rows[0], rows[1] | {"difference_p_holm": p}], "title")
        of_cem = (abs(read_png(tmp_path / "compare.png").astype(int) - (0xC0, 0x8F, 0xE8)) < 20).all(2)
        return of_cem[:, :900].sum()

    assert coloured(0.05) > coloured(0.06) + 40
