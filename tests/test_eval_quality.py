"""Evaluations in another render quality than training, with real pixels of dm_control."""

import contextlib
import io
import json
import re

import cv2
import numpy as np
import pytest
import torch

from dreamer_mpc.config import Config, SweepConfig, load_presets, resolve
from dreamer_mpc.config.schema import EvaluationConfig
from dreamer_mpc.envs import choose_gl_backend, make_env
from dreamer_mpc.envs.dmc import DMCEnv
from dreamer_mpc.evaluation import compare, player
from dreamer_mpc.evaluation.player import evaluation_envs
from dreamer_mpc.evaluation.visualize import write_visuals
from dreamer_mpc.report.charts import _common_quality
from dreamer_mpc.report.curves import gather, published
from dreamer_mpc.report.found import FoundComparison
from dreamer_mpc.report.methods import method_of
from dreamer_mpc.report.plot import plot
from dreamer_mpc.report.styles import STYLES, in_words, style, styles
from dreamer_mpc.runs.resume import open_run
from dreamer_mpc.sweeps.runs import list_runs
from dreamer_mpc.training.command import _settings
from dreamer_mpc.util.errors import UserError
from scripts.soak import TIMES, differences
from tests.support.agents import BRIEF, CHEAP, TINY
from tests.support.commands import ROOT, quietly, records, train
from tests.support.stops import stop
from tests.test_plot import make_run, table

ENDED = "drawn with full (trained with small-shadows)"
KEY = "eval/drawn_with_full"
# Evaluations at 24 and 40 env steps, and a last one of the policy, with their seed 500.
RUN = [
    *BRIEF, *CHEAP, "--env", "cheetah-run", "--num-envs", "1", "--env-steps", "40", "--eval.every", "24",
    "--eval.seed", "500", "--render-quality", "small-shadows",
]  # fmt: skip
FULL, FAST = ([*RUN, "--eval.render-quality", quality] for quality in ("full", "fast"))


def own(seed, shadowsize=None):
    """The first image of an episode, as dm_control draws it itself."""
    choose_gl_backend()
    from dm_control import suite  # it reads the choice

    env = suite.load("cheetah", "run")
    if shadowsize:
        env.physics.model.vis.quality.shadowsize = shadowsize
    env.task.random.seed(seed)
    env.reset()
    return env.physics.render(64, 64, camera_id=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run whose evaluations are in full, its output, and the seed and first image of its episodes.

    The output ends with the titles of its videos.
    """
    folder, begun, reset, titles = tmp_path_factory.mktemp("full") / "run", [], DMCEnv.reset, []

    def seen(self, *, seed=None, options=None):
        image, info = reset(self, seed=seed, options=options)
        begun.append((seed, image))
        return image, info

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DMCEnv, "reset", seen)
        patch.setattr(player, "write_visuals", lambda *args: titles.append(args[5]) or write_visuals(*args))
        said = train(*FULL, "--eval.video", "--eval.video-steps", 4, "--run-dir", folder)
    return folder, " ".join([*said.split(), *titles]), [pair for pair in begun if pair[0] is not None]


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast") / "run"
    train(*FAST, "--run-dir", folder)
    return folder


def without_times(folder, evaluations):
    """Records of training, or of evaluations."""
    rows = [row for row in records(folder) if ("eval/return_mean" in row) == evaluations]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_evaluations_see_what_dm_control_draws_itself_and_training_sees_small_shadows(whole):
    begun = whole[2]
    evaluated = [image for seed, image in begun if seed == 500]
    trained = [(seed, image) for seed, image in begun if seed > 1000]
    assert len(evaluated) == 3 and trained
    for image in evaluated:
        np.testing.assert_array_equal(image, own(500))
    for seed, image in trained:
        np.testing.assert_array_equal(image, own(seed, shadowsize=1024))
    assert any((image != own(seed)).any() for seed, image in trained)


@pytest.mark.parametrize("asked, drawn", [(None, "small-shadows"), ("full", "full"), ("fast", "fast")])
def test_evaluations_are_drawn_as_asked_else_as_training_is(asked, drawn):
    evaluation = EvaluationConfig(render_quality=asked, num_envs=1)
    config = Config(env="walker-run", render_quality="small-shadows", eval=evaluation)
    image = evaluation_envs(config, torch.device("cpu")).reset(seed=[3])[0][0]
    for quality in ("full", "small-shadows", "fast"):
        other = make_env("walker-run", render_quality=quality).reset(seed=3)[0]
        assert (image == other).all() == (quality == drawn)


def test_a_run_says_what_drew_its_evaluations(whole, tmp_path):
    folder, said, _ = whole
    assert "evaluations are drawn with full, training with small-shadows" in said
    assert len(re.findall(r"evaluation at \d+ env steps: [^:]* 1 episode, drawn with full", said)) == 2
    assert f"cheetah-run, 40 env steps, {ENDED}" in said, "the title of the last table"
    for env_steps in (24, 40):
        assert f"cheetah-run, dream-mpc, {env_steps} env steps, {ENDED}" in said, "the title of a video"
    evaluations = [record for record in records(folder) if "eval/return_mean" in record]
    assert [record[KEY] for record in evaluations] == [1.0, 1.0]
    assert not any(KEY in record for record in records(folder) if record not in evaluations)
    assert quietly("report", folder, "--out", tmp_path / "page.html").code == 0
    assert f"Dream-MPC, {ENDED}" in (tmp_path / "page.html").read_text()


def test_without_the_setting_nothing_is_said_of_it(tmp_path):
    same = train(*RUN, "--eval.render-quality", "small-shadows", "--run-dir", tmp_path / "same")
    assert "drawn" not in train(*RUN, "--run-dir", tmp_path / "none") + same
    assert "drawn" not in (tmp_path / "none/metrics.jsonl").read_text()
    assert differences(tmp_path / "none", tmp_path / "same", leave_out=["/random/python"]) == []


def test_an_evaluation_s_quality_does_not_reach_training(whole, fast):
    assert without_times(fast, evaluations=False) == without_times(whole[0], evaluations=False)
    found = differences(fast, whole[0], leave_out=["/random/python", "/training/best_return"])
    assert found == [f"metrics of {fast}"], "those of evaluations"


def test_played_beside_training_it_is_the_same(whole, fast, tmp_path):
    said = train(*FAST, "--eval.beside", "on", "--run-dir", tmp_path / "beside")
    assert "beside training took" in said and "drawn with fast" in said
    beside, sequential, other = (without_times(x, evaluations=True) for x in (tmp_path / "beside", fast, whole[0]))
    assert beside == sequential and len(beside) == 2
    assert all(a["eval/return_mean"] != b["eval/return_mean"] for a, b in zip(beside, other, strict=True))


def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stop(monkeypatch, 21)
    assert "stopped at" in train(*FULL, "--eval.video", "--eval.video-steps", 4, "--run-dir", folder)
    assert open_run(str(folder)).config.evaluated_in == "full"
    said = train("--resume", folder)
    assert "changed from the saved run" not in said and "drawn with full" in said
    assert differences(folder, whole[0], leave_out=["/random/python"]) == []


def test_a_resumed_run_may_change_it_as_it_may_change_its_own(tmp_path):
    folder = tmp_path / "run"
    train(*RUN, "--run-dir", folder)
    said = train("--resume", folder, "--env-steps", 56, "--eval.render-quality", "full")
    assert "changed from the saved run: eval.render_quality: None -> full" in said
    drawn = [KEY in record for record in records(folder) if "eval/return_mean" in record]
    assert drawn[:2] == [False, False] and all(drawn[2:]) and len(drawn) > 2
    done = quietly("--resume", folder, "--env-steps", 72, "--eval.render-quality", "warp")
    assert done.code == 2 and done.err.count("\n") == 1 and "a world of their own" in done.err


@pytest.mark.parametrize("words", [["warp"], ["full", "--render-quality", "warp"]])
def test_pictures_by_warp_are_for_both_or_for_neither(words, tmp_path):
    done = quietly(*FULL[:-1], *words, "--run-dir", tmp_path / "run")
    assert done.code == 2 and not (tmp_path / "run").exists()
    assert re.fullmatch(
        r"error: --eval\.render-quality \w+ does not go with .*: give both warp, or neither\n", done.err
    )


@pytest.fixture
def presets(tmp_path):
    """Files of presets: `full` for evaluations alone, and warp for both."""
    (tmp_path / "full.yaml").write_text("eval: {render_quality: full}\n")
    (tmp_path / "warp.yaml").write_text("render_quality: warp\neval: {render_quality: warp}\n")
    return {name: tmp_path / f"{name}.yaml" for name in ("full", "warp")}


@pytest.mark.parametrize("preset, given", [("full", "warp"), ("full", "fast"), ("warp", "fast")])
def test_what_is_given_alone_wins_over_a_preset_s_quality_of_evaluations(preset, given, presets, tmp_path):
    args = ["--env", "cheetah-run", "--config", f"quick,{presets[preset]}", "--render-quality", given]
    out = io.StringIO()
    with contextlib.ExitStack() as owned, contextlib.redirect_stdout(out):
        config, _ = _settings(args, owned)
    assert resolve(config).evaluated_in == config.render_quality == given
    asked = f"the {preset} of the presets does not go with --render-quality {given}"
    assert out.getvalue() == f"evaluations are drawn with {given}, as training is: {asked}\n"
    sweep = SweepConfig(envs="cheetah-run", planners="policy", out=str(tmp_path / "sweep"))
    assert len(list_runs(sweep, args[2:])) == 1


def test_what_goes_together_is_left_and_what_is_given_for_both_refused(presets, tmp_path):
    args = ["--config", f"quick,{presets['full']}", "--run-dir", tmp_path / "run"]
    both = [*args, "--eval.render-quality", "full", "--render-quality"]
    for words in ([*both, "warp"], ["--config", f"{presets['warp']}", "--eval.render-quality", "full"]):
        done = quietly(*words)
        assert done.code == 2 and "give both warp, or neither" in done.err and not done.out
    with contextlib.ExitStack() as owned:
        config, _ = _settings([*map(str, args), "--render-quality", "small-shadows"], owned)
    assert (config.render_quality, config.evaluated_in) == ("small-shadows", "full")


def test_a_wrong_value_is_named_in_one_line(tmp_path):
    done = quietly(*FULL[:-1], "best", "--run-dir", tmp_path / "run")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "'best' for argument '--eval.render-quality'" in done.err
    assert "Expected one of ('full', 'small-shadows', 'fast', 'warp', 'None')" in done.err
    (tmp_path / "mine.yaml").write_text("eval:\n  render_quality: best\n")
    with pytest.raises(UserError, match=r"eval\.render_quality: Invalid value 'best', expected one of"):
        load_presets(str(tmp_path / "mine.yaml"))


def test_an_environment_of_ones_own_is_as_with_the_quality_of_training(tmp_path):
    """It draws itself, whatever is asked for, and no line says otherwise."""
    train(*TINY, "--run-dir", tmp_path / "a")
    assert "drawn" not in train(*TINY, "--eval.render-quality", "full", "--run-dir", tmp_path / "b")
    assert differences(tmp_path / "a", tmp_path / "b", leave_out=["/random/python"]) == []
    done = quietly(*TINY, "--eval.render-quality", "warp", "--run-dir", tmp_path / "c")
    assert done.code == 2 and "give both warp, or neither" in done.err


@pytest.mark.parametrize(
    "env, drawn",
    [
        ("cheetah-run", "full"),
        ("HalfCheetah-v5", "full"),
        ("Pendulum-v1", "fast"),
        ("mine:Robot-v0", "fast"),
        ("mine:make", "fast"),
    ],
)
def test_what_draws_itself_has_one_quality(env, drawn):
    assert Config(env=env, render_quality="fast", eval=EvaluationConfig(render_quality="full")).evaluated_in == drawn


def test_standalone_evaluations_play_in_the_quality_of_the_run_s_evaluations(whole, tmp_path):
    args = ["--checkpoint", whole[0], "--episodes", 1, "--num-envs", 1, "--seed", 500]
    for command in (["eval", "--planner", "policy"], ["compare", "--planners", "policy"]):
        done = quietly(*command, *args, "--out", tmp_path / command[0])
        assert done.code == 0 and ENDED in " ".join(done.out.split())
    assert '"render_quality": "full"' in (tmp_path / "eval" / "eval.json").read_text()


def test_pictures_and_pages_say_that_agents_were_trained_in_another_quality(whole, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(compare, "write_visuals", lambda *args: titles.append(args[-2]) or [])
    few = ["--episodes", 1, "--num-envs", 1, "--seed", 500, "--render-quality", "fast", "--out", tmp_path]
    args = ["compare", "--checkpoint", whole[0], "--planners", "policy", *few]
    assert quietly(*args, "--video").code == 0
    ended = ", drawn with fast (trained with small-shadows)"
    assert FoundComparison.read(tmp_path).title.endswith(f"1 episode of 1 checkpoint{ended}")
    assert titles == [f"cheetah-run, policy{ended}"]
    record = json.loads((tmp_path / "compare.json").read_text())
    assert record.pop("trained_with") == {sha256: "small-shadows" for sha256 in record["checkpoints"].values()}
    (tmp_path / "compare.json").write_text(json.dumps(record))
    assert FoundComparison.read(tmp_path).title.endswith("1 checkpoint"), "of an older version"
    assert quietly(*args).code == 0, "which goes on"
    assert FoundComparison.read(tmp_path).title.endswith(ended)
    assert quietly("eval", "--checkpoint", whole[0], "--planner", "policy", *few).code == 0
    assert quietly("report", tmp_path).code == 0
    assert f"env steps{ended}" in (tmp_path / "report.html").read_text()


# curves


def apart(**settings):
    return {"render_quality": "small-shadows", "eval": EvaluationConfig(render_quality="full"), **settings}


def test_curves_say_it_and_still_stand_beside_the_paper_s(tmp_path):
    make_run(tmp_path / "runs/a", [100.0, 200.0, 300.0], step=50_000)
    make_run(tmp_path / "runs/b", [100.0, 200.0, 300.0], step=50_000, **apart())
    plot(tmp_path / "out", (str(tmp_path / "runs"),))
    one, other = table(tmp_path / "out/final.csv")
    assert (one["method"], other["method"]) == ("dream-mpc", f"dream-mpc, {ENDED}")
    assert one["paper"] == other["paper"] != ""
    [curve] = gather([str(tmp_path / "runs/b")])
    assert published("cheetah-run").paper_return(curve) == float(one["paper"])


def test_a_picture_says_it_once_where_all_curves_have_it(tmp_path):
    make_run(tmp_path / "a", [100.0, 200.0], **apart())
    make_run(tmp_path / "b", [100.0, 200.0], **apart(planner="policy", agent="dreamer"))
    make_run(tmp_path / "c", [100.0, 200.0], seed=1)
    name, bare, alone = (gather([str(tmp_path / x)])[0].method for x in "abc")
    assert _common_quality({name, bare}) == f", {ENDED}" and _common_quality({name, alone}) == ""
    for number, runs in enumerate(("a", "ab", "ac")):
        plot(tmp_path / f"out{number}", tuple(str(tmp_path / run) for run in runs))
        picture = cv2.imread(str(tmp_path / f"out{number}/curves.png"))
        assert ((picture[..., 0] > 150) & (picture[..., 2] < 60)).sum() > 100, "the colour of Dream-MPC"


def test_a_method_keeps_its_name_and_its_style():
    method = method_of(Config(**apart(train_planner="policy")))
    assert method == f"dream-mpc, trained with policy, {ENDED}"
    warp = Config(render_quality="warp", eval=EvaluationConfig(render_quality="warp"))
    assert method_of(warp) == "dream-mpc, drawn by warp" == method_of(Config(render_quality="warp"))
    method = f"dream-mpc, {ENDED}"
    assert in_words(method) == f"Dream-MPC, {ENDED}" and in_words("dream-mpc") == "Dream-MPC"
    assert style(method) == STYLES["dream-mpc"] == styles([method, "policy"])[method]
    both = styles([method, "dream-mpc"])
    assert both["dream-mpc"] == STYLES["dream-mpc"] != both[method]
    assert in_words("dreamer, drawn by warp") == "dreamer, drawn by warp"


def test_the_page_s_returns_by_rendering_are_those_of_its_files():
    page = (ROOT / "docs" / "evaluation.md").read_text()
    returns = {}
    for quality in ("small-shadows", "full", "fast"):
        said = json.loads((ROOT / "results" / "v3" / "rendering" / f"{quality}.json").read_text())
        assert said["render_quality"] == quality and said["env"] == "cheetah-run"
        returns[quality] = np.array(said["results"][0]["returns"])
        words = f"{returns[quality].mean():.0f} ± {returns[quality].std(ddof=1):.0f}\\s+with (its own )?`{quality}`"
        assert re.search(words, page), words
    for quality in ("full", "fast"):
        difference = returns[quality] - returns["small-shadows"]
        half = 2.3646 * difference.std(ddof=1) / 8**0.5  # Student's t of 7 degrees of freedom, 97.5 %
        numbers = (difference.mean(), difference.mean() - half, difference.mean() + half)
        assert "{:.0f} [{:.0f}, {:.0f}]".format(*numbers).replace("-", "−") in page
