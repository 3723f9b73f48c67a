"""What runs are called: where a resume has changed them, and where several are shown together."""

import json

import pytest

import run
from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.config import EvaluationConfig
from dreamer_mpc.planners import Policy
from dreamer_mpc.report.curves import gather
from dreamer_mpc.report.plot import plot
from dreamer_mpc.world_model.config import WorldModelConfig
from tests.support.agents import CHEAP, TINY
from tests.support.commands import train
from tests.test_plot import image, make_run, table
from tests.test_report import words


def changed(folder, *changes, after=0, saved=True):
    """Mark changes, `old -> new`, in a run of `make_run` behind its first `after` evaluations."""
    file = folder / "metrics.jsonl"
    lines, steps = file.read_text().splitlines(), 25_000 * after
    place = next(i for i, line in enumerate(lines) if json.loads(line)["env_steps"] > steps)
    mark = {"env_steps": steps, "agent_steps": steps // 2, "updates": 0, "episodes": 0, "time_s": 1.0}
    mark |= {f"changed/{name}": 1.0 for name, _ in changes}
    lines.insert(place, json.dumps(mark))
    file.write_text("\n".join(lines) + "\n")
    path = folder / "versions.json"
    before = json.loads(path.read_text()) if path.exists() else {"started": "then"}
    earlier = [*before.pop("earlier", []), before]
    entry = {"changed": {"env_steps": steps, **dict(changes)}} if saved else {}
    path.write_text(json.dumps({"started": "now", **entry, "earlier": earlier}))
    return folder


def name_of(folder, until=None):
    [curve] = gather([str(folder)], until)
    assert curve.task == "cheetah-run"
    return curve.method, curve.seed


POLICY = {"planner": "policy", "agent": "dreamer"}
IN_FULL = {"render_quality": "fast", "eval": EvaluationConfig(render_quality="full")}
CHANGES = {
    "quality of evaluations": (
        POLICY | IN_FULL, [("eval.render_quality", "None -> full")],
        ("dreamer, drawn with fast, from 50,000 env steps with full (trained with fast)", 0),
    ),
    "quality of both": (
        POLICY, [("render_quality", "fast -> full")], ("dreamer, drawn with fast, from 50,000 env steps with full", 0),
    ),
    "planner": (
        {"planner": "mppi", "agent": "dreamer"}, [("planner", "policy -> mppi")],
        ("dreamer, from 50,000 env steps mppi", 0),
    ),
    "planner and quality": (
        {"planner": "mppi", "agent": "dreamer", **IN_FULL},
        [("planner", "policy -> mppi"), ("eval.render_quality", "None -> full")],
        ("dreamer, from 50,000 env steps mppi, "
         "drawn with fast, from 50,000 env steps with full (trained with fast)", 0),
    ),
    "planner of training": (
        {"train_planner": "policy"}, [("train_planner", "None -> policy")],
        ("dream-mpc, from 50,000 env steps dream-mpc, trained with policy", 0),
    ),
    "samples": (
        POLICY | {"policy": Policy(sample=True)}, [("policy.sample", "False -> True")],
        ("dreamer, from 50,000 env steps dreamer, by samples", 0),
    ),
    "seed": ({"seed": 5}, [("seed", "0 -> 5")], ("dream-mpc, from 50,000 env steps seed 5", 0)),
    "what is in no name": ({"seed": 5}, [("behavior.discount", "0.9 -> 0.99")], ("dream-mpc", 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_evaluations_before_a_change_keep_their_name(name, tmp_path):
    settings, changes, expected = CHANGES[name]
    folder = changed(make_run(tmp_path / "q1", [1.0, 2.0, 3.0], **settings), *changes, after=2)
    assert name_of(folder) == expected
    before = name_of(folder, until=50_000)
    assert "from" not in before[0] and before[1] == (5 if name == "what is in no name" else 0)


def test_what_a_run_was_is_said_as_far_as_it_is_known(tmp_path):
    settings = {"planner": "mppi", "agent": "dreamer"}
    folder = make_run(tmp_path / "a", [1.0, 2.0, 3.0], **settings)
    changed(folder, ("planner", "policy -> mppi"), after=2, saved=False)
    assert name_of(folder) == ("mppi, settings changed at 50,000 env steps", 0)
    folder = make_run(tmp_path / "b", [1.0, 2.0, 3.0], **settings)
    changed(folder, ("planner", "policy -> cem"), after=2)
    assert name_of(folder) == ("mppi, settings changed at 50,000 env steps", 0), "cem is not what the run has now"
    folder = make_run(tmp_path / "d", [1.0, 2.0, 3.0], **settings, max_env_steps=30)
    changed(folder, ("max_env_steps", "8 -> 30"), after=2)
    assert name_of(folder) == ("mppi, settings changed at 50,000 env steps", 0), "another task: one name is of one"
    folder = make_run(tmp_path / "c", [1.0, 2.0, 3.0], **settings)
    changed(folder, ("planner", "policy -> dream-mpc"), after=1)
    changed(folder, ("planner", "dream-mpc -> mppi"), ("seed", "3 -> 0"), after=2)
    [curve] = gather([str(folder)])
    again = "dreamer, from 25,000 env steps dream-mpc, from 50,000 env steps mppi, from 50,000 env steps seed 0"
    assert (curve.method, curve.seed) == (again, 3)


def test_a_change_before_the_first_evaluation_is_told_as_far_as_it_matters(tmp_path):
    folder = make_run(tmp_path / "a", [1.0], **POLICY, **IN_FULL)
    assert name_of(changed(folder, ("eval.render_quality", "None -> full")))[0] == (
        "dreamer, drawn with full (trained with fast)"
    ), "nothing was drawn before"
    folder = make_run(tmp_path / "b", [1.0], planner="mppi", agent="dreamer")
    assert name_of(changed(folder, ("planner", "policy -> mppi")))[0] == (
        "mppi, trained with policy, from 0 env steps mppi"
    )


def test_a_run_that_is_resumed_with_another_planner_keeps_its_past(tmp_path):
    args = [*TINY, *CHEAP, "--num-envs", "1", "--eval.every", "8"]
    train(*args, "--planner", "policy", "--run-dir", tmp_path / "q1")
    train("--resume", tmp_path / "q1", "--env-steps", 32, "--planner", "mppi")
    [curve] = gather([str(tmp_path / "q1")])
    assert curve.method == "dreamer, from 16 env steps mppi"
    assert run.main(["report", str(tmp_path / "q1")]) == 0
    text = words((tmp_path / "q1/report.html").read_text())
    assert "32 env steps: dreamer, from 16 env steps mppi, seed 0" in text
    assert "Changed by --resume after 16 env steps" in text and "planner: policy -> mppi" in text


V3 = {
    "world_model": WorldModelConfig(kind="categorical"), "behavior": BehaviorConfig(kind="v3", exploration="policy"),
}  # fmt: skip


def test_agents_of_several_kinds_are_several_methods(tmp_path, capsys):
    make_run(tmp_path / "runs/t1", [100.0])
    make_run(tmp_path / "runs/t2", [150.0], **V3)
    make_run(tmp_path / "runs/t3", [150.0], seed=1, **V3)
    make_run(tmp_path / "runs/t4", [150.0], env="walker-run", action_repeat=4, **V3)
    assert [curve.method for curve in gather([str(tmp_path / "runs/t2")])] == ["dream-mpc"], "alone it is clear"
    plot(tmp_path / "out", (str(tmp_path / "runs"),))
    named = [(row["task"], row["method"], row["seed"]) for row in table(tmp_path / "out/final.csv")]
    assert named == [
        ("cheetah-run", "dream-mpc", "0"), ("cheetah-run", "dream-mpc, v3", "0"), ("cheetah-run", "dream-mpc, v3", "1"),
        ("walker-run", "dream-mpc, v3, action repeat 4", "0"),
    ]  # fmt: skip
    assert image(tmp_path / "out/curves.png").std() > 10
    assert run.main(["report", str(tmp_path / "runs/t1"), str(tmp_path / "runs/t2")]) == 0
    text = words((tmp_path / "runs/t1/report.html").read_text())
    for shown in ("Dream-MPC", "dream-mpc, v3"):
        assert f"{shown}, seed 0, mean" in text and f"{shown} cheetah-run 0" in text
    labelled = gather([f"a={tmp_path / 'runs/t1'}", f"b={tmp_path / 'runs/t2'}", str(tmp_path / "runs/t3")])
    assert [curve.method for curve in labelled] == ["a", "b", "dream-mpc"]


OTHER_TASKS = {
    "image size 84": {"image_size": 84},
    "grayscale": {"grayscale": True},
    "frame stack 3": {"frame_stack": 3},
    "camera 1": {"camera": 1},
    "max env steps 500": {"max_env_steps": 500},
    "time_limit=5 a=b": {"env_args": ("time_limit=5", "a=b")},
}


@pytest.mark.parametrize("name", OTHER_TASKS)
def test_settings_that_make_another_task_are_told_apart(name, tmp_path):
    make_run(tmp_path / "a", [100.0])
    make_run(tmp_path / "b", [150.0], seed=1, **OTHER_TASKS[name])
    make_run(tmp_path / "c", [150.0], env="walker-run", **OTHER_TASKS[name])
    curves = gather([str(tmp_path / run) for run in "abc"])
    assert [curve.task for curve in curves] == ["cheetah-run", f"cheetah-run, {name}", "walker-run"]
    assert [curve.task for curve in gather([str(tmp_path / "b")])] == ["cheetah-run"]


def test_runs_with_one_name_have_their_folder_s_on_a_page(tmp_path):
    for name in ("x/t1", "x/t2", "y/t2"):
        make_run(tmp_path / name, [100.0])
    assert run.main(["report", str(tmp_path)]) == 0
    text = words((tmp_path / "report.html").read_text())
    for shown in ("Dream-MPC", "dream-mpc, t2", f"dream-mpc, {tmp_path / 'y/t2'}"):
        assert f"{shown} cheetah-run 0 25,000 100.0" in text and f"{shown}, seed 0, mean" in text
