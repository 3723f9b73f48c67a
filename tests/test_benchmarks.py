"""The benchmarks at toy size on the CPU: their command lines run, and their counts equal hand-computed ones."""

import json
import os
import shutil
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from benchmarks import __main__ as everything
from benchmarks import (
    ascent,
    ceilings,
    collect,
    common,
    end_to_end,
    heads,
    lanes,
    peer_learning,
    peers,
    phases,
    pixels,
    plan,
    r2dreamer,
    rendering,
    roofline,
    saving,
    sweep,
    tables,
    targets,
    together,
    update,
)
from benchmarks.parts import PARTS, chosen
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.protocol import Act, Carry
from dreamer_mpc.config import Config, load_presets
from dreamer_mpc.envs import EnvError, make_vector_env
from dreamer_mpc.planners import CEM, DreamMPC, GradMPC, Policy
from dreamer_mpc.world_model import WorldModelConfig
from tests.support import agents
from tests.support.planning import PAPER

ROOT = Path(__file__).resolve().parent.parent
PEER = os.environ.get("DREAMER_MPC_PEER", "/tmp/peer")
R2DREAMER = os.environ.get("DREAMER_MPC_R2DREAMER", "/tmp/r2dreamer")
TINY = [
    *agents.TINY, *agents.CHEAP, "--device", "cpu", "--replay.batch-size", "2", "--cem.iterations", "10",
]  # fmt: skip
LIMITS = {"copy_gb_s": 10.0, "fp32_tflops": 0.1}


@pytest.fixture
def limits(tmp_path):
    """Fixed ceilings in place of measured ones."""
    path = tmp_path / "ceilings.json"
    path.write_text(json.dumps({"ceilings": LIMITS}))
    return path


def check_about(record, out):
    """The record is on disk and contains the data that every figure needs."""
    assert common.read(out) == json.loads(json.dumps(record))
    for key in ("benchmark", "date", "command", "commit", "device", "cpu", "cpu_cores", "python", "cuda", "packages"):
        assert key in record
    assert "torch" in record["packages"]


def test_timed_gives_ordered_percentiles_of_as_many_calls():
    calls = []
    found = common.timed(lambda: calls.append(1), torch.device("cpu"), 20, 10.0, warmup=2)
    assert len(calls) == 22 and found["repeats"] == 20
    assert 0 <= found["p10_ms"] <= found["ms"] <= found["p90_ms"]
    assert common.timed(lambda: None, torch.device("cpu"), 20, 0.0, warmup=0)["repeats"] == common.LEAST


def test_covered_counts_overlaps_once():
    assert common.covered([(5, 7), (0, 2), (1, 3), (1.5, 1.7), (6, 9)]) == 7
    assert common.covered([]) == 0


def test_ceilings(tmp_path):
    out = tmp_path / "ceilings.json"
    record = ceilings.main(["--device", "cpu", "--matrix", "128", "--copy-mib", "4", "--out", str(out)])
    check_about(record, out)
    assert record["ceilings"]["copy_gb_s"] > 0.1 and record["ceilings"]["fp32_tflops"] > 1e-3
    assert ceilings.load(out, torch.device("cpu")) == record["ceilings"]


def test_update(tmp_path, limits):
    out = tmp_path / "update.json"
    record = update.main([*TINY, "--repeats", "2", "--ceilings", str(limits), "--out", str(out)])
    check_about(record, out)
    assert [row["name"] for row in record["rows"]] == ["default", "kernels off"]
    assert all(row["ms"] > 0 and row["set_up_s"] > 0 and 0 < row["share"] for row in record["rows"])
    assert record["roofline"]["floor_ms"] == max(record["roofline"]["flops_ms"], record["roofline"]["bytes_ms"])


def test_plan(tmp_path, limits):
    out = tmp_path / "plan.json"
    words = ["--planners", "policy", "dream-mpc", "cem", "--batches", "1", "2", "--repeats", "2"]
    record = plan.main([*TINY, *words, "--ceilings", str(limits), "--out", str(out)])
    check_about(record, out)
    rows = {(row["planner"], row["kernels"], row["batch"]): row for row in record["rows"]}
    assert len(rows) == 3 * 2 + 2 * 2
    assert all(row["ms"] > 0 and row["act_ms"] > 0 for row in rows.values())
    one, two = (rows["cem", "auto", batch]["roofline"] for batch in (1, 2))
    assert two["flops"] == 2 * one["flops"] and two["bytes"] == one["bytes"]  # weights are read once for both


def test_collect(tmp_path):
    out = tmp_path / "collect.json"
    words = ["--num-envs", "1", "--qualities", "full", "--seconds", "0.2"]
    record = collect.main([*TINY, *words, "--out", str(out)])
    check_about(record, out)
    ceiling, *rows = record["rows"]
    assert ceiling["planner"] == "no agent" and [row["planner"] for row in rows] == ["random", "dream-mpc"]
    assert all(row["share"] == row["agent_steps_per_s"] / ceiling["agent_steps_per_s"] > 0 for row in rows)


def test_end_to_end_and_all_in_one_run(tmp_path):
    """`python -m benchmarks`: a part that fails is named, the others continue, and the table is written."""
    words = common.overlay(TINY, env_steps="16")
    words += ["--only", "ceilings", "end_to_end", "--ceilings-extra", "--no-such-option"]
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "update.json").write_text(json.dumps({"roofline": {"floor_ms": 0.1}, "rows": [{"ms": 1.0}]}))
    (folder / "end_to_end.json").write_text(
        json.dumps({"date": "2026-01-02", "commit": "0123456789-dirty", "rows": []})
    )
    everything.main(["--out", str(tmp_path), *words])
    run = common.read(folder / "end_to_end.json")
    (row,) = run["rows"]
    assert row["env_steps"] == 16 and row["updates"] == 1 and row["evaluations"] == 1
    assert row["wall_s"] > row["set_up_s"] > 0 and row["first_update_s"] >= row["set_up_s"]
    assert run["command"].startswith("python -m benchmarks.end_to_end") and len(run["metrics"]) >= 2
    assert row["updating_share"] == pytest.approx(1e-3 / row["wall_s"]), "the record of updates is passed on"
    assert "--eval.every 1 " in row["name"] + " "  # a twentieth
    table = (folder / "table.md").read_text()
    assert "one update" in table and "not run" in table and "ceilings failed: error: " in table
    aside = folder / "earlier" / "2026-01-02-0123456-dirty" / "end_to_end.json"
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert there == {aside, *(folder / name for name in ("end_to_end.json", "update.json", "run.json", "table.md"))}


def test_rounds_are_those_of_training():
    records = [
        {"time_s": 1.0, "env_steps": 100, "agent_steps": 50, "updates": 0},
        {"time_s": 2.0, "env_steps": 200, "agent_steps": 100, "updates": 10, "train/image_loss": 1.0},
        {"time_s": 9.0, "env_steps": 200, "agent_steps": 100, "updates": 10, "eval/return_mean": 7.0},
        {"time_s": 10.0, "env_steps": 300, "agent_steps": 150, "updates": 20, "train/image_loss": 1.0},
    ]
    found = end_to_end.rounds(records)
    assert found["updates_per_s"] == 10 and found["env_steps_per_s"] == 100
    assert found["updates"] == 20 and found["evaluations"] == 1 and found["last_return"] == 7
    late = [*records[:2], {**records[2], "time_s": 2.9, "env_steps": 100, "updates": 0}, {**records[3], "time_s": 3.0}]
    assert end_to_end.rounds(late)["updates_per_s"] == 10, "of a round with a late evaluation in it, nothing is known"


@pytest.mark.skipif(not Path(PEER, "main.py").exists(), reason="no checkout of the peer: DREAMER_MPC_PEER=path")
def test_peers(tmp_path):
    out = tmp_path / "peers.json"
    words = ["--device", "cpu", "--batch-size", "2", "--length", "3", "--candidates", "20", "--repeats", "2"]
    command = [sys.executable, "-m", "benchmarks.peers", PEER, *words, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    record = common.read(out)
    assert [row["name"] for row in record["rows"]] == [
        "update", "update, sampled from its replay", "cem plan, batch 1"
    ]  # fmt: skip
    assert record["settings"]["planning_horizon"] == 15 and record["settings"]["batch_size"] == 2
    assert [row["name"] for row in peers.rows(out, "plan", [], 1.0, None)] == ["peer, cem plan, batch 1"]


def test_peers_refuse_a_folder_without_the_peer(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout of the peer: it lacks main.py"):
        peers.main([str(tmp_path), "--device", "cpu"])


def test_flops_of_one_convolution():
    """Forward 2 k^2 C_in per output number, as much for the weights' gradient, and for the input's where asked."""
    layer, x = nn.Conv2d(3, 8, 4, stride=2), torch.randn(5, 3, 16, 16)
    forward = 2 * 4 * 4 * 3 * (5 * 8 * 7 * 7)
    assert roofline.count_flops(lambda: layer(x)) == forward
    assert roofline.count_flops(lambda: layer(x).sum().backward()) == 2 * forward
    assert roofline.count_flops(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * forward


def test_flops_of_an_update_are_proportional_to_the_batch():
    config = small()
    agent, batch = roofline.reference(config), common.random_batch(config, roofline.CPU)
    assert roofline.update_flops(config) == roofline.count_flops(lambda: agent.update(batch))


def test_flops_of_plans():
    """The cost of a model step is that of its matrix products; iterations are extrapolated exactly."""
    config, planner = small(), CEM(horizon=3, candidates=10, iterations=4, elites=2)
    d, z, x, a = config.world_model.deter, config.world_model.stoch, config.world_model.hidden, common.ACTION_DIM
    step = (z + a) * x + 3 * d * (x + d) + d * x + x * 2 * z
    r, state = config.world_model.reward_hidden, d + z
    reward = state * r + (config.world_model.reward_layers - 1) * r * r + r
    assert roofline.plan_flops(config, planner) == 2 * planner.model_evaluations * (step + reward)
    grad = GradMPC(horizon=3, candidates=2, iterations=4)
    agent = roofline.reference(config)
    start = agent.initial(1).state
    assert roofline.plan_flops(config, grad) == roofline.count_flops(lambda: grad.plan(agent.model, start))
    assert roofline.plan_flops(config, DreamMPC(horizon=3)) > roofline.plan_flops(config, Policy()) > 0


def test_bytes_grow_with_what_must_be_kept():
    config = small()
    assert roofline.image_numbers(Config().world_model) == (
        3 * 64 * 64 + 32 * 31 * 31 + 64 * 14 * 14 + 128 * 6 * 6 + 256 * 2 * 2
        + 1024 + 128 * 5 * 5 + 64 * 13 * 13 + 32 * 30 * 30 + 3 * 64 * 64
    )  # fmt: skip
    half, full = (roofline.update_bytes(config, bf16) for bf16 in (True, False))
    longer = replace(config, behavior=replace(config.behavior, horizon=6))
    assert half < full < roofline.update_bytes(longer, False)
    weights = roofline.plan_bytes(config, CEM(), 1, False)
    assert weights == roofline.plan_bytes(config, CEM(), 8, False) < roofline.plan_bytes(config, GradMPC(), 8, False)


@pytest.mark.parametrize("preset", ["quick", "quick,v3-small"])
def test_a_plan_reads_the_weights_of_a_step_and_no_others(preset):
    model = roofline.reference(load_presets(preset)).model
    state = torch.rand(2, model.world_model.state_dim)
    after = model.step(state, torch.rand(2, model.action_dim))
    weights = dict(model.named_parameters())
    value = after.square().sum() + model.reward(after).sum()
    grads = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    read = {id(weights[name]) for name, g in zip(weights, grads, strict=True) if g is not None}
    assert read == {id(p) for module in roofline.step_modules(model) for p in module.parameters()}


def test_floor_is_the_larger_time():
    found = roofline.floor(2 * 10**9, 10**8, LIMITS, "fp32")
    assert found["flops_ms"] == pytest.approx(20) and found["bytes_ms"] == pytest.approx(10)
    assert found["floor_ms"] == found["flops_ms"]


def test_targets_say_what_is_reached():
    update = {"date": "2026-01-01", "commit": "0123456789", "several": {"processes": 2, "ratio": 1.2}}
    update["rows"] = [{"name": "default", "ms": 6.0, "set_up_s": 30.0}, {"name": "peer, update", "ms": 130.0}]
    results = {
        "update": update,
        "update_v3": {"rows": [{"name": "default", "ms": 9.0}]},
        "plan": {"error": "failed: out of memory"},
        "r2dreamer": {
            "rows": [{"name": "update, not compiled", "ms": 487.0}, {"name": "acting step, batch 1", "ms": 3.0}]
        },
        "r2dreamer_compiled": {"rows": [{"name": "update", "ms": None, "text": "not compiled after 540 s"}]},
        "phases": {
            "rows": [{"beside": "off", "idle": 0.25, "whole_run_min": 25.0, "set_up_s": 70.0, "updates_per_s": 80.0}]
        },
        "end_to_end": {"rows": [{"env_steps": 1_000_000, "wall_min": 19.0}]},
    }
    rows = {row["what"]: row for row in targets.table(results, targets.GPU)}
    said = {what: (row["now"], row["met"]) for what, row in rows.items()}
    paper, v3 = rows["paper: one update, 50x50x64x64x3"], rows["v3: one update, 16x64 frames (peer: r2dreamer)"]
    assert (paper["now"], paper["met"], paper["peer"], paper["measured"]) == (
        "6 ms", "aim", "130 ms", "2026-01-01, 0123456"
    )  # fmt: skip
    assert (v3["now"], v3["met"]) == ("9 ms", "no")
    assert v3["peer"] == "not compiled after 540 s; not compiled: 487 ms"
    assert said["paper: CEM plan, batch 1"] == ("failed: out of memory", "-")
    assert said["v3: Dream-MPC plan, batch 1"] == ("not run", "-")
    assert said["paper: two runs on one GPU, updates/s together over one alone"] == ("1.2 x", "yes")
    assert said["paper: set-up of the agent before its first update, without a cache"] == ("30 s", "yes")
    assert said["paper: time of a round that its updates alone would take"] == ("48 %", "")
    idle = "paper: time of a whole run in which no update runs, --eval.beside "
    assert said[idle + "off"] == ("25 % (extrapolated)", "yes") and said[idle + "on"] == ("not measured", "-")
    assert said["paper: set-up of a run before its first update, without a cache"] == ("70 s", "no")
    assert said["paper: whole run, 1M env steps of cheetah-run, measured"] == ("19 min", "no")
    assert rows["v3: acting step of the policy, batch 1 (peer: r2dreamer)"]["peer"] == "3 ms"
    results["phases"]["rows"][0]["beside"] = "on"  # without a run whose evaluations training waits for
    on = {row["what"]: row["now"] for row in targets.table(results, targets.GPU)}
    assert on["paper: set-up of a run before its first update, without a cache"] == "70 s"
    results["end_to_end"]["rows"][0]["env_steps"] = 1000
    assert targets.table(results, targets.GPU)[-1]["now"] == "not measured: 1,000 env steps"
    results["r2dreamer_compiled"]["rows"] = [{"name": "update", "ms": 20.0, "first_calls_s": 510.0}]
    assert targets.table(results, targets.GPU)[1]["peer"] == "20 ms (first calls 510 s); not compiled: 487 ms"
    ratio = {row["what"]: row for row in targets.table(results, targets.CPU)}[
        "paper: one update, times as fast as the peer's"
    ]
    assert ratio["now"] == "21.7 x" and ratio["met"] == "yes"


def test_the_table_can_be_made_from_files(tmp_path):
    """Figures of earlier code stand apart, with date and commit; the default of that time has its name of today."""
    folder, aside = tmp_path / "cpu", tmp_path / "cpu" / "earlier" / "2026-01-01-abcdef0"
    aside.mkdir(parents=True)
    row = {"planner": "dream-mpc-paper", "kernels": "auto", "batch": 1, "model_evaluations": 75, "ms": 9.0}
    now = {"device": "CPU", "cuda": None, "date": "2026-02-03", "commit": "1234567890", "rows": [row]}
    then = now | {"date": "2026-01-01", "commit": "abcdef0123"}
    then["rows"] = [row | {"planner": "dream-mpc", "ms": 30.0}]
    (folder / "plan.json").write_text(json.dumps(now))
    (aside / "plan.json").write_text(json.dumps(then))
    everything.main(["--table", "--out", str(tmp_path)])
    today, earlier = (folder / "table.md").read_text().split("## Earlier figures")
    line = "paper: Dream-MPC plan, the paper's settings, batch 1"
    assert f"| {line} | 9 ms | <= 20 ms |  | yes |  | 2026-02-03, 1234567 |" in today
    assert f"| {line} | 30 ms |  | 2026-01-01, abcdef0 |" in earlier and "30 ms" not in today


def test_the_tables_in_the_repository_are_those_of_its_files(tmp_path):
    source = ROOT / "results" / "benchmarks"
    for folder in (path for path in source.iterdir() if path.is_dir()):
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        tables.write(copy)
        assert (copy / "table.md").read_text() == (folder / "table.md").read_text(), "python -m benchmarks --table"


def test_cards():
    names = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100-80gb-hbm3", "CPU, 2 threads": "cpu"}
    assert {name: tables.card(name) for name in names} == names


def test_frames_of_qualities_are_a_table():
    rows = [{"quality": "full", "num_envs": n, "frames_per_s": 100.0 * n} for n in (1, 16)]
    rows += [{"quality": "warp", "num_envs": 1, "frames_per_s": 2.0, "drawing_alone": 3.0}]
    rows += [{"quality": "warp", "num_envs": 16, "frames_per_s": None, "text": "skipped: not there"}]
    assert tables.frames({"rows": rows}) == [
        {"render quality": "full", "1 environments": "100", "16 environments": "1,600"},
        {"render quality": "warp", "1 environments": "2 (drawing alone 3)", "16 environments": "skipped: not there"},
    ]


def test_gpus_to_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert everything.visible_gpus(None, True, "auto") == ["0", "1", "2"]
    assert everything.visible_gpus(["3"], True, "cuda") == ["3"]
    assert everything.visible_gpus(None, True, "cuda:1") == everything.visible_gpus(None, False, "auto") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert everything.visible_gpus(None, True, "auto") == ["5", "7"]


def test_parts_that_need_what_is_not_given_are_not_run():
    def names(*words, cuda=True):
        return [part.name for part in chosen(everything.make_parser().parse_args(words), cuda)]

    default = ["ceilings", "update", "update_v3", "plan", "plan_v3", "rendering", "phases", "phases_v3"]
    assert names() == default and names(cuda=False) == default[:-2], "of a run on a CPU, whose updates take seconds"
    assert set(names("--peer", "a", "--r2dreamer", "b")) - set(default) == {"peers", "r2dreamer", "r2dreamer_compiled"}
    assert "r2dreamer_compiled" not in names("--r2dreamer", "b", cuda=False)
    assert names("--r2dreamer", "b", "--only", "r2dreamer_compiled", cuda=False) == ["r2dreamer_compiled"]
    assert names("--env-steps", "1000")[-1] == "end_to_end" and "collect" not in names("--env-steps", "1000")
    assert names("--only", "collect", "plan", "--skip", "plan") == ["collect"]
    with pytest.raises(SystemExit, match="error: --only end_to_end needs --env-steps"):
        names("--only", "end_to_end")


def test_words_of_a_command_line_are_replaced():
    words = ["--a", "1", "2", "--eval.every=3", "--flag", "--b", "4"]
    assert common.overlay(words, eval__every="5", a=None, flag=()) == ["--b", "4", "--eval.every", "5", "--flag"]


class Lanes:
    """`lanes.run_all` with parts that take the given seconds, and what it did."""

    def __init__(self, monkeypatch, tmp_path, seconds):
        self.seconds, self.ran, self.folder, self.alone = seconds, [], tmp_path, None
        monkeypatch.setattr(lanes, "run_part", self.run_part)

    def run_part(self, part, words, out, limit, gpu, label):
        self.ran.append((part.name, gpu))
        time.sleep(min(self.seconds.get(part.name, 0), limit))
        if part.name == "r2dreamer_compiled" and words:
            while not (there := words[0].exists()):
                time.sleep(0.01)
            self.alone = there and ("phases_v3", gpu) in self.ran
        return {"rows": []}

    def __call__(self, gpus, minutes=1.0):
        words = lambda part, left, quiet: [quiet] if quiet else []  # noqa: E731
        parts = [part for part in PARTS if not part.asked]
        return lanes.run_all(parts, gpus, words, self.folder, minutes, 600.0)


def test_two_gpus_run_at_once_and_the_compiled_peer_is_timed_alone(monkeypatch, tmp_path):
    run = Lanes(monkeypatch, tmp_path, {"phases": 0.2})
    results, seconds = run(["3", "5"], minutes=2.0)
    assert results.keys() == seconds.keys() == {name for name, _ in run.ran} and run.alone
    second = {"rendering", "phases", "phases_v3", "r2dreamer_compiled"}
    assert {name for name, gpu in run.ran if gpu == "5"} == second
    assert {gpu for name, gpu in run.ran if name not in second} == {"3"}


def test_one_gpu_runs_all_in_turn_until_the_time_is_over(monkeypatch, tmp_path):
    run = Lanes(monkeypatch, tmp_path, {"plan": 0.7})
    results, _ = run(["0"], minutes=61 / 60)
    assert [name for name, _ in run.ran][:3] == ["ceilings", "peers", "update"] and {g for _, g in run.ran} == {"0"}
    results, _ = run(["0"], minutes=60.5 / 60)
    assert results["phases_v3"] == {"error": "not run: of 1.00833 minutes, 60 s were left"}
    assert results["r2dreamer_compiled"] == {"rows": []}, "what needs less time still has it"
    assert lanes.lanes_of([]) == [None] and lanes.lanes_of("01") == ["0", "1", "1"]
    assert lanes.lanes_of("0123") == ["0", "1", "2"]


def test_what_a_part_started_in_sessions_of_its_own_ends_with_it():
    code = "import subprocess as s; p = s.Popen(['sleep', '60'], start_new_session=True); print(p.pid, flush=True)"
    code += "; p.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    started = psutil.Process(int(process.stdout.readline()))
    together.end(process)
    assert process.wait(10) == -9
    psutil.wait_procs([started], 10)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def record_of_phases():
    """Rounds of 1000 env steps, and evaluations of 20, 21 and 4 s; training waits for the last one."""
    rounds = [(1000, 10), (2000, 20), (3000, 30), (4000, 40), (5000, 60), (6000, 70)]
    records = [{"env_steps": n, "time_s": t, "train/env_steps_per_s": 1000 / 10 if n != 5000 else 50.0,
                "train/updates_per_s": 10.0} for n, t in rounds]  # fmt: skip
    for record, fast in zip(records[2:5], (40.0, 45.0, 50.0), strict=True):
        record["train/env_steps_per_s"] = fast
    evaluations = [
        {"env_steps": n, "time_s": t, "eval/return_mean": 1.0} for n, t in ((2000, 40), (4000, 61), (6000, 74))
    ]
    seeds = {"env_steps": 500, "time_s": 2.0, "train/return": 1.0}
    return [seeds, *sorted([*records, *evaluations], key=lambda record: record["time_s"])]


def test_phases_of_a_run_and_the_whole_run_by_hand():
    printed = {"set_up_s": 30.0, "seed_episodes_s": 2.0, "saving_s": 3.0, "checkpoints": 3.0}
    row = phases.phases(record_of_phases(), printed) | {"end_s": 8.0}
    assert row["beside_env_steps_per_s"] == 45, "rounds within 20 to 40 s and 40 to 61 s"
    assert row["env_steps_per_s"] == 100 and row["seed_env_steps"] == 500
    assert row["evaluation_s"] == 21 and row["last_evaluation_s"] == 4 and row["checkpoint_s"] == 1
    whole = phases.whole_run(row, True, 100_500, 3)
    seconds = 30 + 2 + 8 + 4 + 2 * 21 + (100_000 - 2 * 21 * 45) / 100
    assert whole["whole_run_min"] == pytest.approx(seconds / 60)
    assert whole["idle"] == pytest.approx((30 + 2 + 8 + 4 + 3 * 1) / seconds)
    waiting = phases.whole_run(row | {"evaluation_s": 6.0}, False, 100_500, 3)
    seconds = 30 + 2 + 8 + 3 * 6 + 100_000 / 100
    assert waiting == {"whole_run_min": pytest.approx(seconds / 60), "idle": pytest.approx(58 / seconds)}
    assert phases.whole_run(row | {"env_steps_per_s": None}, False) == {"whole_run_min": None, "idle": None}


def test_phases(tmp_path):
    out = tmp_path / "phases.json"
    record = phases.main([*TINY, "--num-envs", "2", "--every", "24", "--beside", "off", "--out", str(out)])
    check_about(record, out)
    (row,) = record["rows"]
    assert row["env_steps"] == 48 and row["set_up_s"] > 0 and row["end_s"] > 0 and row["evaluation_s"] > 0
    assert row["whole_run_min"] > phases.WHOLE_RUN / row["env_steps_per_s"] / 60 * 0.99 and 0 < row["idle"] < 1


def test_rendering_names_a_quality_that_cannot_be_drawn(tmp_path, monkeypatch):
    def missing():
        raise EnvError("render_quality warp needs mujoco-warp")

    monkeypatch.setattr("dreamer_mpc.envs.scene.check_installed", missing)
    out = tmp_path / "rendering.json"
    words = ["--env", "tests.example_env:make", "--num-envs", "1", "--quality", "full", "warp", "--device", "cpu"]
    rows = rendering.main([*words, "--seconds", "0.1", "--out", str(out)])
    check_about(common.read(out), out)
    assert rows[0]["frames_per_s"] > 0
    assert rows[1]["frames_per_s"] is None and rows[1]["text"] == "skipped: render_quality warp needs mujoco-warp"


TOY = ["batch_size=2", "batch_length=3", "model.deter=64", "model.hidden=16", "model.units=16", "model.discrete=4",
       "model.depth=4", "model.imag_horizon=2"]  # fmt: skip


@pytest.mark.skipif(not Path(R2DREAMER, "rssm.py").exists(), reason="no checkout: DREAMER_MPC_R2DREAMER=path")
def test_r2dreamer(tmp_path):
    """Its own update and acting step; a compilation that is too long is a row in words."""
    out = tmp_path / "r2dreamer.json"
    record = r2dreamer.main([R2DREAMER, "--device", "cpu", "--repeats", "2", "--limit", "1", "--set", *TOY, "--out",
                             str(out)])  # fmt: skip
    check_about(record, out)
    plain, one, many, compiled = record["rows"]
    assert plain["ms"] > 0 and plain["first_calls_s"] > 0 and one["ms"] > 0 and many["name"] == "acting step, batch 16"
    assert compiled == {"name": "update", "ms": None, "text": "not compiled after 1 s"}


@pytest.mark.skipif(not Path(R2DREAMER, "rssm.py").exists(), reason="no checkout: DREAMER_MPC_R2DREAMER=path")
def test_r2dreamer_learns_in_our_environments(tmp_path):
    """A round of updates at once and its share for each step after that, as in a run."""
    out, sizes = tmp_path / "learning.json", ["--replay.batch-size", "2", "--replay.sequence-length", "8"]
    words = ["--config", "quick,v3-small", "--env", "tests.example_env:make", "--action-repeat", "1", "--device", "cpu"]
    words += [*sizes, "--num-envs", "2", "--env-steps", "600", "--train.updates", "10"]
    record = peer_learning.main([R2DREAMER, *words, "--out", str(out), "--set", *TOY])
    check_about(record, out)
    assert [row["env_steps"] for row in record["rows"]] == [400, 600]
    assert [row["updates"] for row in record["rows"]] == [12, 14]
    assert all(0 < row["return"] < 100 for row in record["rows"])


class StandInPeer(r2dreamer.R2Dreamer):
    """What `PeerAgent` asks of r2dreamer: rows first, two variables of three classes, four numbers of deter."""

    device, columns = torch.device("cpu"), r2dreamer.Columns

    def __init__(self):
        self.agent = types.SimpleNamespace(rssm=self, act=self.act, update=self.update_agent)

    def initial(self, rows):
        return torch.zeros(rows, 2, 3), torch.zeros(rows, 4)

    def act(self, seen, before):
        self.before = before
        assert seen["is_first"].shape == (len(seen["image"]), 1)
        return torch.full((len(seen["image"]), 2), 3.0), {"stoch": before["stoch"] + 1, "deter": before["deter"] + 2}

    def update_agent(self, replay):
        self.data, index, self.start = replay.sample()
        rows, length = self.data.batch_size
        self.deter = torch.rand(rows, length, 4)
        replay.update(index, torch.zeros(rows, length, 2, 3), self.deter)


def test_a_peer_s_batches_and_states_are_ours_with_rows_first():
    peer = StandInPeer()
    agent = peer_learning.PeerAgent(peer, action_dim=2)
    batch = common.random_batch(load_presets("v3-small"), peer.device)
    is_first = torch.zeros_like(batch.is_first)
    is_first[3, 1] = True
    state = torch.rand(is_first.shape[1], agent.state_dim)
    states = agent.update(batch._replace(is_first=is_first, state=state)).states
    torch.testing.assert_close(peer.data["action"], batch.action.transpose(0, 1))
    torch.testing.assert_close(peer.data["reward"][..., 0], batch.reward.t())
    assert peer.data["is_last"].nonzero().tolist() == [[1, 2, 0]], "the frame before another episode's first"
    torch.testing.assert_close(torch.cat([peer.start[1], peer.start[0].flatten(1)], 1), state)
    assert states.shape == (*is_first.shape, agent.state_dim)
    torch.testing.assert_close(states[..., :4], peer.deter.transpose(0, 1))


def test_a_peer_acts_from_the_state_that_it_had():
    peer = StandInPeer()
    agent = peer_learning.PeerAgent(peer, action_dim=2)
    image, is_first = torch.zeros(3, 64, 64, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.bool)
    first = agent.act(Policy(), agent.initial(3), image, is_first)
    second = agent.act(Policy(), first.carry, image, is_first)
    assert (first.action == 1).all(), "clipped, as it is executed"
    assert (peer.before["prev_action"] == 1).all() and (peer.before["stoch"] == 1).all()
    assert second.carry.state.tolist() == [[4.0] * 4 + [2.0] * 6] * 3


def test_r2dreamer_has_stand_ins_for_what_cannot_be_imported(monkeypatch):
    for name in ("tensordict", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    found = r2dreamer.stand_ins()
    assert found.keys() == {"tensordict", "torch.utils.tensorboard"}
    batch = found["tensordict"].TensorDict({"reward": torch.zeros(2, 3, 1)}, (2, 3))
    assert batch.shape == batch.batch_size == torch.Size((2, 3)) and batch["reward"].shape == (2, 3, 1)
    monkeypatch.setitem(sys.modules, "tensordict", types.ModuleType("tensordict"))
    assert r2dreamer.stand_ins().keys() == {"torch.utils.tensorboard"}


def test_r2dreamer_refuses_a_folder_without_it(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout of r2dreamer: it lacks dreamer.py"):
        r2dreamer.main([str(tmp_path), "--device", "cpu"])


def small() -> Config:
    """A configuration of a few thousand weights."""
    return common.parse_settings(TINY)


def test_sweep():
    record = sweep.main(["--runs", "8"])
    assert record["runs"] == 8 and record["megabytes"] > 0


def test_saving(tmp_path):
    out = tmp_path / "saving.json"
    record = saving.main([*TINY, "--frames", "16", "--folder", str(tmp_path), "--out", str(out)])
    check_about(record, out)
    assert {row["name"] for row in record["rows"]} == {"checkpoint", "frames", "load"}
    assert all(row["seconds"] > 0 and row["mb"] > 0 for row in record["rows"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saving.json"]


def test_pixels_says_what_the_render_qualities_change():
    rows = pixels.main(["--envs", "cheetah-run", "walker-run", "--frames", "20"])
    for full, small, fast in (rows[:3], rows[3:]):
        assert (full["changed"], full["difference"]) == (0, 0), "the same actions and pixels each time"
        assert 0 < small["changed"] < 0.002 < fast["changed"]
    assert 0.05 < rows[2]["difference"] < 3


class Sees:
    """An agent with given values of its heads, in the order of the steps."""

    device = torch.device("cpu")

    def __init__(self, heads):
        self.heads, self.noises = heads, []  # [K, T]
        self.model = self

    def initial(self, batch):
        return Carry(torch.zeros(batch, 1), torch.zeros(batch, 2), None)

    def act(self, planner, carry, image, is_first, noise):
        self.noises.append(noise)
        self.time = len(self.noises) - 1
        return Act(torch.zeros(len(image), 2), carry, 0, torch.zeros(len(image)))

    def value(self, state):
        return self.heads[:, self.time, None].expand(-1, len(state))


@pytest.mark.filterwarnings("ignore")  # ranks of equal spreads, a tenth of two states
def test_heads_compares_values_with_the_rewards_that_follow(monkeypatch):
    for name, value in {"AHEAD": 3, "EVERY": 2, "PERTURBED_STEPS": 2}.items():
        monkeypatch.setattr(heads, name, value)
    seen = torch.stack([torch.arange(10.0), torch.arange(10.0) + 2])  # mean t + 1, spread 1
    envs = make_vector_env("tests.support.counting_env:make", 2, workers=False, action_repeat=1)
    agent = Sees(seen)
    row = heads.measure(agent, envs, 2, discount=0.5, perturb=False)
    # At t the reward t was paid on arriving, then t + 1 and t + 2 (0 at a first image); the value after them is t + 4.
    errors = [abs(t + 1 - (t + 0.5 * (t + 1) + 0.25 * (t + 2) + 0.125 * (t + 4))) for t in (0, 2, 4, 6)]
    assert row["states"] == 8 and row["spread"] == 1 and row["value"] == 4
    assert row["error"] == pytest.approx(np.mean(errors), rel=1e-6)
    assert row["heads_correlation"] == pytest.approx(1)
    assert set(agent.noises) == {0.0}
    agent = Sees(seen)
    row = heads.measure(agent, envs, 2, discount=0.5, perturb=True)
    assert row["states"] == 2 and agent.noises == [1, 1, 0, 0, 0, 1, 1, 0, 0, 0], "two steps in five are perturbed"


def test_ascent_tells_luck_from_a_better_plan():
    torch.manual_seed(0)
    agent = Dreamer(2, WorldModelConfig(deter=8, stoch=4, hidden=8), device="cpu")
    planner, states = DreamMPC(**PAPER | {"horizon": 3}), torch.randn(2, 12)
    found = ascent.choice(agent, planner, states, draws=40)
    assert found.seen.shape == found.expected.shape == (2, 5) and found.heads.shape == (5, 10)
    torch.manual_seed(0)
    assert torch.equal(found.seen, planner.plan(agent.model, states).candidate_values), "what the planner chooses by"
    same = found._replace(seen=found.expected)
    assert "correlation of the two 1.00" in ascent.describe(same, planner.uncertainty)[1]
    assert "0.00 less in expectation" in ascent.describe(same, planner.uncertainty)[2]
