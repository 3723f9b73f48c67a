"""Fine-tuning: a new run starts from the weights of a checkpoint, and from nothing else of it."""

import hashlib
import json
import shutil

import pytest

from dreamer_mpc.config import load_saved
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.runs import checkpoint
from dreamer_mpc.runs.checkpoint import load_checkpoint, save_checkpoint
from dreamer_mpc.training import setup
from tests.support.agents import BRIEF, CHEAP, FAMILIES, V3
from tests.support.checkpoints import equal, family_checkpoint
from tests.support.commands import quietly, train
from tests.support.counting_env import CountingEnv

SHORT = [*CHEAP, "--planner", "policy", "--num-envs", "1", "--train.updates", "0"]


def make():
    """An environment with another number of actions."""
    return CountingEnv(length=10, action_dim=3)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def trained(family, tmp_path_factory):
    """The file of a trained agent."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint-00000016.safetensors"
    save_checkpoint(path, family_checkpoint(family))
    return path


def weights(path, part=""):
    """Without the masks, which say what a critic learns from in its own replay."""
    model = load_checkpoint(path).agent["model"]
    return {name: x for name, x in model.items() if name.startswith(part) and not name.endswith("masks")}


def test_a_run_starts_from_weights_alone_and_says_so(family, trained, tmp_path):
    run, source = tmp_path / "run", tmp_path / trained.name
    shutil.copy(trained, source)
    output = train(*FAMILIES[family], *SHORT, "--seed", "5", "--init-from", source, "--run-dir", run)
    assert f"weights of world model, actor, critic from {source}" in " ".join(output.split())
    tuned, before = load_checkpoint(run), load_checkpoint(source)
    assert equal(weights(run), weights(source)), "without an update they are still those of the checkpoint"
    assert tuned.counters.env_steps == 16 and tuned.counters.updates == 0
    assert all(not optimizer["state"] for optimizer in tuned.agent["optimizers"].values())
    assert any(optimizer["state"] for optimizer in before.agent["optimizers"].values())
    entry = json.loads((run / "versions.json").read_text())["init_from"]
    assert entry["checkpoint"] == str(source) and entry["env_steps"] == 16 and len(entry["sha256"]) == 64
    assert load_saved(run / "config.yaml").init_from == str(source)
    source.unlink()
    train("--resume", run, "--env-steps", "24")  # it needs that file no more
    assert load_checkpoint(run).counters.env_steps == 24


def test_the_checkpoint_is_read_once_and_may_be_removed_then(tmp_path, monkeypatch):
    """By the run that wrote it, which goes on."""
    source, read, read_payload = tmp_path / "checkpoint.safetensors", [], checkpoint.read_payload
    save_checkpoint(source, family_checkpoint("paper"))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()

    def removed_first(*args):
        source.unlink()
        return make_agent(*args)

    monkeypatch.setattr(checkpoint, "read_payload", lambda path: read.append(path) or read_payload(path))
    monkeypatch.setattr(setup, "make_agent", removed_first)
    train(*FAMILIES["paper"], *SHORT, "--init-from", source, "--run-dir", tmp_path / "run")
    assert read.count(source) == 1
    assert json.loads((tmp_path / "run/versions.json").read_text())["init_from"]["sha256"] == sha256


def test_a_run_killed_before_its_first_checkpoint_starts_from_the_weights_again(tmp_path):
    source, run = tmp_path / "checkpoint.safetensors", tmp_path / "run"
    save_checkpoint(source, family_checkpoint("paper"))
    train(*FAMILIES["paper"], *SHORT, "--init-from", source, "--run-dir", run)
    shutil.rmtree(run / "checkpoints")
    assert f"from {source}" in " ".join(train("--resume", run).split())
    assert equal(weights(run), weights(source))


def test_a_critic_of_another_shape_starts_anew(family, trained, tmp_path):
    if family != "paper":
        pytest.skip("the same for all")
    output = train(
        *FAMILIES[family], *SHORT, "--behavior.value-heads", "2", "--init-from", trained, "--run-dir", tmp_path / "run"
    )
    said = " ".join(output.split())
    assert "weights of world model, actor from" in said and "new, as shapes differ: critic." in said
    for part in ("world_model", "actor"):
        assert equal(weights(tmp_path / "run", part), weights(trained, part))


def refused(*args):
    done = quietly(*args)
    assert done.code == 2 and done.err.startswith("error: --init-from") and done.err.count("\n") == 1, done.err
    return done.err


def test_another_number_of_actions_is_refused_with_the_tensors(tmp_path):
    source = tmp_path / "checkpoint.safetensors"
    save_checkpoint(source, family_checkpoint("paper"))
    args = ("--env", "tests.test_init_from:make", *BRIEF, *SHORT, "--run-dir", tmp_path / "run")
    said = refused(*args, "--init-from", source)
    assert "world_model.rssm.input.weight is [16, 10] and should be [16, 11]" in said and "as many actions" in said
    assert [entry.name for entry in tmp_path.iterdir()] == [source.name], "a refused run leaves nothing"
    (tmp_path / "run").mkdir()
    refused(*args, "--init-from", source)
    assert not list((tmp_path / "run").iterdir()), "nor in a folder that was there"
    train(*args)


def test_other_kinds_no_checkpoint_and_a_resumed_run_are_refused(tmp_path):
    source = tmp_path / "checkpoint.safetensors"
    save_checkpoint(source, family_checkpoint("paper"))
    said = refused(*V3, *SHORT, "--init-from", source, "--run-dir", tmp_path / "run")
    assert "was trained with --world-model.kind gaussian, this run has categorical" in said
    assert "does not go with --resume" in refused("--resume", tmp_path, "--init-from", source)
    assert quietly(*V3, *SHORT, "--init-from", "nowhere").err == (
        "error: no checkpoint nowhere: name a checkpoint file, a checkpoints/ folder or a run folder\n"
    )
    assert not (tmp_path / "run").exists()
