"""`run.py analyze` as a user runs it: its files, its resuming, and one clear line for wrong input."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace as Fake

import cv2
import pytest
import torch

import dreamer_mpc.analysis.true_gain
import dreamer_mpc.evaluation.subject
from dreamer_mpc.analysis.analysis import MEASURES, Analysis
from dreamer_mpc.analysis.ledger import Ledger
from dreamer_mpc.config import AnalyzeConfig
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.runs.checkpoint import save_checkpoint
from dreamer_mpc.util.errors import UserError
from tests.support.agents import CHEAP
from tests.support.checkpoints import family_checkpoint
from tests.support.commands import ROOT, command, quietly

ENV = ["--env", "tests.support.going_env:make", "--max-env-steps", 8]
SMALL = [
    "--num-envs", 1, "--states", 2, "--every", 4, "--draws", 8, "--averaged", 1, 2, "--depth", 3, "--steps", 2,
    "--lookahead", 2, "--levels", 0, 0.1, "--weights", 0, 1, "--device", "cpu", *CHEAP, "--dream-mpc.draws", 2,
    "--dream-mpc.iterations", 1,
]  # fmt: skip
ABLATED = ROOT / "results" / "analysis" / "ablate"
SIX = ["acrobot-swingup", "cheetah-run", "cheetah-run-dreamer", "hopper-hop", "walker-run", "walker-run-dreamer"]
FILES = {"rows.csv", "summary.csv", "table.csv", "analysis.png", "analysis.json"}


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """The checkpoint files of a small agent of each family, and one that cannot go back, by name."""
    folder = tmp_path_factory.mktemp("agents")
    longer = [*ENV[:-1], 20]  # than the horizon of every preset
    made = {"paper": ("paper", ENV), "v3": ("v3", ENV), "rigid": ("paper", []), "long": ("paper", longer)}
    for name, (family, env) in made.items():
        save_checkpoint(folder / name / "checkpoint-00000016.safetensors", family_checkpoint(family, *env))
    planet = family_checkpoint("paper", *ENV, "--planner", "cem", "--agent", "planet")
    save_checkpoint(folder / "planet" / "checkpoint-00000016.safetensors", planet)
    return folder


@pytest.fixture
def drawn():
    """For a test whose pictures are drawn."""


@pytest.fixture(autouse=True)
def pictures(monkeypatch, request):
    """Panels of the pictures that would be drawn; drawing takes longer than a small analysis."""
    seen = []
    if "drawn" not in request.fixturenames:
        replaced = "dreamer_mpc.analysis.analysis.panels_picture"
        monkeypatch.setattr(replaced, lambda path, panels, title: seen.append((panels, title)))
    return seen


def analyze(checkpoints, what, out, *args, planners="dream-mpc"):
    named = checkpoints if isinstance(checkpoints, list) else [checkpoints]
    chosen = ["--planners", planners] if planners else []
    return quietly("analyze", "--checkpoint", *named, "--what", what, "--out", out, *SMALL, *chosen, *args)


def done(result):
    assert result.code == 0, result.err
    return result


def refused(result):
    """The message of a command that ended with one line."""
    assert result.code == 2, result.out + result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    return result.err


def table(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def known(folder):
    """The measurements without what depends on the machine's load."""
    return [{k: v for k, v in row.items() if k != "ms_per_action"} for row in table(folder / "rows.csv")]


# output


@pytest.mark.parametrize("what", list(MEASURES))
def test_every_measure_runs_on_both_families(agents, tmp_path, what, drawn):
    episodes = 1 if what in ("bad-model", "ablate") else 2
    result = done(analyze([agents / "paper", agents / "v3"], what, tmp_path, "--episodes", episodes))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == FILES
    rows, summary = table(tmp_path / "rows.csv"), table(tmp_path / "summary.csv")
    assert {Path(row["checkpoint"]).parent.name for row in rows} == {"paper", "v3"}
    assert {(row["episode"], row["env_seed"]) for row in rows} == {*[("0", "10000"), ("1", "10001")][:episodes]}
    assert {row["group"] for row in rows} == {"other"} and {row["task"] for row in rows} == {ENV[1]}
    assert max(int(line["checkpoints"]) for line in summary) == 2
    picture = cv2.imread(str(tmp_path / "analysis.png"))
    assert picture.shape[1] >= 500 and picture.std() > 10
    record = json.loads((tmp_path / "analysis.json").read_text())
    assert record["what"] == what and record["seed"] == 10_000
    assert {value for key, value in record["discounts"].items()} == {0.99, 0.997}, "each agent has its own"
    for unit in record["units"].values():
        assert "CPU" in unit["device"] and unit["torch"] == torch.__version__ and unit["date"] and unit["seconds"] >= 0
    assert "95 % intervals" in " ".join(result.out.split()) and "wrote" in result.out


def test_the_policy_samples_in_ablate_which_is_a_comparison_and_in_no_other_measure(agents, tmp_path):
    played = {}
    for what in ("bad-model", "ablate"):
        for args in ([], ["--policy.sample"]):
            folder = tmp_path / "".join([what, *args])
            output = done(analyze(agents / "paper", what, folder, "--episodes", 1, *args)).out
            assert ("takes the policy's mode" in output) == (what == "bad-model" and bool(args))
            rows = [row for row in table(folder / "rows.csv") if row["method"] == "policy"]
            played[folder.name] = [row["return"] for row in rows]
    assert played["bad-model"] == played["bad-model--policy.sample"] == played["ablate"]
    assert played["ablate"] != played["ablate--policy.sample"]
    for folder, args, change in (
        ("ablate", ["--policy.sample"], "False -> True"), ("ablate--policy.sample", [], "True -> False")
    ):  # fmt: skip
        told = analyze(agents / "paper", "ablate", tmp_path / folder, "--episodes", 1, *args)
        error = refused(told)
        assert f"policy (sample {change})" in error and "--out" in error


def test_a_summary_of_some_of_a_folder_s_checkpoints_says_so(agents, tmp_path):
    both, small = [agents / "paper", agents / "v3"], ("true-gain", tmp_path, "--episodes", 1, "--states", 1)
    assert "checkpoints in the folder" not in done(analyze(both, *small)).out
    assert "of 1 of 2 checkpoints in the folder; rows.csv has all" in done(analyze(both[0], *small)).out
    assert {line["checkpoints"] for line in table(tmp_path / "summary.csv")} == {"1"}
    assert {Path(row["checkpoint"]).parent.name for row in table(tmp_path / "rows.csv")} == {"paper", "v3"}


def test_from_five_episodes_on_there_are_intervals(agents, tmp_path, pictures):
    done(analyze([agents / "paper", agents / "v3"], "true-gain", tmp_path, "--episodes", 5, "--states", 1))
    line = table(tmp_path / "summary.csv")[0]
    assert float(line["real_low"]) < float(line["real"]) < float(line["real_high"])
    assert (line["episodes"], line["checkpoints"]) == ("5", "2")
    ((panels, title),) = pictures
    assert "2 checkpoints, 5 episodes each" in title and panels[0].ylabel == "gain, return units"
    assert panels[0].lines["dream-mpc"][2].low == float(line["real_low"])


def test_groups_of_tasks_have_panels_of_their_own(agents, tmp_path, pictures):
    args = (agents / "paper", "model-error", tmp_path, "--episodes", 2, "--states", 4)
    done(analyze(*args))
    text = (tmp_path / "rows.csv").read_text()
    lines = text.splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([
        lines[0], *(line.replace(",other,", ",smooth," if number % 2 else ",contact-rich,")
                    for number, line in enumerate(lines[1:])),
    ]) + "\n")  # fmt: skip
    done(analyze(*args))
    panels, _ = pictures[-1]
    assert [panel.title.split()[0] for panel in panels] == 6 * ["contact-rich"] + 6 * ["smooth"]
    assert all({"penalty 0", "penalty 1"} == set(panel.lines) for panel in panels)


def test_a_model_of_another_size_is_left_out_and_one_of_equal_size_is_planned_with(agents, tmp_path):
    other = tmp_path / "other"
    checkpoint = family_checkpoint("paper", *ENV, "--seed", 3)
    for weight in checkpoint.agent["model"].values():
        if weight.is_floating_point():
            weight *= 1.5
    save_checkpoint(other / "checkpoint-00000016.safetensors", checkpoint)
    result = done(analyze(
        agents / "paper", "bad-model", tmp_path / "out", "--episodes", 1, "--models", agents / "v3", other,
    ))  # fmt: skip
    assert "left out, world models of other sizes" in result.out and str(agents / "v3") in result.out
    models = {row["model"]: float(row["return"]) for row in table(tmp_path / "out" / "rows.csv")}
    assert models.keys() == {"", "noise 0", "noise 0.1", "model of other"}


@pytest.fixture
def read(monkeypatch):
    """Names of the folders of checkpoints that are read."""
    seen, real = [], dreamer_mpc.evaluation.subject.load_checkpoint

    def load(file):
        seen.append(file.parent.name)
        return real(file)

    monkeypatch.setattr(dreamer_mpc.evaluation.subject, "load_checkpoint", load)
    return seen


def test_each_checkpoint_of_checkpoint_and_models_is_read_once(agents, tmp_path, read, monkeypatch):
    monkeypatch.setattr(Analysis, "play", lambda analysis: None)
    named = [agents / "paper", agents / "v3"]
    args = ("--episodes", 1, "--models", *named, agents / "long")
    output = analyze(named, "bad-model", tmp_path, *args).out
    assert sorted(read) == ["long", "paper", "v3"]
    assert len(re.findall("left out, world models of other sizes", output)) == 2, "each family's fit the other not"
    read.clear()
    analyze(named, "true-gain", tmp_path / "other", "--episodes", 1, "--models", agents / "long")
    assert sorted(read) == ["paper", "v3"], "true-gain plans in no other model"


def test_models_are_called_by_their_run_and_file(agents, tmp_path, monkeypatch):
    monkeypatch.setattr(Analysis, "play", lambda analysis: print(*analysis._measure.models, sep=";"))
    for number in (8, 24):
        file = tmp_path / "run" / "checkpoints" / f"checkpoint-{number:08}.safetensors"
        save_checkpoint(file, family_checkpoint("paper", *ENV, "--seed", number))
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    out = tmp_path / "out"
    output = analyze(agents / "paper", "bad-model", out, "--episodes", 1, "--models", tmp_path / "run", *files).out
    assert output.splitlines()[0] == (
        "noise 0;noise 0.1;model of run;model of run checkpoint-00000008;model of run checkpoint-00000024"
    )
    save_checkpoint(tmp_path / "other" / "run" / files[0].name, family_checkpoint("paper", *ENV, "--seed", 1))
    both = [tmp_path / "run", tmp_path / "other" / "run"]
    error = refused(analyze(agents / "paper", "bad-model", tmp_path / "new", "--episodes", 1, "--models", *both))
    assert f"--models {both[1]}: another of them is called run, too" in error and "--out" in error


def test_without_a_folder_it_is_that_of_the_first_checkpoint_and_the_comparisons_of_ablate_are_below(agents):
    paths = tuple(str(agents / name) for name in ("paper", "v3"))
    config = AnalyzeConfig(checkpoint=paths, what="ablate", device="cpu", episodes=1)
    analysis = Analysis.of(config, [Subject.load(path) for path in paths])
    assert analysis.ledger.folder == agents / "paper" / "analysis" / "ablate"
    assert [measure.compare.out for measure in analysis.measures.values()] == [
        str(agents / "paper" / "analysis" / "ablate" / name) for name in ("paper", "v3")
    ]


def test_the_folder_is_that_of_the_start_whatever_the_working_folder_becomes(agents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(agents / "paper")
    config = AnalyzeConfig(checkpoint=(path,), what="ablate", device="cpu", episodes=1, out="here")
    analysis = Analysis.of(config, [Subject.load(path)])
    assert analysis.ledger.folder == tmp_path / "here"
    assert next(iter(analysis.measures.values())).compare.out == str(tmp_path / "here" / "paper")


# resuming


@pytest.fixture
def calls(monkeypatch):
    """(part, seed) of every unit of true-gain that is done; Ctrl-C is pressed before unit `stop_at`."""
    seen, real = {"units": [], "stop_at": None}, dreamer_mpc.analysis.true_gain.TrueGain.measure

    def measure(self, bench, part, count, seed):
        if len(seen["units"]) + 1 == seen["stop_at"]:
            seen["stop_at"] = None
            raise KeyboardInterrupt
        seen["units"].append((part, seed))
        return real(self, bench, part, count, seed)

    monkeypatch.setattr(dreamer_mpc.analysis.true_gain.TrueGain, "measure", measure)
    return seen


def test_an_interrupted_analysis_goes_on_and_gives_the_same(agents, tmp_path, calls):
    args = (agents / "paper", "true-gain")
    done(analyze(*args, tmp_path / "whole", "--episodes", 3))
    whole = list(calls["units"])
    calls["units"].clear()
    calls["stop_at"] = 2
    stopped = analyze(*args, tmp_path / "parts", "--episodes", 3)
    assert stopped.code == 130 and "the same command goes on" in stopped.err
    result = done(analyze(*args, tmp_path / "parts", "--episodes", 3))
    assert calls["units"] == whole and "1 unit of work is there already" in result.out
    assert known(tmp_path / "parts") == known(tmp_path / "whole")
    done(analyze(*args, tmp_path / "parts", "--episodes", 3))
    assert calls["units"] == whole, "nothing is done twice"


def test_more_episodes_and_planners_are_added(agents, tmp_path, calls):
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    first = known(tmp_path)
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 2, planners="dream-mpc,policy-grad-mpc"))
    assert calls["units"] == [
        ("dream-mpc", 10_000), ("dream-mpc", 10_001), ("policy-grad-mpc", 10_000), ("policy-grad-mpc", 10_001),
    ]  # fmt: skip
    assert known(tmp_path)[: len(first)] == first
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    assert [line["episodes"] for line in table(tmp_path / "summary.csv") if line["part"] == "means"] == ["1"]


def test_one_folder_may_be_filled_by_a_command_for_each_checkpoint(agents, tmp_path, calls):
    for name in ("paper", "v3"):
        done(analyze(agents / name, "true-gain", tmp_path, "--episodes", 1))
    before = list(calls["units"])
    done(analyze([agents / "paper", agents / "v3"], "true-gain", tmp_path, "--episodes", 1))
    assert calls["units"] == before and table(tmp_path / "summary.csv")[0]["checkpoints"] == "2"


def test_two_processes_do_not_lose_each_other_s_units(tmp_path):
    ledgers = [Ledger(tmp_path, {"what": "x"}, {name: sha}) for name, sha in (("a", "1"), ("b", "2"))]
    for ledger in ledgers:
        ledger.begin()
    for number in range(3):
        for name, ledger in zip("ab", ledgers):
            row = {"checkpoint": name, "episode": number, "value": 1 / 3, "method": "1"}
            ledger.add(f"{name}: : {number}", [row], "CPU", seconds=0.1)
    found = Ledger(tmp_path, {"what": "x"}, {"a": "1", "b": "2"})
    assert len(found.rows) == len(found.done) == 6
    assert found.of("b: : 2") == [{"unit": 6, "checkpoint": "b", "episode": 2, "value": 0.333333, "method": "1"}]
    assert found.done["b: : 2"]["seconds"] == 0.1
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "analysis.json"}


def test_rows_of_a_unit_that_is_not_recorded_do_not_count(tmp_path):
    ledger = Ledger(tmp_path, {}, {"a": "1"})
    ledger.begin()
    for unit in ("u", "v"):
        ledger.add(unit, [{"checkpoint": "a", "value": 1.5, "none": None}], "CPU")
    record = json.loads((tmp_path / "analysis.json").read_text())
    del record["units"]["v"]
    (tmp_path / "analysis.json").write_text(json.dumps(record))
    again = Ledger(tmp_path, {}, {"a": "1"})
    assert again.of("v") == [] and again.of("u") == [{"unit": 1, "checkpoint": "a", "value": 1.5, "none": None}]


def test_states_that_the_time_limit_leaves_out_are_counted(agents, tmp_path):
    """Episodes of 8 steps, states at steps 0 and 6, plans of 3 actions."""
    args = (agents / "paper", "true-gain", tmp_path, "--episodes", 2, "--every", 6)
    output = done(analyze(*args)).out
    assert "cut off: states left out" in " ".join(output.split())
    rows, line = table(tmp_path / "rows.csv"), table(tmp_path / "summary.csv")[0]
    assert sorted((row["step"], row["cut_off"], bool(row["real"])) for row in rows) == [
        ("0", "0", True), ("0", "0", True), ("6", "1", False), ("6", "1", False),
    ]  # fmt: skip
    assert (line["states"], line["cut_off"], line["terminated"]) == ("2", "2", "0")
    done(analyze(*args))
    again = table(tmp_path / "summary.csv")[0]
    assert table(tmp_path / "rows.csv") == rows and [again[name] for name in ("states", "cut_off")] == ["2", "2"]


def test_a_folder_of_before_ends_were_recorded_is_gone_on_with(agents, tmp_path, calls):
    """As results/analysis/true-gain is."""
    args = (agents / "paper", "true-gain", tmp_path)
    done(analyze(*args, "--episodes", 1))
    rows = table(tmp_path / "rows.csv")
    kept = [key for key in rows[0] if key not in ("cut_off", "terminated")]
    old = "".join(",".join(line) + "\n" for line in [kept, *([row[key] for key in kept] for row in rows)])
    (tmp_path / "rows.csv").write_text(old)
    done(analyze(*args, "--episodes", 1))
    assert len(calls["units"]) == 1 and (tmp_path / "rows.csv").read_text() == old, "nothing is measured again"
    done(analyze(*args, "--episodes", 2))
    assert calls["units"] == [("dream-mpc", 10_000), ("dream-mpc", 10_001)]
    again = table(tmp_path / "rows.csv")
    assert [{key: row[key] for key in kept} for row in again[:2]] == [{key: row[key] for key in kept} for row in rows]
    assert [row["cut_off"] for row in again] == ["", "", "0", "0"]
    line = table(tmp_path / "summary.csv")[0]
    assert (line["states"], line["cut_off"]) == ("4", ""), "how many were left out is not known"


@pytest.fixture
def three_units(tmp_path):
    """A folder with three units of two rows."""
    ledger = Ledger(tmp_path, {}, {"a": "1"})
    ledger.begin()
    for first in range(3):
        rows = [{"checkpoint": "a", "episode": first, "value": value} for value in (1.0, 2.0)]
        ledger.add(f"a: p: {first}", rows, "CPU")
    return tmp_path, (tmp_path / "rows.csv").read_text().splitlines()


def test_a_unit_that_lacks_a_row_is_measured_again_with_the_later_ones(three_units):
    folder, lines = three_units
    (folder / "rows.csv").write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    ledger = Ledger(folder, {}, {"a": "1"})
    assert list(ledger.done) == ["a: p: 0"] and [row["episode"] for row in ledger.rows] == [0, 0]
    assert ledger.notes == [f"{folder / 'rows.csv'} lacks 1 row of a: p: 1: it is measured again"]
    ledger.begin()
    ledger.add("a: p: 1", [{"checkpoint": "a", "episode": 1, "value": 3.0}], "CPU")
    again = Ledger(folder, {}, {"a": "1"})
    assert [row["value"] for row in again.rows] == [1.0, 2.0, 3.0] and again.notes == []


def test_a_row_too_many_is_refused_by_its_line(three_units):
    folder, lines = three_units
    (folder / "rows.csv").write_text("\n".join([*lines, lines[3]]) + "\n")
    with pytest.raises(UserError, match="rows.csv, line 8 is one row too many of a: p: 1, which had 2: remove it"):
        Ledger(folder, {}, {"a": "1"})


def test_overwrite_starts_again(agents, tmp_path, calls):
    for seed in (10_000, 5):
        extra = ["--overwrite"] if seed == 5 else []
        done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1, "--seed", seed, *extra))
    assert {row["env_seed"] for row in table(tmp_path / "rows.csv")} == {"5"}


# errors


@pytest.mark.parametrize("args, word", [
    (["--draws", 16], "draws (8)"),
    (["--seed", 1], "seed (10000)"),
    (["--every", 3], "steps"),
    (["--dream-mpc.horizon", 4], "planners dream-mpc (horizon 3 -> 4)"),
    (["--render-quality", "full"], "render_quality"),
])  # fmt: skip
def test_other_settings_in_the_same_folder_are_refused(agents, tmp_path, calls, args, word):
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    before = known(tmp_path)
    error = refused(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1, *args))
    assert "holds another analysis" in error and word in error and "--overwrite" in error
    assert len(calls["units"]) == 1 and known(tmp_path) == before


def test_units_of_another_device_are_drawn_but_not_added_to(agents, tmp_path, calls):
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    path = tmp_path / "analysis.json"
    path.write_text(re.sub(r'"device": ".*"', '"device": "NVIDIA H200"', path.read_text()))
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    error = refused(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 2))
    assert "other device (NVIDIA H200)" in error and len(calls["units"]) == 1
    path.write_text(re.sub(r'"device": ".*"', '"device": "CPU, 1 threads"', path.read_text()))
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 2))  # as older versions called one thread


def test_another_measure_in_the_same_folder_is_refused(agents, tmp_path):
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    assert "what (true-gain)" in refused(analyze(agents / "paper", "gradient-snr", tmp_path, "--episodes", 1))


@pytest.mark.parametrize("what", ["true-gain", "finite-differences"])
def test_a_simulator_that_cannot_go_back_is_named_in_one_line(agents, tmp_path, what):
    error = refused(analyze(agents / "rigid", what, tmp_path / "out", "--episodes", 1))
    assert "tests.example_env:make: its state cannot be copied" in error and "Restorable" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["gradient-snr", "model-error"])
def test_other_measures_need_no_copied_states(agents, tmp_path, what):
    done(analyze(agents / "rigid", what, tmp_path, "--episodes", 1))


@pytest.mark.parametrize("what, args, words", [
    ("gradient-snr", ["--planners", "mppi"], "--planners mppi: gradient-snr measures planners that climb J's gradient"),
    ("gradient-snr", ["--planners", "dream-mcp"], "unknown planner 'dream-mcp'"),
    ("gradient-snr", ["--averaged", 4], "draws must be at least 16"),
    ("gradient-snr", ["--averaged", 1, 1], "averaged must hold one value or more, each once"),
    ("model-error", ["--weights", -1], "weights must be at least 0"),
    ("model-error", ["--depth", 0], "depth must be at least 1"),
    ("true-gain", ["--states", 0], "states must be at least 1"),
    ("finite-differences", ["--epsilon", 0], "epsilon must be between"),
    ("bad-model", ["--levels", "nan"], "levels must be finite"),
    ("bad-model", ["--models", "nowhere"], "no checkpoint nowhere"),
    ("ablate", ["--planners", "dream-mpc,grad-mpc"], "name one"),
    ("everything", [], "everything"),
])  # fmt: skip
def test_wrong_settings_are_one_line_and_make_no_folder(agents, tmp_path, what, args, words):
    planners = None if "--planners" in args else "dream-mpc"
    error = refused(analyze(agents / "paper", what, tmp_path / "out", "--episodes", 1, *args, planners=planners))
    assert words in error and not (tmp_path / "out").exists()


def shrunk(line, agent, out):
    """The arguments of a command, of one small agent and with small sizes."""
    words = [str(agent) if word.startswith("pretrained/") else word for word in shlex.split(line)]
    words = [word for i, word in enumerate(words) if word not in words[:i] or word != str(agent)]
    small = {"--num-envs": 1, "--episodes": 1, "--states": 1, "--steps": 1, "--depth": 2, "--device": "cpu"}
    small |= {"--draws": 256 if "--averaged" in words else 8, "--out": out}
    gone = small.keys() | {"--models"}
    kept = [word for i, word in enumerate(words) if not {word, *words[max(i - 1, 0) : i]} & gone]
    kept += [] if "--averaged" in words else ["--averaged", 1]
    if {"ablate", "bad-model"} & {*words}:
        kept += ["--planners", "dream-mpc", "--dream-mpc.draws", 2]
    return [*map(str, [*kept, *(word for pair in small.items() for word in pair), *CHEAP])]


@pytest.mark.parametrize("what", list(MEASURES))
def test_an_agent_without_an_actor_is_refused(agents, tmp_path, what):
    assert "needs" in refused(analyze(agents / "planet", what, tmp_path / "out", "--episodes", 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("args", [["--what", "true-gain"], ["--checkpoint", "x"], ["--checkpoint=x", "--what=ablate"]])
def test_what_is_missing_is_named(args):
    refused(quietly("analyze", *args))


def test_episodes_that_end_too_early_are_named(agents, tmp_path):
    error = refused(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1, "--dream-mpc.horizon", 9))
    assert "episodes end too early" in error and "the planner's horizon" in error


@pytest.mark.parametrize("name, text", [
    ("rows.csv", "unit,episode\n1,a b\n"), ("analysis.json", "{"), ("analysis.json", "[]"), ("analysis.json", "{}"),
])  # fmt: skip
def test_a_damaged_file_is_named(agents, tmp_path, name, text):
    done(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    (tmp_path / name).write_text(text)
    error = refused(analyze(agents / "paper", "true-gain", tmp_path, "--episodes", 1))
    assert name in error and "damaged" in error


def test_a_file_in_place_of_the_folder_is_named(agents, tmp_path):
    (tmp_path / "out").write_text("")
    assert str(tmp_path / "out") in refused(analyze(agents / "paper", "true-gain", tmp_path / "out", "--episodes", 1))


# the page


def test_the_commands_of_the_page_run(agents, tmp_path):
    """Each with a small agent and small sizes in place of its own; one of them in a process of its own."""
    page = (ROOT / "docs" / "analysis.md").read_text()
    commands = re.findall(r"^    python run\.py (analyze .*)$", page, re.MULTILINE)
    commands = [line for line in commands if "ablate-of-six" not in line]  # it has a test of its own, below
    assert {re.search(r"--what (\S+)", line)[1] for line in commands} == set(MEASURES)
    for number, line in enumerate(commands):
        args = shrunk(line, agents / "long", tmp_path / str(number))
        if number == 0:
            result = command(*args)
            assert result.returncode == 0, line + result.stderr
        else:
            done(quietly(*args))


def test_the_page_s_table_of_six_agents_is_what_its_command_makes(tmp_path):
    """From the committed rows of all eight; what it says of all eight is in the committed summary."""
    page = (ROOT / "docs" / "analysis.md").read_text()
    section = page[page.index("### Which part of the method matters?") : page.index("### How many seeds")]
    (line,) = re.findall(r"^    python run\.py (analyze .*)--out runs/ablate-of-six$", section, re.MULTILINE)
    short = "pretrained/{acrobot-swingup,{cheetah,walker}-run{,-dreamer},hopper-hop}"  # as bash expands it
    words = shlex.split(line.replace(short, " ".join(f"pretrained/{name}" for name in SIX)))
    shutil.copytree(ABLATED, tmp_path / "six")
    done(quietly(*words, "--out", tmp_path / "six", "--device", "cpu"))
    summaries = (table(folder / "summary.csv") for folder in (tmp_path / "six", ABLATED))
    six, eight = ([row for row in summary if row["scope"] == "all"] for summary in summaries)
    assert {row["checkpoints"] for row in six} == {"6"} and {row["checkpoints"] for row in eight} == {"8"}
    said = re.findall(r"^\| [^|]+ \| (?:\* )?(\S+) \[(\S+), (\S+)\] \|", section.replace("−", "-"), re.MULTILINE)
    keys = ("difference", "difference_low", "difference_high")
    made = [[round(float(row[key]), 1) for key in keys] for row in six if row["difference"]]
    assert sorted([float(number) for number in row] for row in said) == sorted(made)
    assert [row["method"] for row in six if row["p_holm"] and float(row["p_holm"]) < 0.05] == ["shared draws"]
    assert f"the least p of the ten is {min(float(row['p_holm']) for row in eight if row['p_holm']):.2f}" in section


def test_every_setting_of_the_page_and_each_measure_is_described():
    page = (ROOT / "docs" / "analysis.md").read_text()
    for what in MEASURES:
        assert f"## {what}\n" in page and f"`{what}`" in page
    assert "docs/analysis.md" in (ROOT / "README.md").read_text()


def test_the_help_names_what_reads_a_setting():
    with pytest.raises(SystemExit):
        quietly("analyze", "--help")


def test_a_ledger_refuses_a_folder_of_rows_without_settings(tmp_path):
    (tmp_path / "rows.csv").write_text("unit\n")
    with pytest.raises(UserError, match="analysis.json is damaged or missing"):
        Ledger(tmp_path, {}, {})


@pytest.mark.parametrize("asked, own, said", [
    (None, ("full", "small-shadows"), ""),  # each plays in its own
    (None, ("warp", "warp"), ", drawn by warp"),
    ("full", ("full", "small-shadows"), ", drawn with full (some trained with small-shadows)"),
    ("fast", ("fast",), ""),
])  # fmt: skip
def test_a_title_says_what_drew_the_episodes_of_agents_of_different_qualities(asked, own, said):
    subjects = {str(i): Fake(trained=Fake(render_quality=quality)) for i, quality in enumerate(own)}
    assert Analysis.world(Fake(config=Fake(render_quality=asked), subjects=subjects)) == said
