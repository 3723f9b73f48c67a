import os
import subprocess
import sys

import numpy as np
import pytest

from dreamer_mpc.report import encode
from dreamer_mpc.report.comparison import comparison_picture
from dreamer_mpc.report.video import decision_picture, side_by_side, write_mp4
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


def find(video, patch):
    """Whether `patch` [h, w, 3] is somewhere in the frame `video`, pixel by pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(video, patch.shape)[:, :, 0]
    return bool((windows == patch).all((2, 3, 4)).any())


def test_panels_hold_the_enlarged_frames_unsmoothed():
    left, right = clip(3, 8, 8, seed=1), clip(3, 8, 8, seed=2)
    video = side_by_side({"real": left, "imagined": right}, scale=2)
    assert video.dtype == np.uint8
    assert len(video) == 3
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    for step in range(3):
        assert find(video[step], left[step].repeat(2, 0).repeat(2, 1))
        assert find(video[step], right[step].repeat(2, 0).repeat(2, 1))
    video = side_by_side({"long": clip(4, 8, 8), "short": right}, scale=1)
    assert find(video[3], right[2]), "a shorter clip holds its last frame"


def test_titles_and_footers_are_drawn():
    black = {"a": np.zeros((2, 64, 64, 3), np.uint8)}
    plain, titled = side_by_side({"": black["a"]}), side_by_side({"real": black["a"]})
    assert (plain != titled).any()
    video = side_by_side(black, footer=["t = 0", "t = 1"])
    assert video.shape[1] > titled.shape[1]
    changed = np.flatnonzero((video[0] != video[1]).any((1, 2)))
    assert changed.min() > 256, "the footer lies below the panel"


def test_a_long_title_stays_in_its_panel():
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    short = side_by_side({"": frames, "b": frames})
    long = side_by_side({"a title much too long for its panel, really": frames, "b": frames})
    assert np.flatnonzero((short != long).any((0, 1, 3))).max() < 8 + 4 * 64 + 8


def test_clips_and_plans_of_different_size_and_a_wrong_footer_are_refused():
    with pytest.raises(ValueError, match="one size"):
        side_by_side({"a": clip(2, 8, 8), "b": clip(2, 8, 9)})
    with pytest.raises(ValueError, match="one size"):
        side_by_side({})
    with pytest.raises(ValueError, match="footer"):
        side_by_side({"a": clip(2)}, footer=["one"])
    actions = np.zeros((5, 2))
    with pytest.raises(ValueError, match="same shape"):
        decision_picture("a.png", clip(5), clip(4), 0, 0, actions, actions, clip(1)[0], "")


@pytest.mark.parametrize("horizon, action_dim", [(15, 6), (1, 1), (12, 21)])
def test_the_decision_picture_is_written_whatever_the_sizes(tmp_path, horizon, action_dim):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (2, horizon, action_dim))
    path = tmp_path / "a.png"
    decision_picture(path, clip(horizon), clip(horizon, seed=1), 1.0, 2.0, *actions, clip(1)[0], "one decision")
    assert read_png(path).shape == (900, 1600, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_the_decision_picture_shows_the_change_that_was_made(tmp_path):
    before, actions = np.zeros((4, 64, 64, 3), np.uint8), np.zeros((4, 2))
    after = before.copy()
    after[:, 20:40, 20:40, 1] = 10

    def brightest_green(frames):
        decision_picture(tmp_path / "a.png", before, frames, 0, 0, actions, actions, before[0], "")
        rows = read_png(tmp_path / "a.png")[420:560, 360:].astype(int)
        return (rows[..., 1] - rows[..., 0]).max()

    assert brightest_green(before) == 0
    assert brightest_green(after) > 200, "a change of 10 grey levels is amplified until it can be seen"


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


def test_a_decided_difference_is_a_full_point(tmp_path):
    def dark(p):
        rows = [result("policy", 10.0, 0), result("cem horizon=1", 15.0, 75, 1.0, difference=5.0)]
        comparison_picture(tmp_path / "compare.png", [rows[0], rows[1] | {"difference_p_holm": p}], "title")
        return (read_png(tmp_path / "compare.png")[100:-120, 520:720].min(axis=2) < 160).sum()

    assert dark(0.05) > dark(0.06)
