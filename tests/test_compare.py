"""`compare` as a user runs it: the episodes it plays, its files, statistics and figures, and its resuming."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import dreamer_mpc.evaluation.compare
import dreamer_mpc.report.plot
from dreamer_mpc.config import Config, EvalConfig, load_presets, parse, planner_from, to_dict, with_planners_of
from dreamer_mpc.config.make import load_agent, make_agent, make_envs, side_by_side_envs
from dreamer_mpc.evaluation.compare import summarise
from dreamer_mpc.evaluation.episodes import evaluate
from dreamer_mpc.evaluation.record import Record
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.planners import PolicyGradMPC
from dreamer_mpc.report.rows import COMPARISON, decided, from_comparison
from dreamer_mpc.runs.checkpoint import Checkpoint, checkpoint_path, find_checkpoint, load_checkpoint, save_checkpoint
from dreamer_mpc.util.counters import Counters
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.intervals import holm, iqm, mean_interval, p_value
from tests.support.agents import SIZES, TINY
from tests.support.commands import ROOT, command, quietly, records
from tests.support.counting_env import CountingEnv

SMALL = [
    "--dream-mpc.horizon", "3", "--dream-mpc.candidates", "2", "--dream-mpc.draws", "2",
    "--policy-grad-mpc.horizon", "3", "--policy-grad-mpc.candidates", "4",
    "--grad-mpc.horizon", "3", "--grad-mpc.candidates", "4", "--grad-mpc.iterations", "2",
    "--cem.horizon", "4", "--cem.candidates", "20", "--cem.elites", "4", "--cem.iterations", "2",
    "--mppi.horizon", "3", "--mppi.candidates", "16", "--mppi.elites", "4", "--mppi.iterations", "2",
    "--mppi.policy-candidates", "2",
]  # fmt: skip
# Model evaluations per action with SMALL: N * I * H; MPPI: plus its policy rollouts; Dream-MPC: `model_evaluations`.
DREAM_MPC = 2 * 3 * (1 + 2 * (1 + 2))
MPPI = 96 + 2 * 2
EVALUATIONS = {"policy": 0, "dream-mpc": DREAM_MPC, "policy-grad-mpc": 12, "grad-mpc": 24, "cem": 160, "mppi": MPPI}


def compare(checkpoint, out, *args, settings=SMALL):
    """`run.py compare` with small planners, one environment at a time."""
    checkpoints = checkpoint if isinstance(checkpoint, list) else [checkpoint]
    return quietly("compare", "--checkpoint", *checkpoints, "--out", out, "--num-envs", 1, *settings, *args)


def done(result):
    assert result.code == 0, result.err
    return result


def refused(result):
    """The message of a command that ended with one line."""
    assert result.code == 2
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    return result.err


def table(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def returns(folder, label, checkpoint=None):
    """Returns of one planner by number of the episode, as text, to compare them bit for bit."""
    rows = [row for row in table(folder / "episodes.csv") if row["planner"] == label]
    rows = [row for row in rows if checkpoint in (None, row["checkpoint"])]
    assert [int(row["episode"]) for row in rows] == list(range(len(rows)))
    return [row["return"] for row in rows]


def identity(folder):
    """All episodes, without the fields that depend on the machine's load or the date."""
    columns = ("planner", "checkpoint", "episode", "env_seed", "return", "agent_steps", "num_envs", "model_evaluations")
    return [tuple(row[name] for name in columns) for row in table(folder / "episodes.csv")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder of a Dreamer, trained by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "dreamer"
    done(quietly(*TINY, "--run-dir", folder))
    return folder


@pytest.fixture(scope="module")
def planet(tmp_path_factory):
    """The run folder of a PlaNet agent, trained by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "planet"
    done(quietly(*TINY, "--run-dir", folder, "--planner", "cem", *SMALL))
    return folder


def changed_copy(run_folder, to, seed=2, **settings):
    """A run folder whose checkpoint has other weights, and other settings in its configuration."""
    path = find_checkpoint(run_folder)
    checkpoint = load_checkpoint(path)
    generator = torch.Generator().manual_seed(seed)
    for weight in checkpoint.agent["model"].values():
        if weight.is_floating_point():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    changed = dataclasses.replace(checkpoint, config=checkpoint.config | settings)
    save_checkpoint(to / "checkpoints" / path.name, changed)
    return to


@pytest.fixture(scope="module")
def another(trained, tmp_path_factory):
    """A second agent of the same task."""
    return changed_copy(trained, tmp_path_factory.mktemp("runs") / "another")


@pytest.fixture(scope="module")
def six(trained, tmp_path_factory):
    """All six planners with five episodes for each: the folder, and the output."""
    folder = tmp_path_factory.mktemp("six")
    return folder, done(compare(trained, folder, "--episodes", 5)).out


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """Titles and rows of the pictures. Drawing takes longer than a comparison, so only `six` and commands draw."""
    seen = []
    draw = "comparison_picture"
    monkeypatch.setattr(dreamer_mpc.report.plot, draw, lambda path, rows, title: seen.append((rows, title)))
    return seen


@pytest.fixture
def plays(monkeypatch):
    """(first seed, episodes) of every batch that is played; Ctrl-C is pressed before batch `stop_at`."""
    real, seen = dreamer_mpc.evaluation.compare.evaluate, SimpleNamespace(batches=[], stop_at=None)

    def evaluate(agent, planner, envs, episodes, seed, *rest):
        if len(seen.batches) + 1 == seen.stop_at:
            seen.stop_at = None
            raise KeyboardInterrupt
        seen.batches.append((seed, episodes))
        return real(agent, planner, envs, episodes, seed, *rest)

    monkeypatch.setattr(dreamer_mpc.evaluation.compare, "evaluate", evaluate)
    return seen


# episodes and output files


def test_a_comparison_has_a_row_for_each_planner(six):
    folder, _ = six
    assert {path.name for path in folder.iterdir()} == {"compare.csv", "compare.json", "compare.png", "episodes.csv"}
    image = cv2.imread(str(folder / "compare.png"))
    assert image.shape[1] >= 1200 and image.std() > 10
    rows = table(folder / "compare.csv")
    assert [row["planner"] for row in rows] == list(EVALUATIONS)
    assert {row["planner"]: int(row["model_evaluations"]) for row in rows} == EVALUATIONS
    for row in rows:
        assert (row["episodes"], row["checkpoints"], row["num_envs"]) == ("5", "1", "1")
        assert float(row["actions_per_s"]) == pytest.approx(1e3 / float(row["ms_per_action"]))
        assert row["torch"] == torch.__version__ and "CPU" in row["device"] and row["date"]


def test_every_planner_plays_the_same_environment_seeds(six, trained):
    folder, _ = six
    rows = table(folder / "episodes.csv")
    assert len(rows) == 30
    for label, evaluations in EVALUATIONS.items():
        own = [row for row in rows if row["planner"] == label]
        assert [int(row["env_seed"]) for row in own] == [10_000, 10_001, 10_002, 10_003, 10_004]
        assert {int(row["model_evaluations"]) for row in own} == {evaluations}
        assert {row["agent_steps"] for row in own} == {"8"}
        assert {row["checkpoint"] for row in own} == {str(find_checkpoint(trained))}
        assert len({row["return"] for row in own}) == 5, "different seeds are different episodes"


def test_an_episode_is_what_eval_plays_from_its_seed(six, trained, tmp_path):
    folder, _ = six
    names = ["policy", "dream-mpc", "cem"]
    for episode in (0, 2):
        args = ["--planner", ",".join(names), "--episodes", 1, "--num-envs", 1, "--seed", 10_000 + episode, *SMALL]
        done(quietly("eval", "--checkpoint", trained, "--out", tmp_path, *args))
        for row in json.loads((tmp_path / "eval.json").read_text())["results"]:
            assert float(returns(folder, row["planner"])[episode]) == row["returns"][0]


@pytest.mark.parametrize("episodes, num_envs", [(3, 2), (2, 1), (2, 4)])
def test_an_evaluation_plays_its_episodes_in_one_batch(trained, tmp_path, episodes, num_envs):
    """A row starts the next episode when its own ends, with one seed for all draws: returns are as in old versions."""
    args = ["--planner", "dream-mpc,policy", "--episodes", episodes, "--num-envs", num_envs, "--device", "cpu", *SMALL]
    done(quietly("eval", "--checkpoint", trained, "--out", tmp_path, *args))
    subject = Subject.load(trained)
    default = with_planners_of(subject.trained, EvalConfig(checkpoint=str(trained)))
    config = parse(EvalConfig, ["--checkpoint", str(trained), *SMALL], default)
    envs = make_envs(subject.trained, side_by_side_envs(num_envs, episodes), torch.device("cpu"))
    agent = load_agent(subject.checkpoint, subject.trained, envs.single_action_space.shape[0], torch.device("cpu"))
    record = json.loads((tmp_path / "eval.json").read_text())
    assert record["num_envs"] == envs.num_envs
    for row in record["results"]:
        planner = planner_from(config, row["planner"])
        assert row["returns"] == evaluate(agent, planner, envs, episodes, 10_000).returns.tolist()
    envs.close()


def test_rows_have_the_names_that_files_of_before_have(six, trained, tmp_path):
    """Scripts of users read these files, so the names of their fields must not change."""
    with (six[0] / "compare.csv").open() as file:
        assert file.readline().strip() == (
            "planner,episodes,checkpoints,return,return_low,return_high,return_std,failed,iqm,difference,"
            "difference_low,difference_high,difference_p,difference_p_holm,ms_per_action,actions_per_s,"
            "model_evaluations,num_envs,device,torch,date"
        )
    done(quietly("eval", "--checkpoint", trained, "--out", tmp_path, "--planner", "policy", "--episodes", 1))
    record = json.loads((tmp_path / "eval.json").read_text())
    assert list(record) == [
        "checkpoint",
        "env",
        "render_quality",
        "env_steps",
        "seed",
        "num_envs",
        "device",
        "torch",
        "results",
    ]
    assert list(record["results"][0]) == [
        "planner", "return_mean", "return_std", "return_low", "return_high", "failed_episodes", "ms_per_action",
        "model_evaluations", "episodes", "returns",
    ]  # fmt: skip
    logged = [key for row in records(trained) for key in row if key.startswith("eval/")]
    assert set(logged) == {
        "eval/return_mean", "eval/return_std", "eval/ms_per_action", "eval/model_evaluations", "eval/episodes",
    }  # fmt: skip


def test_a_row_is_read_as_it_was_written(six):
    for cells in table(six[0] / "compare.csv"):
        row = from_comparison(cells)
        assert row["return_mean"] == float(cells["return"]) and row["model_evaluations"] == EVALUATIONS[row["planner"]]
        assert (row["difference_mean"] is None) == (row["planner"] == "policy")
        assert {COMPARISON[field]: "" if value is None else str(value) for field, value in row.items()}.items() <= (
            cells.items()
        )


def test_the_table_says_what_compare_csv_does(six):
    folder, output = six
    lines = {line.split()[0]: line for line in output.splitlines() if line.split()}
    for row in table(folder / "compare.csv"):
        value = float(row["return"])
        assert f" {value:.{0 if abs(value) >= 10 else 1}f} [" in lines[row["planner"]]
        assert lines[row["planner"]].rstrip().endswith(f" {int(row['model_evaluations'])}")
    text = " ".join(output.split())
    assert "5 episodes on 1 checkpoint;" in text
    assert "5 compared, each interval by itself; *: decided after Holm's correction over all 5" in text
    assert "for 1 environment at once" in text
    for name in ("compare.csv", "compare.png", "episodes.csv"):
        assert str(folder / name) in output


def test_returns_and_intervals_are_those_of_the_episodes(six):
    folder, _ = six
    for row in table(folder / "compare.csv"):
        scores = np.array(returns(folder, row["planner"]), dtype=float)
        assert float(row["return"]) == pytest.approx(scores.mean())
        assert float(row["return_std"]) == pytest.approx(scores.std(ddof=1))
        low, high = float(row["return_low"]), float(row["return_high"])
        assert (low, high) == pytest.approx(mean_interval(scores[:, None]))
        assert low < scores.mean() < high
        assert float(row["iqm"]) == pytest.approx(iqm(scores[:, None]))
        assert row["failed"] == "0"


def test_differences_are_paired_by_the_environment_s_seed(six):
    folder, _ = six
    policy = np.array(returns(folder, "policy"), dtype=float)
    first, *rows = table(folder / "compare.csv")
    assert {name for name, value in first.items() if value == ""} == {
        "difference", "difference_low", "difference_high", "difference_p", "difference_p_holm",
    }  # fmt: skip
    for row in rows:
        own = np.array(returns(folder, row["planner"]), dtype=float)
        difference = own - policy
        assert float(row["difference"]) == pytest.approx(difference.mean())
        low, high = float(row["difference_low"]), float(row["difference_high"])
        assert (low, high) == pytest.approx(mean_interval(difference[:, None]))
        assert low < difference.mean() < high
        assert float(row["difference_p"]) == pytest.approx(p_value(difference[:, None]))
    adjusted = holm([float(row["difference_p"]) for row in rows])
    assert [float(row["difference_p_holm"]) for row in rows] == pytest.approx(adjusted)


def test_fewer_than_five_episodes_have_no_intervals(trained, tmp_path):
    output = done(compare(trained, tmp_path, "--planners", "policy,cem", "--episodes", 4)).out
    for row in table(tmp_path / "compare.csv"):
        assert row["return"] and row["iqm"] and row["return_std"]
        for name in ("return_low", "return_high", "failed", "difference_low", "difference_high", "difference_p_holm"):
            assert row[name] == ""
    assert "from 5 episodes on" in " ".join(output.split()) and "decided" not in output
    [cem] = [line.split() for line in output.splitlines() if line.split()[:1] == ["cem"]]
    assert cem[2:4] == ["–", "–"] and cem[5] == "–", "no interval, no count of failures, no interval"


def played(label, returns, checkpoint="a"):
    """Rows of a record: episodes of one planner with known returns."""
    fixed = {"agent_steps": 8, "ms_per_action": 1.0, "num_envs": 1, "model_evaluations": 0}
    fixed |= {"device": "CPU", "torch": "2", "date": "2026-11-28"}
    key = {"planner": label, "checkpoint": checkpoint}
    return [key | {"episode": e, "env_seed": e, "return": float(x)} | fixed for e, x in enumerate(returns)]


def test_of_many_settings_those_are_decided_that_outlive_the_correction(tmp_path):
    """Alone, b (p = 0.03) and c differ from the policy; after the correction over four differences only c does."""
    noise = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 0.0])
    shifts = {"policy": 0.0, "a": 0.1, "b": 0.85, "c": 3.0, "d": 0.2}
    record = Record(tmp_path, {}, {})
    for label, shift in shifts.items():
        record.rows += played(label, 100 + shift + (label != "policy") * noise)
    rows = {row["planner"]: row for row in summarise(record, shifts, ["a"], 6)}
    by_itself = {label for label, row in rows.items() if label != "policy" and row["difference_p"] <= 0.05}
    assert by_itself == {"b", "c"} == {label for label, row in rows.items() if (row["difference_low"] or 0) > 0}
    assert {label for label, row in rows.items() if decided(row)} == {"c"}
    assert decided({row["planner"]: row for row in summarise(record, ["policy", "b"], ["a"], 6)}["b"]), "asked alone"


def test_planner_settings_start_from_the_checkpoint_s(planet, tmp_path):
    """The PlaNet run was trained with a small CEM, and no option of this command repeats that."""
    done(compare(planet, tmp_path, "--episodes", 1, settings=[]))
    assert [row["model_evaluations"] for row in table(tmp_path / "compare.csv")] == ["160"]
    done(compare(planet, tmp_path / "other", "--episodes", 1, "--cem.horizon", 5, settings=[]))
    assert [row["model_evaluations"] for row in table(tmp_path / "other" / "compare.csv")] == ["200"]


def dmc_run(folder):
    """A run folder with an untrained agent of cheetah-run, for episodes of 20 agent steps."""
    config = dataclasses.replace(parse(Config, SIZES, load_presets("quick")), max_env_steps=40)
    torch.manual_seed(0)
    agent = make_agent(config, 6, torch.device("cpu"))
    checkpoint = Checkpoint(to_dict(config), Counters(), 6, agent.kind, agent.world_model_kind, agent.state_dict())
    save_checkpoint(checkpoint_path(folder / "checkpoints", 0), checkpoint)
    return folder


def test_a_comparison_on_dm_control_by_the_command_line(tmp_path):
    folder = dmc_run(tmp_path / "cheetah")
    args = ["--planners", "policy,dream-mpc", "--episodes", 3, "--num-envs", 2, "--dream-mpc.horizon", 4]
    ended = command("compare", "--checkpoint", folder, *args)
    assert ended.returncode == 0, ended.stderr
    names = {"compare.csv", "compare.json", "compare.png", "episodes.csv"}
    assert {path.name for path in (folder / "compare").iterdir()} == names, "in the run folder unless told otherwise"
    envs = min(2, len(os.sched_getaffinity(0)))
    rows = table(folder / "compare" / "episodes.csv")
    assert [int(row["env_seed"]) for row in rows] == 2 * [10_000, 10_001, 10_002]
    assert {(row["agent_steps"], row["num_envs"]) for row in rows} == {("20", str(envs))}
    assert "dream-mpc" in ended.stdout and "difference to" in ended.stdout and "\x1b" not in ended.stdout


# going on


ADDED = {  # options of the second command, and the batches that remain to be played
    "episodes": ({"--episodes": 4}, [(10_002, 1), (10_003, 1)]),
    "a planner": ({"--planners": "policy, cem"}, [(10_000, 1), (10_001, 1)]),
    "a checkpoint": ({}, [(10_000, 1), (10_001, 1)]),
    "another seed, with --overwrite": ({"--seed": 5, "--overwrite": None}, [(5, 1), (6, 1)]),
    "a damaged record, with --overwrite": ({"--overwrite": None}, [(10_000, 1), (10_001, 1)]),
}


@pytest.mark.parametrize("what", ADDED)
def test_only_what_is_added_is_played(trained, another, tmp_path, plays, what):
    more, played_then = ADDED[what]
    asked = {"--planners": "policy", "--episodes": 2}
    done(compare(trained, tmp_path, *words(asked)))
    before, checkpoint = returns(tmp_path, "policy"), str(find_checkpoint(trained))
    if "damaged" in what:
        for name in ("episodes.csv", "compare.json"):
            (tmp_path / name).write_bytes(b"\xff\xfe\x00\x80")
    plays.batches = []
    checkpoints = [trained, another] if what == "a checkpoint" else trained
    done(compare(checkpoints, tmp_path, *words(asked | more)))
    assert plays.batches == played_then
    if "--seed" in more:
        assert [row["env_seed"] for row in table(tmp_path / "episodes.csv")] == ["5", "6"]
    else:
        assert returns(tmp_path, "policy", checkpoint)[:2] == before
    episodes = str(more.get("--episodes", 2))
    assert {row["episodes"] for row in table(tmp_path / "compare.csv")} == {episodes}
    assert labels(tmp_path) == more.get("--planners", "policy").split(", ")
    recorded = json.loads((tmp_path / "compare.json").read_text())
    assert list(recorded["planners"]) == labels(tmp_path)


def words(options):
    """Options and their values as a command line has them."""
    return [word for name, value in options.items() for word in (name, value) if word is not None]


def test_after_an_interruption_only_what_is_missing_is_played(trained, tmp_path, plays):
    args = ["--planners", "policy,dream-mpc,cem", "--episodes", 3]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done(compare(trained, whole, *args))
    assert plays.batches == 3 * [(10_000, 1), (10_001, 1), (10_002, 1)]
    plays.batches, plays.stop_at = [], 6
    interrupted = compare(trained, broken, *args)
    assert interrupted.code == 130
    assert interrupted.err.split("\n") == ["", "interrupted: the same command goes on from here", ""]
    assert len(identity(broken)) == 5
    assert not (broken / "compare.csv").exists()
    plays.batches = []
    output = done(compare(trained, broken, *args)).out
    assert plays.batches == [(10_002, 1), (10_000, 1), (10_001, 1), (10_002, 1)]
    assert "5 of 9 episodes are there already" in output
    assert identity(broken) == identity(whole)
    plays.batches = []
    done(compare(trained, broken, *args))
    assert plays.batches == []
    assert [path.name for path in broken.glob(".*")] == []


def running(group):
    """The processes of a group that are still running."""
    lines = subprocess.run(["ps", "-eo", "pgid,stat,args"], capture_output=True, text=True, check=True).stdout
    words = [line.split(maxsplit=2) for line in lines.splitlines()[1:]]
    return [word for word in words if int(word[0]) == group and not word[1].startswith("Z")]


def test_ctrl_c_ends_a_comparison_with_its_workers(trained, tmp_path):
    """The terminal sends SIGINT to all processes of the foreground."""
    args = ["--checkpoint", trained, "--out", tmp_path, "--planners", "policy", "--episodes", 5000, "--num-envs", 2]
    process = subprocess.Popen(
        [sys.executable, "run.py", "compare", *map(str, args)], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored when the tests run in the background
    )  # fmt: skip
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert first.startswith("policy, episode 1")
    assert process.returncode == 130
    assert error.strip() == "interrupted: the same command goes on from here"
    assert 0 < len(table(tmp_path / "episodes.csv")) < 5000
    deadline = time.monotonic() + 10
    while (left := running(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_a_comparison_goes_on_with_another_number_of_threads(trained, tmp_path, plays):
    args = ["--planners", "policy", "--episodes"]
    done(compare(trained, tmp_path, *args, 1))
    before = json.loads((tmp_path / "compare.json").read_text())
    (tmp_path / "compare.json").write_text(json.dumps(before | {"device": "CPU, 64 threads"}))
    result = done(compare(trained, tmp_path, *args, 2))
    said = "played by CPU, 64 threads, the others now by CPU, 1 thread:"
    assert result.out.count(said) == 1 and len(returns(tmp_path, "policy")) == 2
    (tmp_path / "compare.json").write_text(json.dumps(before | {"device": "NVIDIA H200"}))
    assert "with other device (NVIDIA H200)" in refused(compare(trained, tmp_path, *args, 2))


def test_eval_says_which_task_it_plays(trained, tmp_path):
    args = ["eval", "--checkpoint", trained, "--planner", "policy", "--episodes", 1, "--num-envs", 1, "--out", tmp_path]
    own = done(quietly(*args)).out
    assert "tests.example_env:make: dreamer, 16 env steps" in " ".join(own.split()) and "trained on" not in own
    other = done(quietly(*args, "--env", "tests.test_compare:other")).out
    line = "playing tests.test_compare:other with an agent that was trained on tests.example_env:make: leave --env out"
    assert line in other.splitlines()[0]
    titled = "tests.test_compare:other: dreamer, trained on tests.example_env:make, 16 env steps"
    assert titled in " ".join(other.split())


def other():
    """Another task for the same agent."""
    return CountingEnv(length=8)


def test_a_record_from_before_a_setting_goes_on(tmp_path):
    """Settings that did not exist yet were off."""
    young = {"draws": 1, "line_search": (), "step_scale": "gradient", "open_loop": 0, "caution": 0.0}
    whole = {**dataclasses.asdict(PolicyGradMPC()), **young}
    Record(tmp_path, {"planners": {"a": {k: v for k, v in whole.items() if k not in young}}}, {}).begin()
    Record(tmp_path, {"planners": {"a": whole}}, {}).begin()
    with pytest.raises(UserError, match=r"other planners a \(draws 1 -> 2\)"):
        Record(tmp_path, {"planners": {"a": whole | {"draws": 2}}}, {})
    Record(tmp_path / "policy", {"planners": {"policy": {}}}, {}).begin()
    Record(tmp_path / "policy", {"planners": {"policy": {"sample": False}}}, {}).begin()
    with pytest.raises(UserError, match=r"other planners policy \(sample False -> True\)"):
        Record(tmp_path / "policy", {"planners": {"policy": {"sample": True}}}, {})


def test_fewer_episodes_add_up_the_first_ones_and_keep_the_others(trained, six, tmp_path, plays):
    folder = shutil.copytree(six[0], tmp_path / "copy")
    done(compare(trained, folder, "--episodes", 2))
    assert plays.batches == []
    assert identity(folder) == identity(six[0])
    for row in table(folder / "compare.csv"):
        expected = np.array(returns(folder, row["planner"])[:2], dtype=float).mean()
        assert row["episodes"] == "2" and float(row["return"]) == pytest.approx(expected)


OTHER = {
    "seed": ["--seed", 5],
    "render_quality": ["--render-quality", "full"],
    "planners dream-mpc": ["--dream-mpc.step-size", 0.2],
}


@pytest.mark.parametrize("what", OTHER)
def test_another_comparison_is_not_mixed_in(trained, six, what):
    folder, before = six[0], {path: path.read_bytes() for path in six[0].iterdir()}
    for args in (["--device", "tpu"], ["--planners", "dreem"]):  # a command that cannot start overwrites nothing
        refused(compare(trained, folder, *args, "--overwrite"))
    message = refused(compare(trained, folder, "--episodes", 6, *OTHER[what]))
    assert str(folder) in message and f"other {what}" in message
    assert "--out" in message and "--overwrite" in message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_checkpoint_that_has_changed_is_not_mixed_in(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy")
    args = ["--planners", "policy", "--episodes", 1]
    done(compare(copy, tmp_path / "out", *args))
    changed_copy(trained, copy)
    message = refused(compare(copy, tmp_path / "out", *args))
    assert str(find_checkpoint(copy)) in message and "--overwrite" in message


def test_overwriting_that_is_interrupted_at_once_leaves_nothing_of_the_old_comparison(trained, tmp_path, plays):
    args = ["--planners", "policy", "--episodes", 2]
    done(compare(trained, tmp_path, *args, "--seed", 1))
    plays.batches, plays.stop_at = [], 1
    assert compare(trained, tmp_path, *args, "--seed", 5, "--overwrite").code == 130
    done(compare(trained, tmp_path, *args, "--seed", 5))
    assert [row["env_seed"] for row in table(tmp_path / "episodes.csv")] == ["5", "6"]


def test_an_interruption_says_how_to_go_on(trained, tmp_path, plays, monkeypatch):
    plays.stop_at = 1
    interrupted = compare(trained, tmp_path, "--planners", "policy", "--overwrite")
    assert interrupted.err.strip() == "interrupted: the same command without --overwrite goes on from here"

    def load(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(dreamer_mpc.evaluation.compare.Subject, "load", load)
    interrupted = compare(trained, tmp_path, "--planners", "policy")
    assert (interrupted.code, interrupted.err.strip()) == (130, "interrupted"), "nothing to go on from yet"


def test_a_run_folder_that_has_moved_keeps_its_comparison(trained, tmp_path, plays):
    args = ["--planners", "policy", "--episodes", 2]
    old, new = shutil.copytree(trained, tmp_path / "old"), tmp_path / "new"
    done(compare(old, old / "compare", *args))
    shutil.move(old, new)
    plays.batches = []
    done(compare(new, new / "compare", *args))
    assert plays.batches == []
    assert len(returns(new / "compare", "policy")) == 2


DAMAGED = {
    "a number that is none": ("episodes.csv", lambda text: text.replace(b",10001,", b",many,")),
    "a row cut short": ("episodes.csv", lambda text: text[: text.rindex(b",10002,")]),
    "another header": ("episodes.csv", lambda text: text.replace(b"env_seed", b"env_sed")),
    "bytes": ("episodes.csv", lambda text: b"\xff\xfe\x00\x80"),
    "JSON cut short": ("compare.json", lambda text: text[: len(text) // 2]),
    "JSON of another kind": ("compare.json", lambda text: b"[]"),
    "nothing": ("compare.json", lambda text: b"null"),
    "JSON that is bytes": ("compare.json", lambda text: b"\xff\xfe\x00\x80"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_one_line(trained, six, tmp_path, damage):
    name, change = DAMAGED[damage]
    folder = shutil.copytree(six[0], tmp_path / "copy")
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(change(text))
    assert (folder / name).read_bytes() != text
    message = refused(compare(trained, folder, "--episodes", 3))
    assert str(folder / name) in message and "damaged" in message and "--overwrite" in message
    (folder / "compare.json").unlink()  # without it, seed and settings of the episodes are unknown
    refused(compare(trained, folder, "--episodes", 3, "--seed", 5))


MISFITS = {  # what is done to the lines of episodes.csv, header included; what is said of which line
    "an episode twice": (lambda lines: [*lines, lines[2]], "line {last} repeats line 3"),
    "a file twice": (lambda lines: [*lines, *lines], "line {last} is damaged"),
    "the seed of another command": (lambda lines: cell(lines, 2, "env_seed", "77"), "has env_seed 77 for episode 1"),
    "a return that is none": (lambda lines: cell(lines, 2, "return", "nan"), "line 3 has return nan"),
    "no time at all": (lambda lines: cell(lines, 2, "ms_per_action", "0.0"), "line 3 has ms_per_action 0.0"),
    "an episode before the first": (lambda lines: cell(lines, 2, "episode", "-1"), "line 3 has episode -1"),
    "a planner without settings": (lambda lines: cell(lines, 2, "planner", "x"), "line 3 is of 'x'"),
    "a checkpoint without a name": (lambda lines: cell(lines, 2, "checkpoint", "y"), "line 3 is of 'y'"),
    "a line cut short": (lambda lines: [*lines[:-1], lines[-1].rsplit(",", 2)[0]], "is damaged"),
}


def cell(lines, number, column, value):
    """`lines` of a CSV file with another value in one cell."""
    names, cells = lines[0].split(","), lines[number].split(",")
    cells[names.index(column)] = value
    return [*lines[:number], ",".join(cells), *lines[number + 1 :]]


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_row_that_is_not_of_this_comparison_is_refused_by_its_line(trained, six, tmp_path, misfit):
    change, said = MISFITS[misfit]
    folder = shutil.copytree(six[0], tmp_path / "copy")
    lines = (folder / "episodes.csv").read_text().splitlines()
    (folder / "episodes.csv").write_text("\n".join(change(lines)) + "\n")
    message = refused(compare(trained, folder, "--episodes", 3))
    assert str(folder / "episodes.csv") in message and said.format(last=len(lines) + 1) in message, message
    assert "remove" in message and "--overwrite" in message


def test_episodes_whose_rows_are_lost_are_played_again(trained, tmp_path, plays):
    args = ["--planners", "policy", "--episodes", 5]
    done(compare(trained, tmp_path, *args))
    whole, summary = identity(tmp_path), table(tmp_path / "compare.csv")[0]
    lines = (tmp_path / "episodes.csv").read_text().splitlines(keepends=True)
    (tmp_path / "episodes.csv").write_text("".join(line for i, line in enumerate(lines) if i not in (1, 3, 4)))
    plays.batches = []
    output = done(compare(trained, tmp_path, *args)).out
    assert "episodes.csv lacks 3 episodes, the first of them episode 0 of policy" in output
    assert plays.batches == [(10_000, 1), (10_002, 1), (10_003, 1)]
    assert sorted(identity(tmp_path), key=lambda row: int(row[2])) == whole
    assert table(tmp_path / "compare.csv")[0]["return"] == summary["return"]


def test_the_records_of_the_results_are_whole():
    folders = [path.parent for path in (ROOT / "results").rglob("compare.json")]
    for folder in folders:
        made_with = json.loads((folder / "compare.json").read_text())
        episodes = Record(folder, made_with, {name: sha for name, sha in made_with["checkpoints"].items()})
        assert episodes.rows and episodes.notes == []
    assert folders


# several checkpoints


def test_several_checkpoints_are_strata(trained, another, tmp_path, pictures):
    named = [trained, another, find_checkpoint(trained)]  # the first one twice
    output = done(compare(named, tmp_path, "--planners", "policy,dream-mpc", "--episodes", 5)).out
    assert "5 episodes on 2 checkpoints;" in " ".join(output.split())
    [(shown, title)] = pictures
    assert title == "tests.example_env:make: 5 episodes of each of 2 checkpoints"
    assert [row["planner"] for row in shown] == ["policy", "dream-mpc"]
    paths = [str(find_checkpoint(folder)) for folder in (trained, another)]
    rows = table(tmp_path / "episodes.csv")
    assert {(row["planner"], row["checkpoint"]) for row in rows} == {
        (label, path) for label in ("policy", "dream-mpc") for path in paths
    }
    scores = {
        label: np.array([returns(tmp_path, label, path) for path in paths], dtype=float).T  # [E, C]
        for label in ("policy", "dream-mpc")
    }
    assert (scores["policy"][:, 0] != scores["policy"][:, 1]).all(), "the checkpoints are different agents"
    for row in table(tmp_path / "compare.csv"):
        x = scores[row["planner"]]
        assert row["checkpoints"] == "2"
        assert float(row["return"]) == pytest.approx(x.mean())
        interval = float(row["return_low"]), float(row["return_high"])
        assert interval == pytest.approx(mean_interval(x))
        assert interval != pytest.approx(mean_interval(x.reshape(-1, 1))), "checkpoints are strata"
    difference = (scores["dream-mpc"] - scores["policy"]).mean()
    assert float(table(tmp_path / "compare.csv")[1]["difference"]) == pytest.approx(difference)


def test_checkpoints_of_different_tasks_are_one_line(trained, tmp_path):
    for key, value in {"max_env_steps": 30, "action_repeat": 2, "env": "tests.support.counting_env:make"}.items():
        other = changed_copy(trained, tmp_path / key, **{key: value})
        message = refused(compare([trained, other], tmp_path / "out"))
        assert "different tasks" in message and f"{key} {value}" in message
    assert not (tmp_path / "out").exists()


# sweeps


def labels(folder):
    return [row["planner"] for row in table(folder / "compare.csv")]


SIZE = {"policy": None, "dream-mpc": 3, "policy-grad-mpc": 3, "grad-mpc": 3, "cem": 4, "mppi": 3}  # `SMALL`'s horizons
SWEPT = {  # options, then a setting, and its recorded value by label
    "--sweep dream-mpc.iterations=1,2,4": (
        "iterations", {"policy": None} | {f"dream-mpc iterations={i}": i for i in (1, 2, 4)},
    ),
    "--sweep dream-mpc.iterations=1,2 cem.horizon=2,3 --planners policy,dream-mpc": (
        "iterations", {"policy": None, "dream-mpc": 1, "dream-mpc iterations=1": 1, "dream-mpc iterations=2": 2}
        | {"cem horizon=2": 2, "cem horizon=3": 2},
    ),
    "--sweep dream-mpc.uncertainty=0,1:penalty-gradient=false": (
        "uncertainty", {"policy": None}
        | {f"dream-mpc uncertainty={value} penalty_gradient=False": float(value) for value in (0, 1)},
    ),
    "--sweep cem.candidates=2e1,2.5e1 --planners policy": (
        "candidates", {"policy": None, "cem candidates=20": 20, "cem candidates=25": 25},
    ),
    "--sweep cem.horizon=2 --planners all": ("horizon", SIZE | {"cem horizon=2": 2}),
    "--planners mppi,all": ("horizon", {"mppi": 3} | SIZE),
    "--sweep dream-mpc.objective=return,rewards": (
        "objective", {"policy": None} | {f"dream-mpc objective={word}": word for word in ("return", "rewards")},
    ),
    "--sweep dream-mpc.penalty-gradient=true,false": (
        "penalty_gradient", {"policy": None} | {f"dream-mpc penalty_gradient={x}": x for x in (True, False)},
    ),
    "--sweep dream-mpc.uncertainty=-0.5,0,1e1": (
        "uncertainty", {"policy": None} | {f"dream-mpc uncertainty={x}": float(x) for x in ("-0.5", "0", "10")},
    ),
    "--planners policy --sweep dream-mpc.step-size=1e-3,0.001 dream-mpc.step_size=0.0010": (
        "step_size", {"policy": None, "dream-mpc step_size=0.001": 0.001},
    ),
    "--planners mppi,cem,mppi": ("horizon", {"mppi": 3, "cem": 4}),
    "--planners policy --sweep policy.sample=true": ("sample", {"policy": False, "policy sample=True": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEPT)
def test_planners_and_swept_settings_stand_beside_each_other(trained, tmp_path, name):
    setting, expected = SWEPT[name]
    output = done(compare(trained, tmp_path, *name.split(), "--episodes", 1)).out
    rows = table(tmp_path / "compare.csv")
    assert labels(tmp_path) == list(expected)
    recorded = json.loads((tmp_path / "compare.json").read_text())["planners"]
    found = [recorded[label].get(setting) for label in expected]
    assert found == list(expected.values()) and [*map(type, found)] == [*map(type, expected.values())]
    assert all(recorded[label]["candidates"] == 2 for label in expected if label[:9] == "dream-mpc"), "the command's"
    compared = "policy" in expected
    assert all((row["difference"] != "") == (compared and row["planner"] != "policy") for row in rows)
    assert compared or not ("compared" in output or "decided" in output)
    if list(expected)[-1] == "dream-mpc iterations=4":
        assert [int(row["model_evaluations"]) for row in rows] == [0, *(6 + 2 * 6 * (1 + 2 * i) for i in (1, 2, 4))]
    if "cem horizon=3" in expected:  # the default is one value of the sweep: the same episodes under two names
        assert returns(tmp_path, "dream-mpc") == returns(tmp_path, "dream-mpc iterations=1")
        assert returns(tmp_path, "dream-mpc") != returns(tmp_path, "dream-mpc iterations=2")


def test_samples_of_the_policy_are_a_row_of_their_own_or_the_baseline(trained, tmp_path):
    """By a sweep beside the mode; by the setting in place of it. Either way they repeat with the seed."""
    said = "policy executes samples, by the settings of the checkpoint or the command"
    few, sampled = ["--planners", "policy", "--episodes", 3], "policy sample=True"
    mode = done(compare(trained, tmp_path / "mode", *few))
    both = done(compare(trained, tmp_path / "mode", *few, "--sweep", "policy.sample=true"))
    alone = done(compare(trained, tmp_path / "sample", *few, "--policy.sample", "--sweep", "policy.sample=false"))
    assert said in alone.out and said not in mode.out + both.out
    assert returns(tmp_path / "sample", "policy") == returns(tmp_path / "mode", sampled)
    assert returns(tmp_path / "sample", "policy sample=False") == returns(tmp_path / "mode", "policy")
    assert returns(tmp_path / "mode", "policy") != returns(tmp_path / "mode", sampled)
    for folder, name in (("mode", sampled), ("sample", "policy sample=False")):
        baseline, other = table(tmp_path / folder / "compare.csv")
        assert (baseline["planner"], other["planner"], baseline["difference"]) == ("policy", name, "")
        gain = float(other["return"]) - float(baseline["return"])
        assert float(other["difference"]) == pytest.approx(gain) and gain != 0
    assert "with other planners policy (sample False -> True)" in refused(
        compare(trained, tmp_path / "mode", *few, "--policy.sample")
    )


def test_an_evaluation_by_samples_is_that_of_the_checkpoint_or_the_command(trained, tmp_path):
    """The checkpoint's own setting is the default; a checkpoint of before it was there has the mode."""
    config = load_checkpoint(find_checkpoint(trained)).config
    old = changed_copy(trained, tmp_path / "old", policy={})
    new = changed_copy(trained, tmp_path / "new", policy={"sample": True})
    assert config["policy"] == {"sample": False} and not Subject.load(old).trained.policy.sample

    def found(folder, *args):
        result = done(quietly(
            "eval", "--checkpoint", folder, "--planner", "policy", "--episodes", 2, "--num-envs", 1, *args
        ))  # fmt: skip
        [row] = json.loads((folder / "eval" / "eval.json").read_text())["results"]
        return row["returns"], "policy executes samples" in result.out

    assert found(old) == found(new, "--policy.no-sample") == (found(old)[0], False)
    assert found(new) == found(old, "--policy.sample") == (found(new)[0], True)
    assert found(new)[0] != found(old)[0]


def test_a_planet_agent_is_compared_by_what_needs_no_actor(planet, trained, tmp_path):
    output = done(compare(planet, tmp_path / "a", "--planners", "all", "--episodes", 1)).out
    [line] = [line for line in output.splitlines() if line.startswith("left out")]
    assert line.endswith(": policy, dream-mpc, policy-grad-mpc, grad-mpc, mppi") and labels(tmp_path / "a") == ["cem"]
    rewards = ["--grad-mpc.objective", "rewards", "--mppi.objective", "rewards"]
    done(compare(planet, tmp_path / "b", "--episodes", 1, *rewards, "--mppi.policy-candidates", 0))
    assert labels(tmp_path / "b") == ["grad-mpc", "cem", "mppi"]
    done(compare(planet, tmp_path / "c", "--sweep", "cem.iterations=1,2", "--episodes", 1))
    assert labels(tmp_path / "c") == ["cem iterations=1", "cem iterations=2"]
    done(compare([trained, planet], tmp_path / "d", "--episodes", 1))
    assert labels(tmp_path / "d") == ["cem"]
    for checkpoints in (planet, [trained, planet]):
        message = refused(compare(checkpoints, tmp_path / "e", "--cem.objective", "return"))
        assert "needs a critic and an actor" in message or "needs an actor and a critic" in message


# errors

ERRORS = {
    "unknown planner": (["--planners", "policy,dreem"], "unknown planner 'dreem': known are policy, dream-mpc, "),
    "no planner": (["--planners", ","], "names no planner"),
    "unknown planner of a sweep": (["--sweep", "dreem.iterations=1"], "unknown planner 'dreem'"),
    "unknown setting of a sweep": (["--sweep", "cem.temperature=1"], "cem has no setting 'temperature': known are ho"),
    "a sweep of the policy": (["--sweep", "policy.horizon=1"], "policy has no setting 'horizon': known are sample"),
    "a swept value that is not true or false": (
        ["--sweep", "policy.sample=some"],
        "policy.sample=some: sample: Value 'some' is not a valid bool (type str); give true or false",
    ),
    "samples by another word": (["--policy.sample", "some"], "some belongs to no option"),
    "a swept value out of range": (["--sweep", "cem.elites=4,21"], "cem.elites=21: elites must be between 1 and 20"),
    "a swept value of another type": (["--sweep", "cem.horizon=2.5"], "cem.horizon=2.5"),
    "a swept word that is none": (["--sweep", "cem.objective=retrun"], "cem.objective=retrun"),
    "a swept value that is missing": (["--sweep", "cem.horizon=???"], "cem.horizon=???"),
    "a swept value that refers to another": (["--sweep", "cem.horizon=${x}"], "cem.horizon=${x}"),
    "two options of one name": (["--sweep", "cem.horizon=2", "--sweep", "cem.horizon=3"], "--sweep is given twice"),
    "a sweep without values": (["--sweep", "cem.horizon="], "'cem.horizon=' is not planner.setting=value,value"),
    "a sweep that ends in a colon": (["--sweep", "cem.horizon=2:"], "'cem.horizon=2:' is not planner.setting=value"),
    "a sweep without a setting": (["--sweep", "cem=3"], "'cem=3' is not planner.setting=value,value"),
    "a sweep without an equals sign": (["--sweep", "cem.horizon"], "'cem.horizon' is not planner.setting=value"),
    "no episodes": (["--episodes", "0"], "--episodes must be at least 1, got 0"),
    "no environments": (["--num-envs", "0"], "--num-envs must be at least 1, got 0"),
    "a negative seed": (["--seed", "-1"], "--seed must be at least 0, got -1"),
    "a setting out of range": (["--cem.horizon", "0"], "--cem.horizon must be at least 1, got 0"),
    "unknown option": (["--planner", "cem"], "unknown option --planner; perhaps --planners"),
    "unknown device": (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_compare_says_what_is_wrong_in_one_line(trained, tmp_path, name):
    args, cause = ERRORS[name]
    assert cause in refused(compare(trained, tmp_path / "out", "--episodes", 1, *args))
    assert not (tmp_path / "out" / "episodes.csv").exists()
    if name == "unknown device":  # it does not create the folder
        done(compare(trained, tmp_path / "out", "--planners", "policy", "--episodes", 1, "--seed", 5))


@pytest.mark.parametrize(
    "args, cause",
    [
        (["--planners", "cem,dream-mpc"], "dream-mpc needs an actor and a critic"),
        (["--planners", "policy,all"], "policy needs an actor and a critic"),
        (["--sweep", "grad-mpc.horizon=2"], "grad-mpc horizon=2 needs a critic"),
        (["--sweep", "cem.objective=rewards,return"], "cem objective=return needs a critic"),
    ],
)
def test_a_planner_that_needs_an_actor_is_refused_on_a_planet_agent(trained, planet, tmp_path, args, cause):
    for checkpoints in (planet, [trained, planet]):
        message = refused(compare(checkpoints, tmp_path / "out", *args))
        assert cause in message and "PlaNet" in message
        assert str(find_checkpoint(planet)) in message and str(find_checkpoint(trained)) not in message


def test_no_checkpoint_is_one_line(trained, tmp_path):
    assert "--checkpoint" in refused(quietly("compare"))
    assert "checkpoint must name one checkpoint or more" in refused(quietly("compare", "--checkpoint"))
    assert f"no checkpoint {tmp_path / 'no'}" in refused(compare(tmp_path / "no", tmp_path))
    assert f"no checkpoint {tmp_path / 'no'}" in refused(compare([trained, tmp_path / "no"], tmp_path))
    assert f"no checkpoint-*.safetensors in {tmp_path}" in refused(compare(tmp_path, tmp_path / "out"))


def test_a_folder_that_cannot_be_written_is_one_line(trained, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refused(compare(trained, out, "--planners", "policy", "--episodes", 1))
        assert f"cannot write to {out}" in message and "--out" in message
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("named", [True, False], ids=["by --out", "the checkpoint's own"])
def test_eval_refuses_a_named_folder_that_cannot_be_written_before_it_plays(named, trained, tmp_path, monkeypatch):
    """In the run folder of others, which may be read-only, it plays all the same, and prints what was played."""
    run_folder, played, play = shutil.copytree(trained, tmp_path / "run"), [], dreamer_mpc.evaluation.compare.evaluate
    shutil.rmtree(run_folder / "eval", ignore_errors=True)
    (run_folder / "eval").write_text("in the way")
    monkeypatch.setattr(dreamer_mpc.evaluation.compare, "evaluate", lambda *args: played.append(1) or play(*args))
    out = ["--out", run_folder / "eval"] if named else []
    result = quietly("eval", "--checkpoint", run_folder, "--planner", "policy", "--episodes", 1, "--num-envs", 1, *out)
    assert f"cannot write to {run_folder / 'eval'}" in refused(result)
    assert len(played) == (0 if named else 1) and ("policy" in result.out) == (not named)


def test_a_disk_that_fills_up_costs_files_and_no_result(trained, tmp_path, monkeypatch):
    real, full = dreamer_mpc.evaluation.record.write_text, []

    def write_text(path, text):
        if full and path.name in full:
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(dreamer_mpc.evaluation.record, "write_text", write_text)
    args = ["--planners", "policy,cem", "--episodes", 1]
    full += ["episodes.csv"]
    result = compare(trained, tmp_path, *args)
    assert "No space left" in refused(result) and "failed" in result.out and "cem" in result.out
    full.clear()
    monkeypatch.undo()
    done(compare(trained, tmp_path, *args))
    assert labels(tmp_path) == ["policy", "cem"]


def test_a_picture_that_cannot_be_drawn_costs_the_picture(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no backend")

    monkeypatch.setattr(dreamer_mpc.report.plot, "comparison_picture", fail)
    result = done(compare(trained, tmp_path, "--planners", "policy", "--episodes", 1))
    assert "no picture: " in result.out and "no backend" in result.out and "compare.png, " not in result.out
    assert (tmp_path / "compare.csv").exists()
    assert "cannot draw" in refused(quietly("plot", tmp_path))


# pictures


def test_a_video_shows_the_first_episode_of_the_first_checkpoint(trained, another, six, tmp_path, plays):
    args = ["--planners", "cem", "--episodes", 3, "--video"]
    done(compare([trained, another], tmp_path, *args))
    assert plays.batches == 2 * [(10_000, 1), (10_001, 1), (10_002, 1)], "none is played twice"
    assert returns(tmp_path, "cem", str(find_checkpoint(trained))) == returns(six[0], "cem")[:3], "it changes no return"
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["cem.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "cem.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 8
    capture.release()
    before = (tmp_path / "cem.mp4").read_bytes()
    done(compare(trained, tmp_path, *args, "--seed", 5, "--overwrite"))
    assert (tmp_path / "cem.mp4").read_bytes() != before, "renewed"


def test_a_video_of_each_planner_is_written_once(trained, tmp_path, plays):
    args = ["--planners", "policy", "--sweep", "dream-mpc.step-size=1e-3", "--episodes", 2]
    done(compare(trained, tmp_path, *args))
    before, plays.batches = (tmp_path / "episodes.csv").read_bytes(), []
    output = done(compare(trained, tmp_path, *args, "--video")).out
    assert plays.batches == 2 * [(10_000, 1)], "the first episode again, and no other"
    assert (tmp_path / "episodes.csv").read_bytes() == before
    videos = {"policy.mp4", "dream-mpc-step_size-0.001.mp4"}
    assert {path.name for path in tmp_path.glob("*.mp4")} == videos
    assert all(f"wrote {tmp_path / name}" in output for name in videos)
    assert [path.name for path in tmp_path.glob("*-decision.png")] == ["dream-mpc-step_size-0.001-decision.png"]
    plays.batches = []
    (tmp_path / "policy.mp4").unlink()
    done(compare(trained, tmp_path, *args, "--video"))
    assert plays.batches == [(10_000, 1)]
    assert {path.name for path in tmp_path.glob("*.mp4")} == videos
    plays.batches = []
    done(compare(trained, tmp_path, *args, "--video"))
    assert plays.batches == []


def test_a_video_that_cannot_be_written_costs_no_episode(trained, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dreamer_mpc.evaluation.visualize, "write_mp4", fail)
    args = ["--planners", "policy,cem", "--episodes", 1, "--video"]
    output = done(compare(trained, tmp_path, *args)).out
    assert all(re.search(f"no video of .*, {name}: .*No space left", output) for name in ("policy", "cem"))
    assert labels(tmp_path) == ["policy", "cem"]
    monkeypatch.undo()
    done(compare(trained, tmp_path, *args))
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"policy.mp4", "cem.mp4"}


@pytest.mark.parametrize("cores, said", [(2, True), (5, False)])
def test_fewer_environments_than_asked_for_are_said(cores, said, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    args = ["--planners", "policy", "--episodes", 3, "--num-envs", 5]
    assert ("2 environments at once, as many as CPU cores" in done(compare(trained, tmp_path, *args)).out) == said
