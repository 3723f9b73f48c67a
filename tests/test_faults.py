"""Non-finite updates, failing loggers, exhausted memory: reported in one line, and survived if possible."""

import contextlib
import errno
import itertools
import os
import re
import signal
import tempfile
from copy import deepcopy

import numpy as np
import pytest
import torch
from safetensors import safe_open

import dreamer_mpc.__main__ as program
import dreamer_mpc.evaluation.visualize
import dreamer_mpc.runs.logger
from dreamer_mpc.agents.dreamer import Dreamer, SkippedUpdateCounter
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.envs.custom import LARGEST_REWARD
from dreamer_mpc.runs.checkpoint import load_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import Logger, check_backend
from dreamer_mpc.training.profiling import Profiler
from dreamer_mpc.util.errors import UserError
from tests.support.agents import CATEGORICAL, CHEAP, FAMILIES, WORLD, make_agent, make_batch
from tests.support.checkpoints import equal
from tests.support.commands import counters, env_steps_in, quietly, records, train

RUN, V3 = (
    [
        *family, *CHEAP, "--env-steps", "32", "--train.seed-episodes", "2", "--train.updates", "3",
        "--eval.every", "100", "--num-envs", "1", "--planner", "policy",
    ]
    for family in (FAMILIES["paper"], FAMILIES["v3"])
)  # fmt: skip


# updates


def test_the_first_skipped_frames_are_kept_until_asked_for():
    skipped = SkippedUpdateCounter(torch.device("cpu"))
    index = [torch.full((2, 3), i) for i in range(7)]
    outcomes = [False, True, True, False, True]
    for i, outcome in enumerate(outcomes):
        skipped.note(torch.tensor(outcome), index[i])
    read = skipped.read()
    assert read.in_a_row == 1 and torch.equal(read.index, index[1])
    assert skipped.read().index is None
    skipped.note(torch.tensor(True), index[5])
    read = skipped.read()
    assert read.in_a_row == 2 and torch.equal(read.index, index[5])
    skipped.note(torch.tensor(False), index[6])
    assert skipped.read() == (0, None)


class Poison:
    """Makes the rewards of sampled batches NaN while `on`."""

    def __init__(self, monkeypatch, on):
        self.calls, self.on, sample = 0, on, Replay.sample

        def poisoned(replay, *args):
            batch, self.calls = sample(replay, *args), self.calls + 1
            if not self.on(self.calls):
                return batch
            self.first = getattr(self, "first", batch)
            return batch._replace(reward=torch.full_like(batch.reward, torch.nan))

        monkeypatch.setattr(Replay, "sample", poisoned)


@pytest.mark.parametrize("args", [RUN, V3], ids=FAMILIES)
def test_a_skipped_update_is_counted_and_its_frames_are_saved_once(args, tmp_path, monkeypatch):
    poison = Poison(monkeypatch, lambda call: call in (2, 3, 5))
    output = train(*args, "--run-dir", tmp_path / "run")
    assert [r["train/skipped_updates"] for r in records(tmp_path / "run") if "train/skipped_updates" in r] == [2, 1]
    (path,) = (tmp_path / "run" / "diagnosis").iterdir()
    assert output.count("not finite") == 1 and str(path) in output
    with safe_open(path, "pt") as file:
        assert file.metadata()["updates"] == "3" and "train/model_loss" in file.metadata()["metrics"]
        for name in ("image", "action", "reward", "is_first", "index"):
            assert torch.equal(file.get_tensor(name), getattr(poison.first, name)), name


def test_too_many_in_a_row_end_the_run_with_what_to_look_at(tmp_path, monkeypatch):
    Poison(monkeypatch, lambda call: call > 2)
    folder = tmp_path / "run"
    output = train(*RUN, "--train.max-skipped-in-a-row", "4", "--run-dir", folder, code=2)
    (path,) = (folder / "diagnosis").iterdir()
    last = output.splitlines()[-1]
    assert last.startswith("error: 4 updates in a row") and str(path) in last and "--optimizer" in last
    assert records(folder)[-1]["updates"] == 6, "the round that showed it is on record"


@pytest.mark.parametrize(
    "world, behavior, optimizer",
    [(WORLD, {}, {}), (CATEGORICAL, {"kind": "v3"}, {"kind": "laprop", "warmup": 1})],
    ids=["paper", "v3"],
)
def test_the_largest_rewards_that_an_environment_may_give_skip_no_update(world, behavior, optimizer):
    """Also where they are predicted, and returns are a thousand times as large."""
    agent = make_agent(world=world, behavior={**behavior, "discount": 0.999, "return_lambda": 1.0}, **optimizer)
    if not behavior:
        with torch.no_grad():
            list(agent.model.world_model.reward_head.parameters())[-1].fill_(LARGEST_REWARD)
            list(agent.model.critic.parameters())[-1].fill_(1000 * LARGEST_REWARD)
    for seed in range(3):
        batch = make_batch(seed)
        sign = torch.where(batch.reward > 0, 1.0, -1.0)
        assert agent.update(batch._replace(reward=LARGEST_REWARD * sign)).metrics["skipped"] == 0
    assert all(x.isfinite().all() for x in agent.model.parameters())


def test_the_second_family_is_told_of_its_own_rates(tmp_path):
    """A learning rate that breaks the states, which replay then keeps: the run ends with what to lower."""
    args = ["--optimizer.lr", "1e30", "--optimizer.warmup", "0", "--train.max-skipped-in-a-row", "2"]
    output = train(*V3, *args, "--run-dir", tmp_path / "run", code=2)
    last = output.splitlines()[-1]
    assert "updates in a row" in last and "lower --optimizer.lr or --optimizer.relative-clip, or" in last


def test_a_skipped_update_leaves_what_the_second_family_learns_from():
    """The slow copy of the value heads, the quantiles of returns, and LaProp's state."""
    agent = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL, kind="laprop", warmup=1)
    for _ in range(3):
        agent.update(make_batch())
    before = deepcopy({name: part for name, part in agent.state_dict().items() if name != "skipped_in_a_row"})
    batch = make_batch()
    assert agent.update(batch._replace(reward=batch.reward * torch.nan)).metrics["skipped"]
    after = {name: part for name, part in agent.state_dict().items() if name != "skipped_in_a_row"}
    assert equal(before, after)
    agent.update(batch)
    assert not equal(before["behavior"], agent.state_dict()["behavior"])


def test_skipped_updates_in_a_row_are_counted_on_after_a_stop():
    agents = [Dreamer(2), Dreamer(2)]
    agents[0]._skipped.in_a_row += 7
    agents[1].load_state_dict(agents[0].state_dict())
    assert agents[1].skipped_updates().in_a_row == 7


def test_weights_that_grow_without_bound_are_met_as_well(tmp_path):
    args = ["--optimizer.world-model-lr", "1e30", "--optimizer.grad-clip", "1e30", "--train.max-skipped-in-a-row", "2"]
    output = train(*RUN, *args, "--run-dir", tmp_path / "run", code=2)
    assert "updates in a row" in output.splitlines()[-1]


# loggers


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


class Backend:
    """A logger that fails in the call named `where`, and changes the process in each call before."""

    def __init__(self, where, error):
        self.where, self.error, self.calls = where, error, []

    def __call__(self, folder):
        return self._call("init") or self

    def _call(self, name):
        self.calls.append(name)
        os.chdir("/")
        np.random.seed(0)
        torch.manual_seed(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if name == self.where:
            raise self.error

    def write(self, env_steps, values):
        self._call("write")

    def truncate(self, env_steps):
        self._call("truncate")

    def close(self):
        self._call("close")


@pytest.mark.parametrize("where", ["init", "write", "truncate", "close"])
@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), SystemExit(1)], ids=["error", "exit"])
def test_a_backend_that_fails_is_switched_off(folder, monkeypatch, where, error):
    def state():
        numbers = np.random.get_state()[1].sum(), torch.get_rng_state().sum()
        return os.getcwd(), numbers, signal.getsignal(signal.SIGTERM)

    backend, lines, before = Backend(where, error), [], state()
    monkeypatch.setitem(dreamer_mpc.runs.logger.BACKENDS, "wandb", backend)
    monkeypatch.setitem(dreamer_mpc.runs.logger.PACKAGES, "wandb", "json")
    with Logger(folder, "wandb", lines.append) as logger:
        logger.write(counters(1), {})
        logger.truncate(1)
        logger.write(counters(2), {})
    assert env_steps_in(folder) == [1, 2]
    first = str(error).splitlines()[0]
    assert lines == [f"--logger wandb failed and is switched off ({type(error).__name__}: {first})"]
    assert backend.calls[-1] == where, "not called again"
    assert state() == before


@pytest.mark.parametrize("content", [None, "import sys; sys.exit(1)"], ids=["folder", "exits"])
def test_a_folder_of_its_name_is_no_package_and_a_broken_package_costs_the_logger(content, tmp_path, monkeypatch):
    """A logger leaves such a folder where it was used."""
    name = f"logger_{'exits' if content else 'folder'}"
    (tmp_path / name).mkdir()
    if content:
        (tmp_path / name / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(dreamer_mpc.runs.logger.PACKAGES, name, name)
    with contextlib.nullcontext() if content else pytest.raises(UserError, match=f"pip install {name}"):
        check_backend(name)


class Disk:
    """The file of metrics, which accepts `free` more bytes."""

    def __init__(self, file):
        self.file, self.free = file, 10**9

    def write(self, data):
        if not self.free:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(data[: self.free])
        self.free -= taken
        return taken

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_records_wait_for_a_full_disk(folder):
    lines = []
    with Logger(folder, notify=lines.append) as logger:
        disk = logger._file = Disk(logger._file)
        logger.write(counters(1), {})
        whole = folder.metrics.read_bytes()
        disk.free = 20  # half a line
        for env_steps in (2, 3):
            logger.write(counters(env_steps), {})
            assert folder.metrics.read_bytes() == whole
        assert len(lines) == 1 and "No space left on device" in lines[0] and "wait in memory" in lines[0]
        disk.free = 10**9
        logger.write(counters(4), {})
        assert env_steps_in(folder) == [1, 2, 3, 4] and logger.records == 4
        assert len(lines) == 2 and "written again: 3 records" in lines[1]
        disk.free = 0
        logger.write(counters(5), {})
    assert env_steps_in(folder) == [1, 2, 3, 4]
    assert len(lines) == 4 and "the last 1 records" in lines[3]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_kernels_own_full_disk(folder):
    lines = []
    with Logger(folder, notify=lines.append) as logger:
        logger._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115, the logger closes it
        logger.write(counters(1), {})
    assert len(lines) == 2 and "No space left on device" in lines[0]


# memory


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
])  # fmt: skip
def test_out_of_memory_names_what_to_lower_and_saves_what_was_trained(tmp_path, monkeypatch, error):
    update, calls = Dreamer._update, itertools.count(1)

    def fail(agent, batch):
        if next(calls) > 4:
            raise error
        return update(agent, batch)

    monkeypatch.setattr(Dreamer, "_update", fail)
    output = train(*RUN, "--run-dir", tmp_path / "run", code=2)
    last = output.splitlines()[-1]
    assert last.startswith("error: out of memory") and "--replay.batch-size" in last and "--replay.storage" in last
    assert load_checkpoint(tmp_path / "run").counters.updates == 4, "a checkpoint is written then"


def test_out_of_memory_in_an_evaluation(tmp_path, monkeypatch, capsys):
    train(*RUN, "--run-dir", tmp_path / "run")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Dreamer, "_act", fail)
    assert program.main(["eval", "--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--no-video"]) == 2
    assert "--num-envs" in capsys.readouterr().err


# errors that are not the user's


@pytest.mark.parametrize(
    ("error", "code", "words", "saved"),
    [
        (RuntimeError("mat1 and mat2\nshapes"), 1, "RuntimeError: mat1 and mat2; ", False),
        (SystemExit(0), 1, "something ended the program from within (SystemExit: 0); ", True),
        (KeyboardInterrupt(), 130, "interrupted", True),
    ],
    ids=["bug", "exit", "interrupt"],
)
def test_an_error_of_the_code_is_one_line_with_a_traceback_in_the_run_folder(
    error, code, words, saved, tmp_path, monkeypatch
):
    """What others raise to end the program is so too, and what was trained by then is saved."""
    update, calls = Dreamer._update, itertools.count(1)

    def fail(agent, batch):
        if next(calls) > 4:
            raise error
        return update(agent, batch)

    monkeypatch.delenv("DREAMER_MPC_TRACEBACK")
    monkeypatch.setattr(Dreamer, "_update", fail)
    folder = tmp_path / "run"
    done = quietly(*RUN, "--run-dir", folder)
    assert done.code == code and words in done.err and len(done.err.strip().splitlines()) == 1
    if saved:
        assert load_checkpoint(folder).counters.updates == 4
    if code == 1:
        kept = folder / "traceback.txt"
        assert str(kept) in done.err and "in fail" in kept.read_text() and "dreamer-mpc" in kept.read_text()


def test_without_a_run_folder_the_traceback_is_a_temporary_file_or_printed(tmp_path, monkeypatch):
    def fail(args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(program, "command", lambda word: fail)
    with pytest.raises(ZeroDivisionError):
        quietly("plot")
    monkeypatch.delenv("DREAMER_MPC_TRACEBACK")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done = quietly("plot")
    (kept,) = tmp_path.iterdir()
    assert done.code == 1 and str(kept) in done.err and done.err.count("\n") == 1
    assert "in fail" in kept.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    done = quietly("plot")
    assert done.code == 1 and "in fail" in done.err


# pictures


@pytest.mark.parametrize("error", [RuntimeError("no ffmpeg"), ValueError("no backend"), OSError(28, "No space left")])
def test_what_goes_wrong_with_pictures_costs_the_pictures(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    for name in ("write_mp4", "decision_picture"):
        monkeypatch.setattr(dreamer_mpc.evaluation.visualize, name, fail)
    folder = RunFolder(tmp_path / "run")
    said = train(*RUN, "--eval.video", "--planner", "dream-mpc", "--run-dir", folder.path)
    for what in ("video", "picture"):
        assert len(re.findall(f"no {what} of .*, dream-mpc, 32 env steps:", said)) == 1
    assert str(error.args[-1]) in said and env_steps_in(folder)[-1] == 32
    assert not any(folder.videos.glob("*"))


def test_a_profile_that_cannot_be_written_costs_the_profile(tmp_path):
    said = []
    profiler = Profiler(tmp_path / "file" / "profile", torch.device("cpu"), True, said.append)
    (tmp_path / "file").write_text("no folder")
    for _ in range(30):
        profiler.before_update(1)
        profiler.after_step()
    profiler.close()
    assert len(said) == 1 and said[0].startswith("no profile: ")
