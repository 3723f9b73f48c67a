"""The page of `run.py report`: its content as text, and what a browser shows of it."""

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest

import run
from dreamer_mpc.config import CompareConfig, Config, parse, with_planners_of
from dreamer_mpc.evaluation.compare import contestants
from dreamer_mpc.planners import DreamMPC, Policy
from dreamer_mpc.report.command import changed_presets, compare_command
from dreamer_mpc.report.rows import Row, to_comparison
from dreamer_mpc.report.styles import STYLES
from dreamer_mpc.report.video import write_mp4
from dreamer_mpc.util.files import to_csv
from tests.test_plot import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LOOK = """<script>
addEventListener('load', () => {
  const all = (name) => [...document.querySelectorAll(name)];
  const seen = {
    wide: document.documentElement.scrollWidth, window: innerWidth, text: document.body.innerText,
    images: all('img').map((i) => [i.naturalWidth, i.getBoundingClientRect().width]),
    dark: getComputedStyle(document.body).backgroundColor,
  };
  const videos = all('video');
  const ready = (video) => new Promise((done) => {
    if (video.readyState > 0) done(); else { video.onloadedmetadata = done; video.onerror = done; }
  });
  Promise.all(videos.map(ready)).then(() => {
    seen.videos = videos.map((v) => [v.videoWidth, v.videoHeight, v.duration]);
    document.title = JSON.stringify(seen);
  });
});
</script>"""


def row(planner, value, difference=None, p=None, ms=10.0):
    """A row of 64 episodes, whose intervals are 2 wide on either side."""
    of_it = (None,) * 4 if difference is None else (difference, difference - 2, difference + 2, p)
    values = (planner, 64, 1, value, value - 2, value + 2, 5.0, 0, value, *of_it, p, ms, 1000 / ms, 75, 16)
    about = {"device": "NVIDIA H200", "torch": "2.11.0", "date": "2026-11-28"}
    return dict(zip(Row.__annotations__, values, strict=False)) | about


SWEPT = "dream-mpc-default open_loop=0 caution=0"
ROWS = [
    row("policy", 139.0), row("dream-mpc-default", 163.4, 24.4, 0.01), row("dream-mpc-paper", 159.8, 20.8, 0.01, 10.5),
    row("mppi", 124.6, -14.4, 0.01), row(SWEPT, 139.5, 0.5, 0.7),
]  # fmt: skip
MADE_WITH = {
    "env": "hopper-hop", "seed": 40000, "render_quality": "full", "checkpoints": {"a b": "6d8172708"},
    "planners": {"dream-mpc-default": {"horizon": 10, "scale_penalty": False},
                 "dream-mpc-paper": {"horizon": 15, "scale_penalty": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison with a video, and two runs that differ, one of them with a name that is HTML."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "compare").mkdir()
    (folder / "compare/compare.csv").write_text(to_csv(map(to_comparison, ROWS)))
    (folder / "compare/compare.json").write_text(json.dumps(MADE_WITH))
    write_mp4(folder / "compare/dream-mpc-default.mp4", np.zeros((50, 64, 96, 3), np.uint8), 25)
    cv2.imwrite(str(folder / "compare/dream-mpc-default-decision.png"), np.full((90, 160, 3), (0, 200, 0), np.uint8))
    first = make_run(folder / "runs/<b>one", [100.0, 200.0])
    versions = {"commit": "abc123", "command": ["run.py", "--env", "a b"], "packages": {"torch": "2.13.0"}}
    (first / "versions.json").write_text(json.dumps(versions))
    make_run(folder / "runs/two", [150.0], planner="policy", seed=1)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    assert run.main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text()


def words(page):
    """The text of a page, without tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1])).split())


def test_the_page_says_what_was_gained_and_how_it_was_measured(page):
    text = words(page)
    assert "+24.4 dream-mpc-default over the policy in hopper-hop [+22.4, +26.4], 64 episodes, decided" in text
    assert "200 return in cheetah-run after 50,000 env steps: Dream-MPC, seed 0, mean ± standard deviation 2" in text
    assert "dream-mpc-paper 160 [158, 162] +20.8 [+18.8, +22.8] * 10.5" in text, "the table with paired differences"
    for setting in ("planner dream-mpc policy", "horizon 10 15"):
        assert setting in text, "those that differ"
    assert "replay.capacity" not in text and "scale_penalty" not in text, "those that are the same"
    assert "Commit abc123" in text and "torch 2.13.0" in text and "run.py --env 'a b'" in text
    assert "python run.py compare --checkpoint 'a b' --planners policy,dream-mpc-default,dream-mpc-paper,mppi" in text
    assert "--sweep dream-mpc-default.open_loop=0:caution=0 --episodes 64 --seed 40000" in text
    for part in ("Comparisons", "Learning curves", "Videos and decisions", "Settings that differ"):
        assert part in text


COMPARED = {
    "a setting of the policy alone": (["--policy.sample"], "policy", ["policy.sample=true,false"]),
    "groups, lists and None": (
        ["--dream-mpc.line-search", "0.5", "--dream-mpc.no-mode-candidate", "--dream-mpc.draws", "None",
         "--dream-mpc.discount", "0.9", "--mppi.elites", "7", "--cem.horizon", "3"],
        "policy,dream-mpc,cem,mppi", [],
    ),
    "sweeps over other settings": (
        ["--dream-mpc.horizon", "4", "--dream-mpc.line-search", "--mppi.discount", "0.5"],
        "dream-mpc-default", ["dream-mpc.caution=0,1:reuse=0.5", "mppi.discount=0.9", "dream-mpc-default.draws=2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_the_command_on_the_page_has_every_setting_whatever_its_checkpoint_has(name):
    given, planners, sweep = COMPARED[name]
    args = ["--checkpoint", "a b", "--planners", planners, *(["--sweep", *sweep] if sweep else []), *given]
    made, _ = contestants(parse(CompareConfig, args), [])
    made_with = json.loads(json.dumps({**MADE_WITH, "planners": {key: asdict(made[key]) for key in made}}))
    command = compare_command([row(label, 1.0) for label in made], made_with)
    other = Config(policy=Policy(sample=True), dream_mpc=DreamMPC(horizon=9, discount=0.8, caution=0.3, habits=()))
    default = with_planners_of(other, CompareConfig(checkpoint=("a b",)))  # what another checkpoint would say
    again = parse(CompareConfig, shlex.split(command)[3:], default)
    assert contestants(again, [])[0] == made and list(contestants(again, [])[0]) == list(made)
    assert (again.checkpoint, again.episodes, again.seed, again.num_envs) == (("a b",), 64, 40000, 16)
    assert again.render_quality == "full"


def test_a_preset_that_has_changed_since_is_named(page):
    assert "But this version has other settings" not in words(page)
    planners = {"dream-mpc-paper": {"horizon": 12, "discount": 0.5}, "policy": {}}
    assert changed_presets(ROWS, MADE_WITH | {"planners": planners}) == ["dream-mpc-paper (horizon 12 -> 15)"]
    command = compare_command(ROWS, MADE_WITH | {"planners": planners})
    assert command.endswith("--policy.no-sample --dream-mpc.discount 0.5"), "older files: the policy had no settings"


def test_the_page_is_one_file_that_asks_nobody_for_anything(page):
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page) and "url(" not in page and "<script" not in page
    assert "default-src 'none'" in page
    assert "<b>one" not in page and "&lt;b&gt;one" in page, "names are text"
    assert page.count("<img") == 3 and page.count("<video") == 1
    assert f"background:{STYLES['mppi'].color}" in page, "the colours of the pictures"


def test_what_does_not_fit_is_named(folder, tmp_path, capsys):
    out = tmp_path / "small.html"
    assert run.main(["report", str(folder), "--out", str(out), "--max-mb", "0.0001", "--title", "Ours <1>"]) == 0
    page = out.read_text()
    assert "<img" not in page and "<video" not in page and len(page) < 100_000
    assert "left out, as the page would be too large" in words(page) and "dream-mpc-default.mp4" in words(page)
    assert "<title>Ours &lt;1&gt;</title>" in page
    assert "left out, as the page would be larger than --max-mb 0.0001" in capsys.readouterr().out


def test_what_is_damaged_is_left_out_and_named(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "a")
    (tmp_path / "a/compare/compare.csv").write_text("planner\npolicy\n")
    assert run.main(["report", str(tmp_path / "a")]) == 0
    assert "compare.csv or compare.json beside it is damaged" in capsys.readouterr().out
    assert "is damaged" in words((tmp_path / "a/report.html").read_text())


def test_an_analysis_is_on_the_page_with_its_table_and_picture(tmp_path, capsys):
    folder = tmp_path / "analysis"
    folder.mkdir()
    (folder / "analysis.json").write_text(json.dumps({"what": "model-error"}))
    assert run.main(["report", str(folder)]) == 0
    text = words((folder / "report.html").read_text())
    assert "Planning with world models: model-error" in text and "Its table is not there" in text
    (folder / "table.csv").write_text(to_csv([{"tasks": "smooth", "reward\nerror": "0.05 [0.04, 0.06]"}]))
    cv2.imwrite(str(folder / "analysis.png"), np.zeros((90, 160, 3), np.uint8))
    make_run(tmp_path / "run", [100.0])
    assert run.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "tasks reward error smooth 0.05 [0.04, 0.06]" in words(page) and page.count("<img") == 2
    (folder / "table.csv").write_text("a,b\n1\n")
    assert run.main(["report", str(tmp_path)]) == 0
    assert "table.csv beside it is damaged" in capsys.readouterr().out


REFUSED = {
    "no folder": (["{empty}/x"], "no folder"),
    "nothing in it": (["{empty}"], "holds no run, comparison, evaluation or analysis"),
    "a file": (["{file}"], "no folder"),
    "a page that cannot be": (["{good}", "--out", "{file}/a.html"], "cannot write"),
    "a negative size": (["{good}", "--max-mb", "-1"], "max"),
    "none": ([], "FOLDER"),
    "damaged alone": (["{damaged}"], "is damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(name, tmp_path, capsys):
    args, message = REFUSED[name]
    places = {key: tmp_path / key for key in ("empty", "file", "good", "damaged")}
    places["empty"].mkdir()
    places["damaged"].mkdir()
    (places["damaged"] / "eval.json").write_text("{}")
    places["file"].write_text("")
    make_run(places["good"], [1.0])
    assert run.main(["report", *[word.format(**places) for word in args]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_page_that_cannot_be_written_is_refused_before_its_pictures_are_drawn(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "run", [1.0])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("dreamer_mpc.report.report.write_page", lambda *_: pytest.fail("drawn"))
    assert run.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "file" / "a.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def browse(page: Path, profile: Path, *options: str) -> str:
    """What headless Chromium prints for a page."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    command = [CHROMIUM, *quiet, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
def test_a_browser_shows_pictures_videos_and_text_on_a_desktop_and_on_a_phone(page, tmp_path):
    looking = tmp_path / "looking.html"
    looking.write_text(re.sub("<meta http-equiv[^>]*>", "", page).replace("</body>", f"{LOOK}</body>"))
    dom = browse(looking, tmp_path / "a", "--dump-dom", "--window-size=1200,900", "--virtual-time-budget=5000")
    seen = json.loads(unescape(re.search("<title>(.*?)</title>", dom, re.S)[1]))
    assert [natural > 100 and 100 < width <= 992 for natural, width in seen["images"]] == [True] * 3
    assert seen["videos"] == [[96, 64, 2.0]], "at its speed"
    assert seen["wide"] <= seen["window"], "nothing hangs over the edge"
    assert "+24.4" in seen["text"] and "<b>one" in seen["text"]
    narrow = "--window-size=500,900"  # the narrowest that headless Chromium has
    dom = browse(looking, tmp_path / "a", "--dump-dom", narrow, "--virtual-time-budget=5000")
    phone = json.loads(unescape(re.search("<title>(.*?)</title>", dom, re.S)[1]))
    assert phone["wide"] <= phone["window"] <= 500
    assert all(width <= 480 for _, width in phone["images"]), "pictures shrink"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
def test_the_picture_of_the_whole_page_has_its_colours(page, folder, tmp_path):
    browse(folder / "report.html", tmp_path / "a", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1100,4500")
    shot = cv2.imread(str(tmp_path / "page.png")).astype(int)
    assert shot.shape[:2] == (4500, 1100)
    for color in ("#00335C", "#C8420A", "#56B4E9"):  # of planners, in cards, pictures and tables
        blue_green_red = [int(color[i : i + 2], 16) for i in (5, 3, 1)]
        assert (abs(shot - blue_green_red) < 8).all(2).sum() > 100, color
    assert (shot == (0, 200, 0)).all(2).sum() > 10_000, "the decision's picture"
