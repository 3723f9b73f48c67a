"""The benchmarks at toy size on the CPU: their command lines run, and their counts equal hand-computed ones."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    peers,
    pixels,
    plan,
    roofline,
    saving,
    sweep,
    targets,
    update,
)
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.protocol import Act, Carry
from dreamer_mpc.config import Config, load_presets
from dreamer_mpc.envs import make_vector_env
from dreamer_mpc.planners import CEM, DreamMPC, GradMPC, Policy
from dreamer_mpc.world_model import WorldModelConfig
from tests.support import agents
from tests.support.planning import PAPER

ROOT = Path(__file__).resolve().parent.parent
PEER = os.environ.get("DREAMER_MPC_PEER", "/tmp/peer")
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
    words = [*TINY, "--skip", "update", "plan", "collect", "--ceilings-extra", "--no-such-option"]
    words += ["--end-to-end-steps", "16"]
    everything.main(["--out", str(tmp_path), *words])
    run = common.read(tmp_path / "end_to_end.json")
    (row,) = run["rows"]
    assert row["env_steps"] == 16 and row["updates"] == 1 and row["evaluations"] == 1
    assert row["wall_s"] > row["set_up_s"] > 0 and row["first_update_s"] >= row["set_up_s"]
    assert run["command"].startswith("python -m benchmarks.end_to_end") and len(run["metrics"]) >= 2
    table = (tmp_path / "table.md").read_text()
    assert "one update" in table and "not run" in table and "ceilings failed: error: " in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end_to_end.json", "table.md"]


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
    results = {
        "update": {
            "rows": [{"name": "default", "ms": 6.0, "set_up_s": 30.0}, {"name": "peer, update", "ms": 130.0}],
            "several": {"ratio": 1.2},
        },
        "plan": {"error": "failed: out of memory"},
        "end_to_end": {"rows": [{"env_steps": 1_000_000, "wall_min": 25.0, "set_up_s": 70.0}]},
    }
    rows = {row["what"]: row for row in targets.table(results, targets.GPU)}
    met = [row["met"] for row in rows.values()]
    assert met == ["aim", "-", "-", "-", "-", "yes", "no", "no"]
    first, second, *_ = rows.values()
    assert first["peer"] == "130 ms" and first["measured"] == "6 ms" and second["measured"] == "failed: out of memory"
    results["end_to_end"]["rows"][0]["env_steps"] = 1000  # not a whole run
    assert targets.table(results, targets.GPU)[5]["met"] == "-"
    update_row, *_ = targets.table(results, targets.CPU)
    assert update_row["measured"] == "21.7 x" and update_row["met"] == "yes"


def test_the_table_can_be_made_from_files(tmp_path):
    record = {"device": "CPU", "cuda": None}
    record["rows"] = [{"planner": "dream-mpc-paper", "kernels": "auto", "batch": 1, "ms": 9.0}]
    (tmp_path / "plan.json").write_text(json.dumps(record))
    everything.main(["--table", "--out", str(tmp_path), "--device", "cpu"])
    assert "| 9 ms | yes |" in (tmp_path / "table.md").read_text()


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
