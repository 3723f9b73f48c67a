"""The commands as a user runs them: what they write, and one clear line where they are given something wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run
from dreamer_mpc.checkpoint import find_checkpoint, load_checkpoint
from dreamer_mpc.config import Config, config_from_dict, load_presets, to_dict, to_yaml

ROOT = Path(__file__).resolve().parent.parent
# Episodes of 100 agent steps, two updates a round: the whole loop in seconds.
SHORT = [
    "--config", "quick", "--max-env-steps", "200", "--train.every", "200", "--train.updates", "2",
    "--eval.every", "300", "--eval.episodes", "2", "--eval.num-envs", "1", "--eval.video-steps", "20",
]  # fmt: skip


def command(*args, **environment):
    """Run `python run.py ...` in a process of its own."""
    full = [sys.executable, "run.py", *map(str, args)]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | environment)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 800 env steps, by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    done = command(*SHORT, "--env-steps", 800, "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_train_writes_a_run_folder(trained):
    folder, output = trained
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "versions.json",
        "checkpoints/checkpoint-00000600.pt", "checkpoints/checkpoint-00000800.pt",
        "videos/00000800.mp4", "videos/00000800-decision.png",
    }  # fmt: skip
    assert "400 agent steps (action repeat 2)" in output
    assert "dream-mpc" in output and "policy" in output and "75" in output


def test_counters_are_exact(trained):
    rows = records(trained[0])
    assert all({"env_steps", "agent_steps", "updates", "episodes"} <= row.keys() for row in rows)
    last = rows[-1]
    # Two seed episodes of 200 env steps, then rounds of two updates and 200 env steps.
    assert (last["env_steps"], last["agent_steps"], last["updates"], last["episodes"]) == (800, 400, 4, 4)
    assert [row["env_steps"] for row in rows if "eval/return_mean" in row] == [600, 800]


def test_eval_prints_a_table_and_writes_it(trained, tmp_path):
    done = command(
        "eval", "--checkpoint", trained[0], "--planner", "dream-mpc,policy", "--episodes", 2, "--num-envs", 1,
        "--video", "--out", tmp_path, "--dream-mpc.horizon", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "eval.json").read_text())
    assert [row["planner"] for row in record["results"]] == ["dream-mpc", "policy"]
    assert [row["model_evaluations"] for row in record["results"]] == [5 * 4, 0]
    assert all(len(row["returns"]) == 2 for row in record["results"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "eval.json", "dream-mpc.mp4", "dream-mpc-decision.png", "policy.mp4",
    }  # fmt: skip
    assert "95 %" in done.stdout and "dream-mpc" in done.stdout


def test_eval_of_the_same_seeds_repeats(trained, tmp_path):
    args = ["--checkpoint", str(trained[0]), "--planner", "dream-mpc", "--episodes", "1", "--num-envs", "1"]
    returns = []
    for name in ("a", "b"):
        assert run.main(["eval", *args, "--out", str(tmp_path / name)]) == 0
        returns.append(json.loads((tmp_path / name / "eval.json").read_text())["results"][0]["returns"])
    assert returns[0] == returns[1]


def test_resume_goes_on_from_the_last_checkpoint(trained, tmp_path):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", trained[0], folder], check=True)
    before = load_checkpoint(find_checkpoint(folder))
    done = command("--resume", folder, "--env-steps", 1600)
    assert done.returncode == 0, done.stderr
    assert "changed from the saved run: env_steps: 800 -> 1600" in done.stdout
    after = load_checkpoint(find_checkpoint(folder))
    assert before["counters"]["updates"] == 4 and after["counters"]["updates"] > 4
    assert after["counters"]["env_steps"] == 1600
    # The optimizer went on counting, so its state was restored and not made anew.
    steps = [c["agent"]["optimizers"]["actor"]["state"][0]["step"].item() for c in (before, after)]
    assert steps == [before["counters"]["updates"], after["counters"]["updates"]]
    history = [row["env_steps"] for row in records(folder)]
    assert history == sorted(history)


def test_a_resumed_run_takes_the_command_line_s_rates(trained):
    from dataclasses import replace

    from dreamer_mpc.agent import OptimizerConfig
    from dreamer_mpc.train import load_agent

    payload = load_checkpoint(trained[0])
    rates = OptimizerConfig(actor_lr=0.5, eps=0.25)
    config = replace(config_from_dict(payload["config"], "checkpoint"), optimizer=rates)
    agent = load_agent(payload, config, payload["action_dim"], torch.device("cpu"))
    group = agent.optimizers["actor"].param_groups[0]
    assert (group["lr"], group["eps"]) == (0.5, 0.25)
    assert agent.optimizers["actor"].state_dict()["state"][0]["step"].item() == 4


def test_overwriting_deletes_nothing_until_the_new_run_can_start(trained, tmp_path, capsys):
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", trained[0], folder], check=True)
    assert run.main([*SHORT, "--env", "cheetah-rnu", "--run-dir", str(folder), "--overwrite"]) == 2
    assert "unknown env" in capsys.readouterr().err
    assert find_checkpoint(folder).exists() and records(folder)


def test_a_preset_or_folder_beside_resume_is_refused(trained, capsys):
    for args in (["--config", "quick"], ["--run-dir", "elsewhere"]):
        assert run.main(["--resume", str(trained[0]), *args]) == 2
        assert "does not go with --resume" in capsys.readouterr().err


def test_an_episode_longer_than_the_replay_is_one_line(tmp_path, capsys):
    args = [*SHORT, "--env", "tests.example_env:make", "--action-repeat", "1", "--replay.capacity", "60"]
    assert run.main([*args, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "--replay.capacity" in error and error.count("\n") == 1


def test_a_finished_run_says_how_to_go_on(trained, capsys):
    assert run.main(["--resume", str(trained[0])]) == 2
    error = capsys.readouterr().err
    assert "has reached its 800 env steps" in error and "--env-steps" in error and error.count("\n") == 1


def test_a_resumed_agent_has_the_saved_weights(trained):
    from dreamer_mpc.train import load_agent

    payload = load_checkpoint(trained[0])
    config = config_from_dict(payload["config"], "checkpoint")
    agent = load_agent(payload, config, payload["action_dim"], torch.device("cpu"))
    saved = payload["agent"]["model"]
    assert all(torch.equal(value, saved[name]) for name, value in agent.model.state_dict().items())


def test_the_default_preset_is_the_schema_s_defaults():
    assert load_presets("default") == Config()


def test_a_configuration_survives_yaml_and_checkpoints(tmp_path):
    config = load_presets("quick")
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_presets(str(tmp_path / "c.yaml")) == config
    assert config_from_dict(to_dict(config), "here") == config


def test_presets_add_up_in_order():
    config = load_presets("quick,planner/dream-mpc-released")
    assert config.dream_mpc.scale_penalty and not config.dream_mpc.penalty_gradient
    assert config.world_model == load_presets("quick").world_model


def test_the_command_line_wins_over_the_preset():
    from dreamer_mpc.config import parse

    config = parse(Config, ["--world-model.deter", "77"], load_presets("quick"))
    assert config.world_model.deter == 77 and config.world_model.stoch == load_presets("quick").world_model.stoch


def test_help_names_groups_defaults_and_units():
    done = command("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for words in ("run.py eval --checkpoint", "run.py doctor"):
        assert words in text
    for words in ("--dream-mpc.horizon", "--world-model.deter", "env steps", "(paper: 15)", "default: 1000000"):
        assert words in text


def checkpoint_file(tmp_path, content):
    path = tmp_path / "checkpoint-00000100.pt"
    path.write_bytes(content)
    return str(path)


TRAIN_ERRORS = {
    "unknown env": (["--env", "cheeta-run"], "unknown env 'cheeta-run': did you mean cheetah-run?"),
    "unknown planner": (["--planner", "dreem-mpc"], "invalid choice 'dreem-mpc' for argument '--planner'"),
    "unknown key": (["--dream-mpc.horizn", "3"], "Unrecognized options: --dream-mpc.horizn"),
    "value out of range": (["--dream-mpc.candidates", "0"], "--dream-mpc.candidates must be at least 1, got 0"),
    "value of another type": (["--env-steps", "many"], "--env-steps"),
    "rate out of range": (["--optimizer.actor-lr", "-1"], "--optimizer.actor-lr must be at least 0, got -1"),
    "size out of range": (["--world-model.deter", "0"], "--world-model.deter must be at least 1, got 0"),
    "discount out of range": (["--behavior.discount", "3"], "--behavior.discount must be between 0 and 1, got 3"),
    "negative length": (["--env-steps", "-5"], "--env-steps must be at least 1, got -5"),
    "unknown preset": (["--config", "quik"], "no preset 'quik': known are default, planner/dream-mpc-released, quick"),
    "unknown device": (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    "missing run": (["--resume", "/nowhere"], "no checkpoint /nowhere"),
    "GPU replay on a CPU": (["--device", "cpu", "--replay.storage", "gpu"], "--replay.storage gpu needs a CUDA device"),
    "replay too large": (
        ["--env-steps", "9000000000", "--replay.capacity", "9000000000", "--replay.storage", "ram"],
        "does not fit RAM",
    ),
    "custom env that is not there": (["--env", "nowhere:make"], "cannot import nowhere"),
    "unknown command": (["trian"], "unknown command 'trian': known are train, eval, doctor"),
}


@pytest.mark.parametrize("name", TRAIN_ERRORS)
def test_train_says_what_is_wrong_in_one_line(name, tmp_path, capsys):
    args, message = TRAIN_ERRORS[name]
    options = [] if name in ("unknown command", "missing run") else ["--run-dir", str(tmp_path / "run")]
    assert run.main([*args, *options, *([] if name == "unknown command" else ["--eval.num-envs", "1"])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run" / "config.yaml").exists()  # nothing stands in the way of the next try


def test_a_run_that_could_not_start_does_not_block_its_folder(tmp_path, capsys):
    folder = str(tmp_path / "run")
    for _ in range(2):
        assert run.main(["--env", "cheeta-run", "--run-dir", folder, "--eval.num-envs", "1"]) == 2
        assert "unknown env" in capsys.readouterr().err


def test_an_unknown_key_in_a_preset_is_named(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("dream_mpc:\n  horizn: 3\n")
    assert run.main(["--config", str(tmp_path / "mine.yaml")]) == 2
    assert "dream_mpc.horizn" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_an_existing_run_is_not_overwritten(trained, capsys):
    assert run.main([*SHORT, "--run-dir", str(trained[0])]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--overwrite" in error and error.count("\n") == 1
    assert len(records(trained[0])) > 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello", "is no dreamer-mpc checkpoint"), (b"PK\x03\x04 cut", "damaged or cut short"), (None, "no checkpoint")],
)
def test_eval_refuses_what_is_no_checkpoint(content, message, tmp_path, capsys):
    path = checkpoint_file(tmp_path, content) if content else str(tmp_path / "nothing.pt")
    assert run.main(["eval", "--checkpoint", path]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_truncated_checkpoint_is_refused(trained, tmp_path, capsys):
    content = find_checkpoint(trained[0]).read_bytes()
    assert run.main(["eval", "--checkpoint", checkpoint_file(tmp_path, content[: len(content) // 2])]) == 2
    assert "damaged or cut short" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["eval", "resume"])
def test_an_environment_with_another_action_size_is_refused(trained, word, capsys):
    if word == "eval":
        args = ["eval", "--checkpoint", str(trained[0]), "--env", "cartpole-swingup", "--num-envs", "1"]
    else:
        args = ["--resume", str(trained[0]), "--env", "cartpole-swingup", "--env-steps", "2000"]
    assert run.main(args) == 2
    error = capsys.readouterr().err
    assert "6 action dimensions" in error and "cartpole-swingup" in error and error.count("\n") == 1


def test_eval_names_unknown_planners_and_bad_numbers(trained, capsys):
    checkpoint = ["eval", "--checkpoint", str(trained[0]), "--num-envs", "1"]
    for args, message in [
        (["--planner", "policy,dreem"], "unknown planner 'dreem': known are policy, dream-mpc"),
        (["--planner", ","], "names no planner"),
        (["--episodes", "0"], "--episodes must be at least 1, got 0"),
    ]:
        assert run.main([*checkpoint, *args]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert run.main(["eval"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_no_opengl_is_one_line_with_the_packages(tmp_path):
    done = command("--run-dir", tmp_path / "run", MUJOCO_GL="nonsense", DREAMER_MPC_GL_PROBED="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "MUJOCO_GL" in done.stderr


def test_any_gymnasium_env_can_be_trained_on(tmp_path):
    done = command(
        *SHORT, "--env", "tests.example_env:make", "--action-repeat", 1, "--env-steps", 400, "--max-env-steps", 100,
        "--train.every", 100, "--run-dir", tmp_path / "run", "--planner", "policy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "run")[-1]["agent_steps"] == 400


def test_two_environments_a_memory_map_and_tensorboard(tmp_path):
    done = command(
        *SHORT, "--env", "tests.example_env:make", "--action-repeat", 1, "--env-steps", 400, "--max-env-steps", 60,
        "--train.every", 100, "--run-dir", tmp_path / "run", "--num-envs", 2, "--replay.storage", "memmap",
        "--logger", "tensorboard",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memory-mapped" in done.stdout and (tmp_path / "run" / "replay.bin").stat().st_size > 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    last = records(tmp_path / "run")[-1]
    assert (last["env_steps"], last["agent_steps"], last["episodes"]) == (400, 400, 6)


def test_readme_commands_and_ci_agree():
    readme = (ROOT / "README.md").read_text()
    quick = "python run.py --env cheetah-run --planner dream-mpc --config quick"
    for command_line in (quick, "python -m pytest"):
        assert f"\nbash scripts/setup.sh && .venv/bin/{command_line}\n" in readme
