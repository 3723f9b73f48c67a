"""A run that is stopped, killed or hits a full disk, and is resumed, equals an uninterrupted one bit for bit."""

import dataclasses
import errno
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load

import dreamer_mpc.evaluation.player
import dreamer_mpc.runs.saving
import dreamer_mpc.training.setup
import dreamer_mpc.training.trainer
from dreamer_mpc.config import Config, load_presets, option, parse
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.envs.rows import LocalVectorEnv
from dreamer_mpc.runs.checkpoint import as_payload, find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from dreamer_mpc.runs.payload import FORMAT_VERSION, read_payload, write_payload
from dreamer_mpc.runs.resume import FIXED
from dreamer_mpc.training.schedule import Schedule
from dreamer_mpc.training.trainer import Trainer
from scripts import soak
from scripts.soak import differences, flatten, metrics, same
from tests.support.agents import CHEAP, FAMILIES
from tests.support.checkpoints import as_version_2
from tests.support.commands import ROOT, records, train
from tests.support.counting_env import CountingEnv
from tests.support.replays import as_before
from tests.support.stops import stop

# Two seed episodes of 8 steps, rounds of 8 env steps and 3 updates, an evaluation every 24 env steps.
PLAN = [*CHEAP, "--env-steps", "56", "--train.seed-episodes", "2", "--train.updates", "3", "--eval.every", "24"]
BASE, V3 = ([*FAMILIES[name], *PLAN] for name in ("paper", "v3"))
KINDS = {
    "sequential, dream-mpc": [*BASE, "--num-envs", "1", "--planner", "dream-mpc"],
    "interleaved, dream-mpc": [*BASE, "--num-envs", "2", "--planner", "dream-mpc"],
    "sequential, PlaNet by cem": [*BASE, "--num-envs", "1", "--planner", "cem"],
    "sequential, v3": [*V3, "--num-envs", "1", "--planner", "policy"],
    "interleaved, v3": [*V3, "--num-envs", "2", "--planner", "policy"],
}
# Where they are stopped: the seed episodes are 16 or 8 steps; then rounds of 3 updates and 8 steps, or of 4 steps with
# updates in them. The second family is stopped late, when its own states are learned; see also the kills below.
STOPS = [(kind, number) for kind in list(KINDS)[:3] for number in (2, 12, 19, 27)] + [("interleaved, v3", 27)]


def assert_same_run(folder, reference):
    # In tests, beartype draws from Python's generator.
    assert differences(folder, reference, leave_out=["/random/python"]) == []
    assert "/random/torch" in flatten(as_payload(load_checkpoint(folder)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function of one of `KINDS` that returns the folder of an uninterrupted run, made at its first call."""

    @functools.cache
    def made(name):
        folder = tmp_path_factory.mktemp("whole") / "run"
        train(*KINDS[name], "--run-dir", folder)
        return folder

    return made


@pytest.fixture
def kind(request, uninterrupted):
    """Arguments of a run, and the folder of an uninterrupted one."""
    return KINDS[request.param], uninterrupted(request.param)


@pytest.fixture
def stop_at(monkeypatch):
    return functools.partial(stop, monkeypatch)


@pytest.mark.parametrize("kind, number", STOPS, indirect=["kind"])
def test_a_run_stopped_anywhere_and_resumed_is_the_one_that_was_not(number, kind, stop_at, tmp_path):
    args, reference = kind
    stop_at(number)
    output = train(*args, "--run-dir", tmp_path / "run")
    assert re.search(r"stopped at \d+ env steps; go on with: python run.py --resume \S+/run\n$", output), output
    train("--resume", tmp_path / "run")
    assert_same_run(tmp_path / "run", reference)


def test_a_run_stopped_again_and_again_is_the_one_that_was_not(stop_at, uninterrupted, tmp_path):
    whole = uninterrupted("interleaved, dream-mpc")
    stop_at(4)
    output, stops = train(*KINDS["interleaved, dream-mpc"], "--run-dir", tmp_path / "run"), 0
    while "stopped at" in output:
        stops += 1
        stop_at(10, signal.SIGUSR1)  # a cluster's warning
        output = train("--resume", tmp_path / "run")
    assert stops == 4
    assert_same_run(tmp_path / "run", whole)


def test_a_run_stopped_in_seed_episodes_beyond_those_asked_for_is_the_one_that_was_not(stop_at, tmp_path):
    args = [*V3, "--num-envs", "2", "--planner", "policy", "--replay.sequence-length", "20"]  # an episode has 9 frames
    train(*args, "--run-dir", tmp_path / "whole")
    assert records(tmp_path / "whole")[0]["episodes"] == 4
    stop_at(14)
    assert "stopped at" in train(*args, "--run-dir", tmp_path / "run")
    train("--resume", tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Arguments of a cheap sequential run, and the folder of an uninterrupted one."""
    args = [*BASE, "--num-envs", "1", "--planner", "policy"]
    folder = tmp_path_factory.mktemp("whole") / "policy"
    train(*args, "--run-dir", folder)
    return args, folder


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """A run like `whole`, stopped after 31 env steps, in the middle of the second round."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 38)
        assert "stopped at 31 env steps" in train(*whole[0], "--run-dir", folder)
    return folder


@pytest.fixture
def run_folder(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def rewrite_as_format_2(folder):
    """Turn a run's folder into one of the program before format 3."""
    paths = list_checkpoints(folder / "checkpoints")
    payloads = [as_version_2(load_checkpoint(path)) for path in paths]
    before = as_before(folder / "replay", payloads[-1]["replay_files"])
    for path, payload in zip(paths, payloads):
        files = [chunk for chunk in before if chunk["number"] in {own["number"] for own in payload["replay_files"]}]
        write_payload(path, payload | {"replay_files": files}, 2)


def test_a_run_of_format_2_goes_on_as_the_one_that_was_never_stopped(run_folder, whole):
    rewrite_as_format_2(run_folder)
    first = sorted((run_folder / "replay").iterdir())[0]
    assert set(load(first.read_bytes())) == {"image", "action", "reward", "is_first"}
    train("--resume", run_folder)
    assert_same_run(run_folder, whole[1])
    versions = [read_payload(path)[0] for path in list_checkpoints(run_folder / "checkpoints")]
    assert versions[0] == 2 and versions[-1] == FORMAT_VERSION, "side by side"
    last = sorted((run_folder / "replay").iterdir())[-1]
    assert "is_terminal" in load(last.read_bytes()) and "is_terminal" not in load(first.read_bytes())


def test_saving_at_every_turn_changes_nothing(whole, tmp_path):
    train(*whole[0], "--run-dir", tmp_path / "run", "--train.checkpoint-seconds", 0)
    assert_same_run(tmp_path / "run", whole[1])
    assert len(list((tmp_path / "run" / "replay").iterdir())) > 40, "a file of new frames for each save"


@pytest.mark.parametrize("base", [BASE, V3], ids=FAMILIES)
def test_a_longer_run_is_the_one_that_was_to_be_so_long(base, tmp_path):
    """Its replay is larger, and with several streams the frames have other slots."""
    args = [*base, "--num-envs", "2", "--planner", "policy", "--eval.every", "1000"]
    train(*args, "--run-dir", tmp_path / "long", "--env-steps", 64)
    train(*args, "--run-dir", tmp_path / "short", "--env-steps", 40)
    train("--resume", tmp_path / "short", "--env-steps", 64)
    a, b = (flatten(load_checkpoint(tmp_path / x).agent) for x in ("short", "long"))
    assert a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    rows = [row for row in metrics(tmp_path / "short") if (row["env_steps"], "eval/episodes" in row) != (40, True)]
    assert rows == metrics(tmp_path / "long")


# stops


def test_an_evaluation_is_given_up_and_made_first_on_resume(whole, tmp_path, monkeypatch):
    evaluate = dreamer_mpc.evaluation.player.evaluate

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(dreamer_mpc.evaluation.player, "evaluate", interrupted)
    output = train(*whole[0], "--run-dir", tmp_path / "run", code=130)
    monkeypatch.undo()
    assert "stopped at 24 env steps" in output and "evaluation at" not in output
    assert output.count("checkpoint ") == 1, "the one before the evaluation is whole"
    assert load_checkpoint(tmp_path / "run").training["evaluation_due"] is True
    output = train("--resume", tmp_path / "run")
    assert output.index("evaluation at 24") < output.index("set-up before the first update")
    assert_same_run(tmp_path / "run", whole[1])


def test_a_second_interrupt_stops_at_once_and_the_checkpoint_before_is_whole(whole, run_folder, monkeypatch):
    before = find_checkpoint(run_folder).read_bytes()

    def interrupted(self, due):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    assert "interrupted" in train("--resume", run_folder, code=130)
    monkeypatch.undo()
    assert find_checkpoint(run_folder).read_bytes() == before
    train("--resume", run_folder)
    assert_same_run(run_folder, whole[1])


def test_a_second_interrupt_amid_a_save_leaves_the_checkpoint_before(whole, run_folder, monkeypatch):
    replace = os.replace

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        replace(*args)

    def begin_folder(*_):
        monkeypatch.setattr(os, "replace", interrupted)

    monkeypatch.setattr(dreamer_mpc.training.trainer, "begin_folder", begin_folder)
    train("--resume", run_folder, "--train.checkpoint-seconds", "0", code=130)
    monkeypatch.undo()
    train("--resume", run_folder)
    assert_same_run(run_folder, whole[1])


def test_a_stop_during_set_up_leaves_nothing_in_the_way(whole, tmp_path, monkeypatch):
    make_agent = dreamer_mpc.training.setup.make_agent

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return make_agent(*args)

    monkeypatch.setattr(dreamer_mpc.training.setup, "make_agent", interrupted)
    assert "stopped before the first step: there was nothing to save" in train(
        *whole[0], "--run-dir", tmp_path / "run"
    )
    monkeypatch.undo()
    assert "claimed by a run that had not begun" in train("--resume", tmp_path / "run", code=2)
    train(*whole[0], "--run-dir", tmp_path / "run")
    assert_same_run(tmp_path / "run", whole[1])


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["default", "ignored"])
def test_signals_are_afterwards_what_they_were(whole, tmp_path, before):
    handlers = [signal.signal(number, before) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        train(*whole[0], "--run-dir", tmp_path / "run")
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == [before, before]
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)


def test_a_terminal_s_interrupt_stops_a_run_with_workers(tmp_path):
    """Ctrl-C goes to every process of the group."""
    args = [*BASE, "--num-envs", "2", "--planner", "policy", "--env-steps", "100000", "--eval.every", "100000"]
    command = [sys.executable, "run.py", *args, "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert re.search(r"stopped at [\d,]+ env steps; go on with: python run.py --resume", output)
    assert error.strip() == "stopping after a last checkpoint; Ctrl-C again stops at once, without one"
    assert load_checkpoint(tmp_path / "run").counters.env_steps > 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole, run_folder):
    shutil.rmtree(run_folder / "checkpoints")
    assert "no checkpoint yet: it starts again from its beginning" in train("--resume", run_folder)
    assert_same_run(run_folder, whole[1])


# damage


HARM = {  # damage to the newest file of a folder
    "damaged": ("replay", lambda x: x[: len(x) // 2] + bytes([x[len(x) // 2] ^ 1]) + x[len(x) // 2 + 1 :]),
    "cut": ("replay", lambda x: x[:-100]),
    "missing": ("replay", None),
    "a checkpoint cut": ("checkpoints", lambda x: x[:1000]),
}


@pytest.mark.parametrize("what", HARM)
def test_what_is_damaged_is_named_and_the_checkpoint_before_it_used(what, whole, run_folder):
    newest, before = list_checkpoints(run_folder / "checkpoints")[:-3:-1]
    name, harm = HARM[what]
    path = max((run_folder / name).glob("ch*"))
    path.write_bytes(harm(path.read_bytes())) if harm else path.unlink()
    output = train("--resume", run_folder)
    [line] = [line for line in output.splitlines() if "the one before it is used" in line]
    assert str(path) in line and line.endswith(f"the one before it is used: {before}")
    assert_same_run(run_folder, whole[1])
    assert not newest.exists(), "of a history that was given up"


def test_a_run_with_no_whole_checkpoint_is_refused_in_one_line(run_folder):
    for path in (run_folder / "replay").iterdir():
        path.unlink()
    files = sorted(run_folder.rglob("*"))
    output = train("--resume", run_folder, code=2)
    assert output.startswith("error: ") and output.count("\n") == 1 and "holds a part of the replay" in output
    assert sorted(run_folder.rglob("*")) == files


def test_a_checkpoint_without_the_state_of_a_training_is_refused(run_folder):
    for path in list_checkpoints(run_folder / "checkpoints"):
        save_checkpoint(path, load_checkpoint(path).agent_alone())
    output = train("--resume", run_folder, code=2)
    assert "no state of a training" in output and output.count("\n") == 1


# a full disk


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while `disk.full`, for checkpoints and replay."""
    fsync = os.fsync

    class Disk:
        full = False

    def full_fsync(descriptor):
        if Disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_fsync)
    return Disk


def test_training_goes_on_while_the_disk_is_full_and_is_saved_when_it_is_not(whole, disk, tmp_path, monkeypatch):
    calls, advance = itertools.count(1), Trainer._advance

    def filled(self, due):
        disk.full = 20 <= next(calls) < 45
        advance(self, due)

    monkeypatch.setattr(Trainer, "_advance", filled)
    output = train(*whole[0], "--run-dir", tmp_path / "run", "--train.checkpoint-seconds", 0)
    refusals = [line for line in output.splitlines() if "No space left on device" in line]
    assert len(refusals) == 1 and "training goes on, the next round tries again" in refusals[0], output
    assert_same_run(tmp_path / "run", whole[1])


def test_metrics_are_on_the_disk_before_the_checkpoint_that_counts_them(whole, tmp_path, monkeypatch):
    """Otherwise a loss of power could leave records that end before the checkpoint."""
    synced, fsync = [], os.fsync

    def noted(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    train(*whole[0], "--run-dir", tmp_path / "run")
    ends = [i for i, name in enumerate(synced) if name.startswith(".checkpoint-")]
    begins = [0, *ends[:-1]]
    assert ends and all("metrics.jsonl" in synced[begin:end] for begin, end in zip(begins, ends, strict=True)), synced


def test_a_run_whose_last_checkpoint_cannot_be_written_fails_in_one_line(whole, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_show", lambda self, *_, **__: setattr(disk, "full", self.counters.env_steps > 40))
    output = train(*whole[0], "--run-dir", tmp_path / "run", code=2)
    assert "evaluation at 56 env steps" in output, "training went on to the end"
    last = output.splitlines()[-1]
    assert last.startswith("error: cannot write") and "No space left on device" in last
    disk.full = False
    monkeypatch.undo()
    train("--resume", tmp_path / "run")
    assert_same_run(tmp_path / "run", whole[1])


def test_a_stop_while_the_disk_is_full_says_what_is_not_saved(whole, disk, stop_at, tmp_path):
    stop_at(22)
    show = Trainer._show
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_show", lambda self, *a, **k: [setattr(disk, "full", True), show(self, *a, **k)])
        output = train(*whole[0], "--run-dir", tmp_path / "run", code=2)
    assert "error: cannot write" in output and "stopped at" not in output
    assert output.splitlines()[-1].endswith("env steps 0 to 19 are not saved")


# environments


def test_an_environment_that_does_not_repeat_itself_goes_on_with_the_next_episode(stop_at, tmp_path):
    """Its images contain the number of episodes since it was created."""
    args = [*BASE, "--num-envs", "2", "--planner", "policy", "--env", "tests.support.counting_env:make"]
    stop_at(12)
    train(*args, "--run-dir", tmp_path / "run")
    before = load_checkpoint(tmp_path / "run").counters.episodes
    output = train("--resume", tmp_path / "run")
    assert "2 episodes in progress could not be repeated from seed and actions and counts as ended" in output
    assert load_checkpoint(tmp_path / "run").counters.episodes > before + 2


TRIED = 3  # steps before the run begins, so many that an episode is long enough for an update


class Fragile(CountingEnv):
    """Raises at the 25th step of its life."""

    life = 25

    def step(self, action):
        Fragile.life -= 1
        if Fragile.life == 0:
            raise ValueError("out of paint")
        return super().step(action)


def test_what_was_trained_is_saved_when_an_environment_raises(whole, tmp_path):
    args = [*whole[0], "--env", "tests.test_resume:Fragile", "--run-dir", tmp_path / "run"]
    output = train(*args, code=2)
    said = "error: tests.test_resume:Fragile: step() raised ValueError: out of paint"
    assert output.splitlines()[-1].startswith(said)
    assert load_checkpoint(tmp_path / "run").counters.env_steps == 24 - TRIED
    Fragile.life = 1000
    train("--resume", tmp_path / "run")
    assert records(tmp_path / "run")[-1]["env_steps"] == 56


def test_environments_are_closed_where_the_set_up_fails(whole, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(LocalVectorEnv, "close", lambda self, **_: closed.append(self))
    assert "does not fit RAM" in train(*whole[0], "--run-dir", tmp_path / "run", *HUGE, code=2)
    assert len(closed) == 3, "the one that was tried, and both of the run"


HUGE = ["--env-steps", 2_000_000_000, "--replay.capacity", 2_000_000_000]


# what may change


@pytest.mark.parametrize(
    "args, words",
    [
        (["--num-envs", 2], "--num-envs of .* is 1 and cannot become 2"),
        (["--env", "cartpole-swingup"], "--env of .* is tests.example_env:make and cannot become cartpole-swingup"),
        (["--action-repeat", 2], "--action-repeat of .* is 1 and cannot become 2"),
        (["--world-model.deter", 20], "--world-model.deter of .* is 16 and cannot become 20: leave it out, or start"),
        (["--world-model.continuation"], "--world-model.continuation of .* is False and cannot become True: leave it"),
        (
            ["--world-model.kind", "categorical", "--world-model.blocks", 2],
            "--world-model.kind of .* is gaussian and cannot become categorical: leave it out, or start another run",
        ),
        (["--behavior.kind", "v3"], "--behavior.kind of .* is dreamer and cannot become v3"),
        (["--optimizer.kind", "laprop"], "--optimizer.kind of .* is adam and cannot become laprop"),
        (["--replay.states"], "--replay.states of .* is False and cannot become True"),
    ],
)
def test_what_a_saved_run_cannot_become_is_one_line(args, words, run_folder):
    before = {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")}
    output = train("--resume", run_folder, *args, code=2)
    assert re.search(words, output.splitlines()[-1])
    assert sum(line.startswith("error: ") for line in output.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in run_folder.rglob("*")} == before


CHANGED = {  # another value of a setting than the doubled one
    "world_model.downsampling": "strided", "world_model.representation": "barlow", "behavior.kind": "v3",
    "optimizer.kind": "laprop", "world_model.reward_readout": "symlog",
    "behavior.exploration": "policy", "behavior.head_targets": "own",
}  # fmt: skip


def changed(group, name):
    value = getattr(group[1], name)
    if isinstance(value, str):
        return CHANGED[f"{group[0]}.{name}"]
    if isinstance(value, bool):
        return not value
    return tuple(2 * each for each in value) if isinstance(value, tuple) else 2 * value


def form(config):
    """Names and shapes of all that the agent of `config` keeps."""
    agent = make_agent(config, 2, torch.device("cpu"))
    return {name: getattr(value, "shape", None) for name, value in flatten(agent.state_dict()).items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_decide_what_an_agent_consists_of_may_not_change(family):
    args = [*FAMILIES[family], *(["--world-model.blocks", "2"] if family == "paper" else [])]
    config = parse(Config, args, load_presets(option(args, "config")))
    own, deciding = form(config), set()
    for group in ("world_model", "behavior", "optimizer"):
        settings = getattr(config, group)
        for field in dataclasses.fields(settings):
            key = f"{group}.{field.name}"
            if key in ("world_model.kind", "behavior.bootstrap", "behavior.discount", "behavior.return_lambda"):
                continue  # the first is of other settings' form; the others are shares, at most 1
            try:
                other = dataclasses.replace(settings, **{field.name: changed((group, settings), field.name)})
            except ValueError:
                continue  # of the other kind alone, or a share
            if form(dataclasses.replace(config, **{group: other})) != own:
                deciding.add(key)
    assert {"world_model.deter", "behavior.value_heads"} < deciding and deciding <= set(FIXED)


def test_other_settings_may_change(run_folder):
    changes = [
        "--train.updates", 5, "--train-planner", "dream-mpc", "--dream-mpc.horizon", 2, "--eval.every", 16,
        "--replay.storage", "memmap", "--replay.capacity", 24, "--seed", 3, "--train.keep-checkpoints", 1,
    ]  # fmt: skip
    output = train("--resume", run_folder, *changes)
    assert output.count("changed from the saved run") == 8
    assert [path.name for path in list_checkpoints(run_folder / "checkpoints")] == ["checkpoint-00000056.safetensors"]
    assert [row["env_steps"] for row in records(run_folder) if "eval/return_mean" in row] == [24, 32, 48, 56]
    checkpoint = load_checkpoint(run_folder)
    assert len(checkpoint.replay_files) <= 3, "older frames are no longer in replay"
    assert len(list((run_folder / "replay").iterdir())) == len(checkpoint.replay_files)


@pytest.mark.parametrize("storage", ["ram", "memmap"])
def test_a_memory_mapped_replay_is_resumed_alike(storage, run_folder, whole):
    (run_folder / "replay.bin").write_bytes(b"of a process that was killed")
    train("--resume", run_folder, "--replay.storage", storage)
    assert_same_run(run_folder, whole[1])


# latent states in replay


@pytest.fixture(scope="module")
def v3_stopped(tmp_path_factory):
    """A run of the second family, stopped after 31 env steps."""
    folder = tmp_path_factory.mktemp("stopped") / "v3"
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 38)
        assert "stopped at 31 env steps" in train(*KINDS["sequential, v3"], "--run-dir", folder)
    return folder


@pytest.mark.parametrize("harm", [None, lambda content: content[:-1] + b"\x55"], ids=["missing", "damaged"])
def test_latent_states_that_are_lost_are_named_and_the_run_goes_on(harm, v3_stopped, tmp_path):
    folder = shutil.copytree(v3_stopped, tmp_path / "run")
    (path,) = (folder / "replay").glob("states-*")
    path.write_bytes(harm(path.read_bytes())) if harm else path.unlink()
    output = train("--resume", folder, "--env-steps", 40)
    [line] = [line for line in output.splitlines() if "latent states" in line]
    assert "until updates have refreshed them" in line
    assert load_checkpoint(folder).counters.env_steps == 40 and len(list((folder / "replay").glob("states-*"))) == 1


def test_a_run_of_the_second_family_does_not_become_one_of_the_first(v3_stopped):
    for name, value in {"world-model": "gaussian", "behavior": "dreamer", "optimizer": "adam"}.items():
        output = train("--resume", v3_stopped, f"--{name}.kind", value, code=2)
        assert f"--{name}.kind of " in output and f"cannot become {value}" in output and output.count("\n") == 1
    output = train("--resume", v3_stopped, "--replay.no-states", code=2)
    assert "--replay.states of " in output and output.count("\n") == 1


# kills


@pytest.mark.parametrize("kind", ["interleaved, v3"], indirect=True)
def test_killed_before_or_after_a_checkpoint_is_whole_a_run_is_the_one_that_was_not(kind, tmp_path, monkeypatch):
    """The files of replay, also of its latent states, are written before it: the last one keeps those it needs."""
    args, reference = kind
    folder, turns, saves = tmp_path / "run", itertools.count(1), itertools.count(1)

    def copied(path, checkpoint):
        copying = next(saves) == 4
        if copying:
            shutil.copytree(folder, tmp_path / "before")
        save_checkpoint(path, checkpoint)
        if copying:
            shutil.copytree(folder, tmp_path / "after")

    monkeypatch.setattr(dreamer_mpc.runs.saving, "save_checkpoint", copied)
    monkeypatch.setattr(Schedule, "save_due", lambda *_: next(turns) % 7 == 0)
    train(*args, "--run-dir", folder)
    monkeypatch.undo()
    for killed in ("before", "after"):
        assert 0 < load_checkpoint(tmp_path / killed).counters.updates < load_checkpoint(folder).counters.updates
        assert "latent states" not in train("--resume", tmp_path / killed)
        assert_same_run(tmp_path / killed, reference)


def test_killed_at_random_moments_a_run_is_the_one_that_was_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "ENV", ["--env", "tests.example_env:make", "--action-repeat", "1"])
    record = tmp_path / "soak.json"
    settings = ["--max-env-steps", 20, "--env-steps", 120, "--train.every", 20, "--planner", "policy"]
    args = ["--kills", 2, "--seed", 9, "--out", record, *settings]
    assert soak.main([*map(str, args)]) == 0, capsys.readouterr().out
    assert len(json.loads(record.read_text())["kills"]) == 2
