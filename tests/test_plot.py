"""Curves of runs: gathered into CSV files, drawn with published curves, and redrawn from the files."""

import csv
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

import run
from dreamer_mpc.config import Config, to_yaml
from dreamer_mpc.planners import Policy
from dreamer_mpc.report.curves import Curve, gather, published, read_curves, write_curves
from dreamer_mpc.report.methods import method_of
from dreamer_mpc.report.plot import plot
from dreamer_mpc.util.errors import UserError

RESULTS = Path(__file__).resolve().parent.parent / "results"


def make_run(folder, returns, step=25_000, **settings):
    """A run folder with an evaluation every `step` env steps, and records without one between them."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(Config(**settings)))
    lines = []
    for i, value in enumerate(returns, start=1):
        counters = {"env_steps": i * step, "agent_steps": i * step // 2, "updates": i, "episodes": i, "time_s": 1.0}
        lines.append(counters | {"train/return": 1.0})
        lines.append(counters | {"eval/return_mean": value, "eval/return_std": 2.0, "eval/episodes": 10.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def image(path):
    return cv2.imread(str(path)).astype(int)


def test_runs_are_gathered_with_the_last_evaluation_and_the_paper_s(tmp_path):
    make_run(tmp_path / "runs/a", [100.0, 200.0, 300.0, 400.0, 500.0], seed=3)
    make_run(tmp_path / "runs/b", [50.0], env="walker-run", planner="policy")
    assert run.main(["plot", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]) == 0
    rows = table(tmp_path / "out/curves.csv")
    assert list(rows[0]) == ["task", "method", "seed", "env_steps", "return", "return_std", "episodes"]
    ours = [(int(row["env_steps"]), float(row["return"])) for row in rows if row["task"] == "cheetah-run"]
    assert ours == [(25_000 * i, 100.0 * i) for i in range(1, 6)]
    first, second = table(tmp_path / "out/final.csv")
    names = ("task", "method", "seed", "env_steps")
    assert [first[name] for name in names] == ["cheetah-run", "dream-mpc", "3", "125000"]
    assert float(first["return"]) == 500.0 and float(first["return_std"]) == 2.0 and first["episodes"] == "10"
    paper = table(RESULTS / "reference/dream_mpc_paper_dreamer_curves.csv")
    paper = [row for row in paper if (row["task"], row["method"]) == ("cheetah-run", "dream-mpc")]
    at = {row["env_steps"]: float(row["mean_return"]) for row in paper}
    assert float(first["paper"]) == pytest.approx((at["100000"] + at["150000"]) / 2)
    assert (second["method"], second["paper"]) == ("dreamer", ""), "the paper's curve begins later"


@pytest.mark.parametrize(
    "settings, method",
    [
        ({"planner": "policy", "agent": "dreamer"}, "dreamer"),
        ({"planner": "dream-mpc"}, "dream-mpc"),
        ({"planner": "cem", "agent": "planet"}, "planet"),
        ({"planner": "cem", "agent": "dreamer"}, "cem"),
        ({"planner": "mppi", "train_planner": "policy"}, "mppi, trained with policy"),
        ({"planner": "policy", "policy": Policy(sample=True)}, "dreamer, by samples"),
        ({"planner": "mppi", "policy": Policy(sample=True)}, "mppi"),
    ],
)
def test_a_method_has_the_name_that_papers_give_it(settings, method):
    assert method_of(Config(**settings)) == method


def test_labels_name_methods_and_later_evaluations_are_left_out(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"off/{seed}", [1.0, 2.0, 3.0], seed=seed)
    odd = make_run(tmp_path / "a=b", [4.0])
    curves = gather([f"kernels off={tmp_path / 'off'}", str(odd)], until=50_000)
    assert [(curve.method, curve.seed, curve.returns.tolist()) for curve in curves] == [
        ("kernels off", 0, [1.0, 2.0]), ("kernels off", 1, [1.0, 2.0]), ("dream-mpc", 0, [4.0]),
    ]  # fmt: skip


def test_what_is_there_is_drawn_and_what_is_left_out_is_named(tmp_path, capsys):
    make_run(tmp_path / "runs/a", [100.0])
    make_run(tmp_path / "runs/begun", [], seed=1)
    assert run.main(["plot", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]) == 0
    (tmp_path / "out/b").mkdir()
    (tmp_path / "out/b/curves.csv").write_text("task\n")
    assert f"left out: {tmp_path / 'runs/begun'} has no evaluation yet" in capsys.readouterr().err
    assert run.main(["plot", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert f"wrote {tmp_path / 'out/curves.png'}" in printed.out
    assert f"left out: {tmp_path / 'out/b/curves.csv'} is damaged" in printed.err


def test_what_cannot_be_gathered_is_named(tmp_path):
    same = [make_run(tmp_path / name / "run", [1.0]) for name in "ab"]
    none = make_run(tmp_path / "none", [])
    (tmp_path / "empty").mkdir()
    cases = {
        "both cheetah-run, dream-mpc, seed 0: leave one out, or call": [str(folder.parent) for folder in same],
        "no run folder and holds none": [str(tmp_path / "empty")],
        "has no evaluation yet": [str(none)],
    }
    for message, specs in cases.items():
        with pytest.raises(UserError, match=message):
            gather(specs)
    assert len(gather([str(same[0]), f"again={same[1]}"])) == 2
    assert [curve.method for curve in gather([str(tmp_path / "a"), f"again={same[0]}", str(same[0])])] == ["again"]


def test_curves_are_read_back_as_they_were(tmp_path):
    curves = gather([str(make_run(tmp_path / "a", [0.1, 1 / 3])), str(make_run(tmp_path / "b", [math.pi], seed=1))])
    write_curves(tmp_path, curves)
    again = read_curves(tmp_path / "curves.csv")
    for old, new in zip(curves, again, strict=True):
        assert old.name == new.name
        for key in ("env_steps", "returns", "stds", "episodes"):
            np.testing.assert_array_equal(getattr(old, key), getattr(new, key))


def test_what_was_published_stands_beside_the_four_tasks():
    for task in ("acrobot-swingup", "cheetah-run", "hopper-hop", "walker-run"):
        known = published(task)
        assert known.paper.keys() == {"dream-mpc", "dreamer", "planet", "sac-ae"}
        assert all(steps == sorted(steps) and steps[-1] == 1_000_000 for steps, _ in known.paper.values())
        assert 1_000_000 in known.dreamerv3 and len(known.dreamerv3[1_000_000]) == 10
    assert published("finger-spin").paper == {} and published("finger-spin").dreamerv3
    assert published("tests.example_env:make").paper == {}


def curve(task="cheetah-run", method="dream-mpc", seed=0, returns=(100.0, 300.0)):
    steps = 50_000 * np.arange(1, len(returns) + 1)
    return Curve(task, method, seed, steps, np.array(returns), np.ones(len(returns)), np.full(len(returns), 10))


def drawn(folder, *curves):
    folder.mkdir(exist_ok=True)
    write_curves(folder, curves)
    assert plot(folder) == [folder / "curves.png"]
    return image(folder / "curves.png")


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5])
def test_each_task_has_a_panel(tmp_path, recwarn, tasks):
    names = ["acrobot-swingup", "cheetah-run", "hopper-hop", "walker-run", "tests.example_env:make"][:tasks]
    picture = drawn(tmp_path, *[curve(task, returns=(10.0, 20.0, 15.0)) for task in names])
    columns, rows = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2), 5: (2, 3)}[tasks]
    panels = [part for band in np.array_split(picture, rows) for part in np.array_split(band, columns, axis=1)]
    blue = [((panel[..., 0] > 150) & (panel[..., 2] < 60)).sum() for panel in panels]  # the colour of Dream-MPC
    assert all(count > 100 for count in blue[:tasks])
    assert [str(warning.message) for warning in recwarn] == []


def test_the_picture_follows_the_file(tmp_path):
    one = drawn(tmp_path / "a", curve())
    assert (drawn(tmp_path / "b", curve()) == one).all()
    others = [
        [curve(returns=(100.0, 200.0))],
        [curve(), curve(seed=1, returns=(0.0, 400.0))],
        [curve(method="dreamer")],
        [curve(), curve(method="kernels off")],
    ]
    for i, curves in enumerate(others):
        other = drawn(tmp_path / f"c{i}", *curves)
        assert other.shape != one.shape or (other != one).any()


@pytest.mark.parametrize("tasks", [1, 2])
def test_long_names_do_not_run_off_the_picture(tmp_path, tasks):
    names = [", ".join([start, *["and so on"] * 9]) for start in ("dreamer", "mppi")]
    curves = [curve(task, name) for task in ("cheetah-run", "walker-run")[:tasks] for name in (*names, "cem, short")]
    picture = drawn(tmp_path, *curves)
    low = picture.shape[0] * 6 // 10
    assert (picture[low:, :4] == 255).all() and (picture[low:, -4:] == 255).all(), "letters at the edges"


def test_all_folders_below_are_redrawn(tmp_path, capsys):
    for name in ("a", "a/b"):
        (tmp_path / name).mkdir()
        write_curves(tmp_path / name, [curve()])
    (tmp_path / "c").mkdir()
    for name in ("compare.csv", "compare.json"):
        (tmp_path / "c" / name).write_bytes((RESULTS / "cheetah-run/planners" / name).read_bytes())
    assert run.main(["plot", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    for name in ("a/curves.png", "a/b/curves.png", "c/compare.png"):
        assert f"wrote {tmp_path / name}" in output and image(tmp_path / name).std() > 10


REFUSED = {
    "nothing to draw": (["{empty}"], "no curves.csv or compare.csv in"),
    "no folder": (["{empty}/x"], "no folder"),
    "no runs": (["{empty}", "--runs", "{empty}"], "holds none"),
    "a step that is none": (["{empty}", "--runs", "{empty}", "--until", "0"], "until"),
    "damaged curves": (["{damaged}"], "curves.csv is damaged"),
    "a damaged comparison": (["{compare}"], "run compare again"),
    "a folder that cannot be": (["{file}/x", "--runs", "{run}"], "cannot write"),
    "curves without a row": (["{header}"], "curves.csv is damaged (no rows)"),
    "a folder that has the name of the file": (["{odd}"], "curves.csv is damaged ([Errno 21] Is a directory"),
    "steps that are none": (["{inf}"], "curves.csv is damaged (a number in env_steps"),
    "a row twice": (["{twice}"], "curves.csv is damaged (env_steps of cheetah-run, x, seed 0 that do not rise"),
    "no folder named": ([], "FOLDER"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line(name, tmp_path, capsys):
    words, message = REFUSED[name]
    names = ("empty", "damaged", "header", "compare", "file", "run", "odd", "inf", "twice")
    places = {key: tmp_path / key for key in names}
    for key in ("empty", "damaged", "header", "compare", "odd", "inf", "twice"):
        places[key].mkdir()
    (places["odd"] / "curves.csv").mkdir()
    header, row = "task,method,seed,env_steps,return,return_std,episodes\n", "cheetah-run,x,0,{},1.0,1.0,1\n"
    (places["inf"] / "curves.csv").write_text(header + row.format("inf"))
    (places["twice"] / "curves.csv").write_text(header + 2 * row.format(5))
    (places["damaged"] / "curves.csv").write_text("task,method,seed\ncheetah-run,x,y\n")
    (places["header"] / "curves.csv").write_text("task,method,seed,env_steps,return,return_std,episodes\n")
    (places["compare"] / "compare.csv").write_text("planner\npolicy\n")
    places["file"].write_text("")
    make_run(places["run"], [1.0])
    assert run.main(["plot", *[word.format(**places) for word in words]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
