"""The commands as a user runs them: their output files, and one clear line for wrong input."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import run
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.config import (
    Config,
    EvaluationConfig,
    config_from_dict,
    differences,
    load_presets,
    parse,
    resolve,
    to_dict,
    to_yaml,
)
from dreamer_mpc.config.make import load_agent
from dreamer_mpc.planners import PLANNERS
from dreamer_mpc.runs.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from dreamer_mpc.runs.folder import default_run_dir
from dreamer_mpc.runs.payload import FORMAT_VERSION, read_payload
from dreamer_mpc.util.errors import UserError
from scripts import export_weights
from tests.support.agents import CHEAP, FAMILIES, SIZES, TINY
from tests.support.checkpoints import family_checkpoint, rewrite_as_version_2
from tests.support.commands import ROOT, command, quietly, records, train
from tests.support.counting_env import CountingEnv

# Episodes of 50 agent steps, two updates per round, networks of a few thousand weights: the whole loop in seconds.
SHORT = [
    "--config", "quick", "--max-env-steps", "100", "--train.every", "100", "--train.updates", "2",
    "--eval.every", "150", "--eval.episodes", "2", "--eval.num-envs", "1", "--eval.video-steps", "20",
    "--render-quality", "fast", *SIZES,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 400 env steps, by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    done = command(*SHORT, "--env-steps", 400, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_train_writes_a_run_folder(trained):
    folder, output = trained
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "versions.json",
        "checkpoints/checkpoint-00000300.safetensors", "checkpoints/checkpoint-00000400.safetensors",
        "videos/00000400.mp4", "videos/00000400-decision.png",
    }  # fmt: skip
    assert "200 agent steps (action repeat 2)" in output
    assert "dream-mpc" in output and "policy" in output and "245" in output
    rows = records(folder)
    assert all({"env_steps", "agent_steps", "updates", "episodes"} <= row.keys() for row in rows)
    last = rows[-1]
    # Two seed episodes of 100 env steps, then rounds of two updates and 100 env steps.
    assert (last["env_steps"], last["agent_steps"], last["updates"], last["episodes"]) == (400, 200, 4, 4)
    assert [row["env_steps"] for row in rows if "eval/return_mean" in row] == [300, 400]


def test_eval_prints_a_table_and_writes_it(trained, tmp_path):
    done = quietly(
        "eval", "--checkpoint", trained[0], "--planner", "dream-mpc,policy", "--episodes", 2, "--num-envs", 1,
        "--video", "--out", tmp_path, "--dream-mpc.horizon", 4,
    )  # fmt: skip
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "eval.json").read_text())
    assert [row["planner"] for row in record["results"]] == ["dream-mpc", "policy"]
    assert [row["model_evaluations"] for row in record["results"]] == [8 * 4 * (1 + 2) + 4, 0]
    assert all(len(row["returns"]) == 2 for row in record["results"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "eval.json", "dream-mpc.mp4", "dream-mpc-decision.png", "policy.mp4",
    }  # fmt: skip
    assert "95 %" in done.out and "dream-mpc" in done.out


def test_a_resumed_run_takes_the_command_line_s_rates(trained):
    checkpoint = load_checkpoint(trained[0])
    rates = OptimizerConfig(actor_lr=0.5, eps=0.25)
    config = replace(config_from_dict(checkpoint.config, "checkpoint"), optimizer=rates)
    agent = load_agent(checkpoint, config, checkpoint.action_dim, torch.device("cpu"))
    group = agent.optimizers["actor"].param_groups[0]
    assert (group["lr"], group["eps"]) == (0.5, 0.25)
    assert agent.optimizers["actor"].state_dict()["state"][0]["step"].item() == 4


def test_a_replay_smaller_than_an_episode_trains(tmp_path):
    args = [*TINY, "--max-env-steps", "30", "--env-steps", "60", "--replay.capacity", "16"]
    assert run.main([*args, "--planner", "policy", "--run-dir", str(tmp_path / "run")]) == 0


def test_exported_weights_are_evaluated_and_not_resumed(trained, tmp_path, capsys):
    path = export_weights.main([str(trained[0]), str(tmp_path / "small")])
    full, small = load_checkpoint(trained[0]), load_checkpoint(tmp_path / "small")
    assert small.agent.keys() == {"model"} and path.stat().st_size < 0.6 * find_checkpoint(trained[0]).stat().st_size
    assert {value.dtype for value in small.agent["model"].values()} == {torch.bfloat16, torch.bool}
    assert small.counters == full.counters and small.config["logger"] == "none"
    config = config_from_dict(small.config, "checkpoint")
    agents = [load_agent(each, config, each.action_dim, torch.device("cpu")) for each in (full, small)]
    state = torch.randn(50, agents[0].model.world_model.rssm.state_dim)
    means = [agent.model.policy(state).mean for agent in agents]
    assert means[1].dtype == torch.float32
    torch.testing.assert_close(*means, rtol=0.0, atol=0.02 * means[0].abs().max().item())
    args = ["--planner", "policy", "--episodes", "1", "--num-envs", "1", "--out", str(tmp_path / "out")]
    assert run.main(["eval", "--checkpoint", str(tmp_path / "small"), *args]) == 0
    assert run.main(["--resume", str(tmp_path / "small")]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_exported_weights_of_the_second_family_are_its_networks_in_bf16(tmp_path):
    """Without the slow copy of the value heads, which then begins as a copy of them."""
    whole = family_checkpoint("v3")
    save_checkpoint(tmp_path / "checkpoint-00000016.safetensors", whole)
    export_weights.main([str(tmp_path), str(tmp_path / "small")])
    small = load_checkpoint(tmp_path / "small")
    assert (small.agent_kind, small.world_model_kind, small.agent.keys()) == ("dreamer", "categorical", {"model"})
    agent = load_agent(small, config_from_dict(small.config, "checkpoint"), small.action_dim, torch.device("cpu"))
    assert {weight.dtype for weight in agent.model.state_dict().values()} == {torch.float32, torch.bool}
    for name, weight in agent.model.state_dict().items():
        assert torch.equal(weight, whole.agent["model"][name].to(small.agent["model"][name].dtype).to(weight.dtype))
    slow, heads = agent.learner.slow.state_dict(), agent.model.critic.state_dict()
    assert all(torch.equal(slow[name], heads[name]) for name in heads)
    args = ["--checkpoint", tmp_path / "small", "--planner", "policy,dream-mpc", "--episodes", 1, "--num-envs", 1]
    done = quietly("eval", *args, "--video", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "dream-mpc-decision.png").exists()


def test_both_families_are_compared_and_plotted(tmp_path):
    """They have other networks and the same task."""
    for family in FAMILIES:
        checkpoint = family_checkpoint(family)
        config = checkpoint.config | {"run_dir": str(tmp_path / family)}
        save_checkpoint(tmp_path / family / "checkpoint-00000016.safetensors", replace(checkpoint, config=config))
    few = ["--episodes", 1, "--num-envs", 1, "--cem.candidates", 8, "--cem.elites", 2, "--cem.horizon", 2]
    folders = [tmp_path / family for family in FAMILIES]
    done = quietly("compare", "--checkpoint", *folders, "--planners", "policy,cem", *few, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "1 episode on 2 checkpoints" in done.out
    assert quietly("plot", tmp_path / "out").code == 0


PRETRAINED = {
    "acrobot-swingup": ("acrobot-swingup", "dream-mpc", 456_368),
    "cheetah-run": ("cheetah-run", "dream-mpc", 1_000_000),
    "cheetah-run-dreamer": ("cheetah-run", "policy", 814_064),
    "cheetah-run-v3": ("cheetah-run", "dream-mpc", 250_024),
    "hopper-hop": ("hopper-hop", "dream-mpc", 500_000),
    "walker-run": ("walker-run", "dream-mpc", 1_000_000),
    "walker-run-dreamer": ("walker-run", "policy", 809_792),
    "walker-run-v3": ("walker-run", "dream-mpc", 250_024),
}


@pytest.mark.parametrize("folder", sorted((ROOT / "pretrained").iterdir()), ids=lambda folder: folder.name)
def test_pretrained_weights_are_whole_and_fit(folder):
    checkpoint = load_checkpoint(folder)
    config = config_from_dict(checkpoint.config, "checkpoint")
    agent = load_agent(checkpoint, config, checkpoint.action_dim, torch.device("cpu"))
    assert all(value.isfinite().all() for value in agent.model.state_dict().values())
    assert (config.env, config.trained_by, checkpoint.counters.env_steps) == PRETRAINED[folder.name]
    assert (checkpoint.agent_kind, checkpoint.resumable) == ("dreamer", False)
    assert read_payload(find_checkpoint(folder))[0] == FORMAT_VERSION


def test_a_configuration_survives_yaml_and_checkpoints(tmp_path):
    config = load_presets("quick")
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_presets(str(tmp_path / "c.yaml")) == config
    assert config_from_dict(to_dict(config), "here") == config


def test_presets_add_up_in_order():
    config = load_presets("quick,planner/dream-mpc-released")
    assert config.dream_mpc.scale_penalty and not config.dream_mpc.penalty_gradient and config.dream_mpc.draws == 1
    assert config.world_model == load_presets("quick").world_model
    drawn = replace(Config(), render_quality="small-shadows", eval=EvaluationConfig(render_quality="full"))
    assert load_presets("default") == drawn, "the schema's defaults, with training in cheaper frames"
    assert (load_presets("v3").render_quality, load_presets("v3").evaluated_in) == ("small-shadows", "full")
    world = parse(Config, ["--world-model.deter", "77"], config).world_model
    assert world == replace(config.world_model, deter=77), "the command line wins"


def test_help_names_groups_defaults_and_units():
    done = command("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for words in ("run.py eval --checkpoint", "run.py compare --checkpoint", "run.py doctor"):
        assert words in text
    for words in ("--dream-mpc.horizon", "--world-model.deter", "env steps", "(paper: 15)", "default: 1000000"):
        assert words in text
    for words in ("--eval.render-quality {full,small-shadows,fast,warp,None}", "--camera INT|STR|None"):
        assert words in text


TRAIN_ERRORS = {
    "unknown env": (["--env", "cheeta-run"], "unknown env 'cheeta-run': did you mean cheetah-run?"),
    "unknown planner": (["--planner", "dreem-mpc"], "invalid choice 'dreem-mpc' for argument '--planner'"),
    "unknown key": (["--dream-mpc.horizn", "3"], "unknown option --dream-mpc.horizn; perhaps --dream-mpc.horizon"),
    "key of another command": (["--episodes", "3"], "error: unknown option --episodes; perhaps --eval.episodes\n"),
    "word without an option": (["--overwrite", "yes"], "yes belongs to no option"),
    "value out of range": (["--dream-mpc.candidates", "0"], "--dream-mpc.candidates must be at least 1, got 0"),
    "value of another type": (["--env-steps", "many"], "--env-steps"),
    "neither number nor None": (["--max-env-steps", "many"], "error: Error parsing --max-env-steps: invalid literal"),
    "neither planner nor None": (
        ["--train-planner", "dreem-mpc"],
        "Expected one of ('policy', 'dream-mpc', 'policy-grad-mpc', 'grad-mpc', 'cem', 'mppi', 'None')",
    ),
    "rate out of range": (["--optimizer.actor-lr", "-1"], "--optimizer.actor-lr must be at least 0, got -1"),
    "size out of range": (["--world-model.deter", "0"], "--world-model.deter must be at least 1, got 0"),
    "discount out of range": (["--behavior.discount", "3"], "--behavior.discount must be between 0 and 1, got 3"),
    "negative length": (["--env-steps", "-5"], "--env-steps must be at least 1, got -5"),
    "unknown preset": (["--config", "quik"], "no preset 'quik': known are default, paper-base-loss, planet,"),
    "unknown device": (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    "missing run": (["--resume", "/nowhere"], "no run folder /nowhere"),
    "GPU replay on a CPU": (["--device", "cpu", "--replay.storage", "gpu"], "--replay.storage gpu needs a CUDA device"),
    "replay too large": (
        ["--env-steps", "2000000000", "--replay.capacity", "2000000000", "--replay.storage", "ram"],
        "does not fit RAM",
    ),
    "two presets": (["--config", "quick", "--config=v3-small"], "--config is given twice: give it once, with presets"),
    "kind that is not there": (["--behavior.kind", "v4"], "invalid choice 'v4' for argument '--behavior.kind'"),
    "blocks that do not divide": (
        ["--config", "quick,v3-small", "--world-model.blocks", "3"],
        "--world-model.deter must be divisible by blocks, got deter 256 and blocks 3",
    ),
    "no classes": (["--world-model.classes", "0"], "--world-model.classes must be at least 1, got 0"),
    "negative weight": (["--world-model.dyn-scale", "-1"], "--world-model.dyn-scale must be at least 0, got -1"),
    "negative warm-up": (["--optimizer.warmup", "-1"], "--optimizer.warmup must be at least 0, got -1"),
    "clipped to nothing": (["--optimizer.relative-clip", "0"], "--optimizer.relative-clip must be at least 1e-06, got"),
    "sequences without a next frame": (
        ["--config", "quick,v3-small", "--replay.sequence-length", "1"],
        "--replay.sequence-length must be at least 2 with --behavior.kind v3, got 1",
    ),
    "share out of range": (["--behavior.slow-rate", "2"], "--behavior.slow-rate must be between 0 and 1, got 2"),
    "camera of a factory": ([*TINY, "--camera", "back"], "--camera back does not go with tests.example_env:make"),
    "custom env that is not there": (["--env", "nowhere:make"], "cannot import nowhere"),
    "unknown command": (
        ["trian"],
        "unknown command 'trian': known are train, eval, compare, analyze, sweep, plot, report, export, envs, doctor",
    ),
}


@pytest.mark.parametrize("name", TRAIN_ERRORS)
def test_train_says_what_is_wrong_in_one_line(name, tmp_path, capsys):
    args, message = TRAIN_ERRORS[name]
    options = [] if name in ("unknown command", "missing run") else ["--run-dir", str(tmp_path / "run")]
    few = [] if name == "unknown command" else ["--num-envs", "1", "--eval.num-envs", "1"]
    assert run.main([*args, *options, *few]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


REFUSED = [  # options for resuming a finished run, with {} in place of its folder
    ("--resume {} --config quick", ["--config does not go with --resume"]),
    ("--resume {} --run-dir elsewhere", ["--run-dir does not go with --resume"]),
    ("--resume {} --env-steps 100", ["has reached 400 env steps", "--env-steps"]),
    ("--resume {} --eval.render-quality warp", ["give both warp, or neither"]),
    ("--resume {} --device tpu", ["--device must be auto, cpu, cuda or cuda:N, got 'tpu'"]),
    ("--resume {} --replay.capacity 10", ["--replay.capacity 10 has less than"]),
    ("--resume {} --max-env-steps 6", ["is longer than an episode of --max-env-steps 6"]),
    ("--resume {} --world-model.deter 20", ["--world-model.deter of", "is 16 and cannot become 20: leave it out"]),
    ("--config quick --run-dir {}", ["--resume", "--overwrite"]),
    ("--config quick --env cheetah-rnu --run-dir {} --overwrite", ["unknown env"]),
    ("eval --checkpoint {} --env cartpole-swingup --num-envs 1", ["6 action dimensions", "cartpole-swingup"]),
    ("eval --checkpoint {} --planner policy,dreem", [f"unknown planner 'dreem': known are {', '.join(PLANNERS)}"]),
    ("eval --checkpoint {} --planner ,", ["names no planner"]),
    ("eval --checkpoint {} --episodes 0", ["--episodes must be at least 1, got 0"]),
    ("eval --checkpoint {}/x", ["no checkpoint"]),
    ("eval", ["--checkpoint"]),
]


@pytest.mark.parametrize("args, said", REFUSED, ids=[args for args, _ in REFUSED])
def test_what_is_refused_in_one_line_leaves_a_run_as_it_was(args, said, trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}
    assert run.main(args.format(trained[0]).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(words in error for words in said), error
    assert {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")} == before


def test_no_opengl_is_one_line_with_the_packages(tmp_path):
    done = command("--run-dir", tmp_path / "run", MUJOCO_GL="nonsense", DREAMER_MPC_GL_PROBED="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "MUJOCO_GL" in done.stderr


def test_two_environments_a_memory_map_and_tensorboard(tmp_path):
    output = train(
        *TINY, *CHEAP, "--env-steps", 400, "--max-env-steps", 60, "--train.every", 100, "--run-dir", tmp_path / "run",
        "--num-envs", 2, "--replay.storage", "memmap", "--logger", "tensorboard",
    )  # fmt: skip
    assert f"memory-mapped at {tmp_path / 'run' / 'replay.bin'}" in output
    assert not (tmp_path / "run" / "replay.bin").exists(), "the run is over"
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    last = records(tmp_path / "run")[-1]
    assert (last["env_steps"], last["agent_steps"], last["episodes"]) == (400, 400, 5)
    assert last["updates"] == 1 + 3, "one for 100 env steps, and one before the first, after 60 of a seed episode"
    assert "2 environments" in output and "interleaved" in output


def test_readme_commands_and_ci_agree():
    readme = (ROOT / "README.md").read_text()
    quick = "python run.py --env cheetah-run --planner dream-mpc --config quick"
    for command_line in (quick, "python -m pytest"):
        assert f"\nbash scripts/setup.sh && .venv/bin/{command_line}\n" in readme


# planners and agents


@pytest.fixture(scope="module")
def planet(tmp_path_factory):
    """A run with CEM, and its output."""
    folder = tmp_path_factory.mktemp("runs") / "planet"
    return folder, train(*TINY, *CHEAP, "--planner", "cem", "--run-dir", folder)


def parts(folder):
    """The networks and optimizers in a checkpoint."""
    agent = load_checkpoint(folder).agent
    return {name.split(".")[0] for name in agent["model"]}, set(agent["optimizers"])


def table_rows(output):
    """The planners in the final table of a run."""
    after = output.split("───")[-1].splitlines()[1:]
    return [line.split()[0] for line in after if re.search(r" of \d+ *$", line)]


def test_cem_trains_planet(planet):
    folder, output = planet
    assert parts(folder) == ({"world_model"}, {"world_model"})
    saved = load_checkpoint(folder).config
    assert (saved["agent"], saved["planner"], saved["train_planner"]) == ("planet", "cem", None)
    assert load_presets(str(folder / "config.yaml")).agent == "planet"
    assert "PlaNet (world model alone), acted by cem" in output
    assert table_rows(output) == ["cem"], "there is no policy to evaluate"
    assert f"python run.py compare --checkpoint {folder}" in output
    [updated] = [row for row in records(folder) if "train/model_loss" in row]
    assert not any("actor" in name or "critic" in name for name in updated)


@pytest.mark.parametrize("preset", ["default", "quick"])
def test_the_planet_preset_is_the_planner_cem(preset):
    by_preset = resolve(load_presets(f"{preset},planet"))
    by_planner = resolve(parse(Config, ["--planner", "cem"], load_presets(preset)))
    assert differences(by_preset, by_planner) == []
    assert by_preset.agent == "planet"
    assert by_preset != resolve(load_presets(preset))


@pytest.mark.parametrize("planner", ["mppi", "grad-mpc", "policy-grad-mpc", "cem"])
def test_a_dreamer_trains_with_each_planner(planner, tmp_path, capsys):
    asked = ["--agent", "dreamer"] if planner == "cem" else []  # the default with CEM is PlaNet
    assert run.main([*TINY, *CHEAP, "--planner", planner, *asked, "--run-dir", str(tmp_path / "run")]) == 0
    assert parts(tmp_path / "run")[1] == {"world_model", "actor", "critic"}
    output = capsys.readouterr().out
    assert f"Dreamer, acted by {planner}" in output
    assert table_rows(output) == [planner, "policy"]
    assert records(tmp_path / "run")[-1]["eval/model_evaluations"] == {
        "mppi": 16 * 2 * 3 + 2 * 2, "grad-mpc": 4 * 2 * 3, "policy-grad-mpc": 5 * 3, "cem": 20 * 2 * 4,
    }[planner]  # fmt: skip


def test_a_run_folder_is_named_after_its_planners():
    def name(*args):
        return default_run_dir(parse(Config, ["--env", "walker-run", "--seed", "3", *args], Config()))

    assert name() == "runs/walker-run-dream-mpc-seed3"
    assert name("--planner", "mppi") == "runs/walker-run-mppi-seed3"
    assert name("--planner", "mppi", "--train-planner", "mppi") == "runs/walker-run-mppi-seed3"
    assert name("--planner", "mppi", "--train-planner", "policy") == "runs/walker-run-mppi-trained-by-policy-seed3"


@pytest.mark.parametrize(
    "args, agent",
    [
        ([], "dreamer"),
        (["--planner", "policy"], "dreamer"),
        (["--planner", "cem"], "planet"),
        (["--planner", "cem", "--train-planner", "policy"], "dreamer"),
        (["--planner", "cem", "--cem.objective", "return"], "dreamer"),
        (["--planner", "grad-mpc"], "dreamer"),
        (["--planner", "grad-mpc", "--grad-mpc.objective", "rewards"], "planet"),
        (["--planner", "grad-mpc", "--grad-mpc.objective", "rewards", "--grad-mpc.mode-candidate"], "dreamer"),
        (["--planner", "mppi", "--mppi.objective", "rewards"], "dreamer"),
        (["--planner", "mppi", "--mppi.objective", "rewards", "--mppi.policy-candidates", "0"], "planet"),
    ],
)
def test_the_agent_has_what_its_planners_need(args, agent):
    assert resolve(parse(Config, args, Config())).agent == agent


@pytest.mark.parametrize(
    "args, cause",
    [
        (["--planner", "dream-mpc"], "dream-mpc needs an actor and a critic"),
        (["--planner", "policy"], "policy needs an actor and a critic"),
        (["--planner", "grad-mpc"], "grad-mpc needs a critic"),
        (["--planner", "cem", "--train-planner", "policy"], "policy needs an actor and a critic"),
    ],
)
def test_planet_with_a_planner_that_needs_more_is_one_line(args, cause, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert run.main([*TINY, *args, "--agent", "planet", "--run-dir", folder]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert cause in error and "PlaNet" in error and "--agent dreamer" in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_planet_run_is_resumed(planet, tmp_path, capsys):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", planet[0], folder], check=True)
    assert run.main(["--resume", str(folder), "--env-steps", "32"]) == 0
    output = capsys.readouterr().out
    assert "changed from the saved run: env_steps: 16 -> 32" in output and output.count("changed") == 1
    assert "seed episodes" not in output
    assert "PlaNet (world model alone), acted by cem" in output
    after = load_checkpoint(folder)
    assert after.counters.env_steps == 32 and after.counters.updates > 1
    step = after.agent["optimizers"]["world_model"]["state"][0]["step"]
    assert step.item() == after.counters.updates


@pytest.mark.parametrize("args", [["--planner", "dream-mpc"], ["--train-planner", "policy"]])
def test_a_planet_run_is_not_resumed_with_a_planner_that_needs_an_actor(planet, args, capsys):
    before = find_checkpoint(planet[0]).read_bytes(), (planet[0] / "metrics.jsonl").read_bytes()
    assert run.main(["--resume", str(planet[0]), "--env-steps", "32", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "needs an actor" in error and "PlaNet" in error
    assert (find_checkpoint(planet[0]).read_bytes(), (planet[0] / "metrics.jsonl").read_bytes()) == before


def test_a_planet_run_does_not_become_a_dreamer(planet, capsys):
    args = ["--agent", "dreamer", "--planner", "dream-mpc"]
    assert run.main(["--resume", str(planet[0]), "--env-steps", "32", *args]) == 2
    error = capsys.readouterr().err
    assert "holds a planet agent: leave --agent out" in error and error.count("\n") == 1


def test_a_run_from_before_there_was_a_choice_of_agents_is_resumed_with_any_planner(tmp_path, capsys):
    """Neither the configuration nor the checkpoint, of format 2, names the agent; the weights show it."""
    folder = tmp_path / "run"
    assert run.main([*TINY, *CHEAP, "--run-dir", str(folder)]) == 0
    path = find_checkpoint(folder)
    checkpoint = load_checkpoint(path)
    for key in ("agent", "train_planner", "cem", "mppi", "grad_mpc", "policy_grad_mpc"):
        checkpoint.config.pop(key)
    save_checkpoint(path, checkpoint)
    rewrite_as_version_2(path)
    assert run.main(["--resume", str(folder), "--env-steps", "32", "--planner", "cem", *CHEAP]) == 0
    assert parts(folder)[1] == {"world_model", "actor", "critic"}
    assert "Dreamer, acted by cem on" in capsys.readouterr().out, "in training and in evaluation"


def test_eval_of_a_planet_run(planet, tmp_path, capsys):
    args = ["eval", "--checkpoint", str(planet[0]), "--episodes", "1", "--num-envs", "1", "--out", str(tmp_path)]
    assert run.main([*args, "--planner", "dream-mpc,policy"]) == 2
    error = capsys.readouterr().err
    assert "dream-mpc needs an actor and a critic" in error and "use cem" in error and error.count("\n") == 1
    assert run.main(args) == 0, "by itself it takes cem"
    [row] = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert row["model_evaluations"] == 20 * 2 * 4, "the settings that it was trained with"


def short():
    """Episodes of 7 frames that terminate."""
    return CountingEnv(length=6, terminates=True)


@pytest.mark.parametrize("repeat, remedies", [(1, "to 7 or less"), (2, "to 4 or less, or --action-repeat to 1")])
def test_short_episodes_are_found_before_a_folder_is_made_and_the_remedies_work(repeat, remedies, tmp_path):
    args = [*TINY, "--env", "tests.test_cli:short", "--planner", "policy", "--run-dir", tmp_path / "run"]
    args += ["--max-env-steps", "100", "--action-repeat", repeat, "--replay.sequence-length"]
    length = 8 if repeat == 1 else 5
    refused = quietly(*args, length)
    assert refused.code == 2 and refused.err.count("\n") == 1 and not (tmp_path / "run").exists()
    across = "or let sequences go on into the next episode (--replay.across-episodes)"
    assert refused.err.endswith(f"lower --replay.sequence-length {remedies}, {across}\n"), refused.err
    remedy = [7] if repeat == 1 else [length, "--action-repeat", 1]
    assert quietly(*args, *remedy).code == 0
    assert quietly(*args, length, "--replay.across-episodes", "--overwrite").code == 0


def test_a_count_may_be_written_in_scientific_notation(tmp_path):
    words = ["--env-steps", "1e6", "--eval.every", "2.5e4", "--max-env-steps", "1e3"]
    config = parse(Config, [*words, "--world-model.encoder-channels", "4", "8", "16", "3.2e1"], Config())
    assert (config.env_steps, config.eval.every, config.max_env_steps) == (1_000_000, 25_000, 1000)
    assert config.world_model.encoder_channels[3] == 32
    (tmp_path / "counts.yaml").write_text("env_steps: 2e5\nreplay: {capacity: 1.5e4}\n")
    config = load_presets(str(tmp_path / "counts.yaml"))
    assert (config.env_steps, config.replay.capacity) == (200_000, 15_000)
    assert isinstance(config.env_steps, int) and isinstance(config.replay.capacity, int)


@pytest.mark.parametrize("text", ["1.5e0", "1e-3", "1.0", "1e99", "e5", "inf"])
def test_what_is_no_whole_number_is_refused_as_a_count(text, tmp_path):
    with pytest.raises(UserError, match="env-steps"):
        parse(Config, ["--env-steps", text], Config())


def test_the_version_names_program_torch_and_python(capsys):
    assert run.main(["--version"]) == 0
    assert re.match(r"dreamer-mpc [\d.]+.*, torch [\w.+]+, Python 3\.1\d\.\d+\n$", capsys.readouterr().out)


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path):
    """As by Ctrl-C right after the start, before the command is ready for it."""
    (tmp_path / "gymnasium.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "run.py", "envs"], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored when the tests run in the background
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted")


@pytest.mark.parametrize("chosen, waits", [({}, "PASSIVE"), ({"GOMP_SPINCOUNT": "5"}, None)])
def test_threads_wait_passively_unless_the_user_chose_and_before_torch_is_loaded(chosen, waits):
    """Threads that spin make training several times slower where the cores are shared."""
    code = "import os, sys, run, dreamer_mpc.__main__ as m\n"
    code += "m.command = lambda word: lambda rest: print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))\n"
    code += "run.main(['train'])"
    hidden = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | chosen
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout == f"False {waits}\n", done.stderr


def test_none_is_a_value_of_a_setting_that_may_have_none():
    evaluation = EvaluationConfig(render_quality="fast")
    preset = Config(camera="side", max_env_steps=5, train_planner="cem", eval=evaluation)
    flags = ("--camera", "--max-env-steps", "--train-planner", "--eval.render-quality")
    config = parse(Config, [word for flag in flags for word in (flag, "None")], preset)
    assert (config.camera, config.max_env_steps, config.train_planner, config.eval.render_quality) == (None,) * 4
    assert parse(Config, [], preset) == preset
    for word, value in {"2": 2, "-1": -1, "side": "side"}.items():
        assert parse(Config, ["--camera", word]).camera == value
