"""Latent states beside the frames of a replay: which one a sequence starts from, and that they are saved."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dreamer_mpc.config import load_presets
from dreamer_mpc.data.files import ReplayFiles
from dreamer_mpc.data.replay import Replay, frame_bytes
from dreamer_mpc.data.states import StoredStates
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.training.setup import _make_replay
from tests.support.agents import make_agent
from tests.support.replays import ACTION_DIM, SHAPE, append

S = 3


def value(number, step):
    """The state of a frame: whole numbers up to 256 are exact in bf16."""
    return [float(number), float(step), 1.0]


def fill(replay, lengths, known=lambda number, step: True):
    """Episode n in stream n modulo streams; the state of every frame for which `known`."""
    for number, length in enumerate(lengths):
        row = number % replay.streams
        for step in range(length):
            append(replay, [row], [(number, step)])
            if known(number, step):
                states = torch.zeros(replay.streams, S)
                states[row] = torch.tensor(value(number, step))
                replay.remember(np.array([row]), states)


def make(capacity=1000, streams=2, **settings):
    return Replay(capacity, ACTION_DIM, streams, SHAPE, state_dim=S, **settings)


def check(batch, known=lambda number, step: True):
    """Every sequence starts with the state of the frame before it, or zeros where that is unknown."""
    for number, step, state in zip(*batch.action[0].int().T.tolist(), batch.state.tolist(), strict=True):
        if step > 0:
            assert state == (value(number, step - 1) if known(number, step - 1) else [0.0] * S), (number, step)


def test_a_sequence_starts_from_the_state_of_the_frame_before_it():
    replay, known = make(seed=1), lambda number, step: step % 3 != 1
    fill(replay, [20, 15, 30, 9], known)
    check(replay.sample(500, 4), known)


def test_the_state_before_the_oldest_frame_is_not_that_of_the_frame_in_its_slot():
    replay = make(capacity=40, streams=2, seed=1)
    fill(replay, [50, 33])
    batch = replay.sample(500, 3)
    first = replay.oldest + 1  # positions are steps here: one episode for each stream
    at_oldest = batch.action[0, :, 1] == torch.tensor(first - 1)[batch.action[0, :, 0].long()]
    assert at_oldest.any() and (batch.state[at_oldest] == 0).all()
    check(batch._replace(action=batch.action[:, ~at_oldest], state=batch.state[~at_oldest]))


def test_a_new_frame_in_a_slot_has_no_state():
    replay = make(capacity=10, streams=1)
    fill(replay, [10])
    fill(replay, [5], known=lambda number, step: False)  # overwrites the first half
    batch = replay.sample(200, 2)
    new = batch.action[0, :, 1] > 0
    young = new & (replay.look_up(batch.index[0])["reward"] == batch.reward[0])
    assert young.any()
    known = replay.states.known
    assert known.tolist() == [False] * 5 + [True] * 5


def test_updates_refresh_the_states_of_sampled_frames():
    replay = make(seed=3)
    fill(replay, [30, 30])
    batch = replay.sample(64, 5)
    newer = torch.stack([batch.action[..., 0], batch.action[..., 1], torch.full_like(batch.reward, 7.0)], -1)
    replay.refresh(batch.index, newer)
    refreshed = set(batch.index.flatten().tolist())
    again = replay.sample(500, 2)
    for index, state, step in zip(again.index[0].tolist(), again.state.tolist(), again.action[0, :, 1].tolist()):
        if step > 0:
            assert state[2] == (7.0 if index - replay.streams in refreshed else 1.0)


def test_of_a_frame_in_several_columns_the_last_state_stays():
    replay = make(streams=1)
    fill(replay, [10])
    index = torch.tensor([[3, 3, 3]])
    replay.refresh(index, torch.tensor([[[1.0] * S, [2.0] * S, [3.0] * S]]))
    assert replay.states.state[3].tolist() == [3.0] * S


@pytest.mark.parametrize("shape", [(6, 5), (3, 40), (1, 9)])
def test_states_of_overlapping_sequences_are_those_of_writing_one_column_after_the_other(shape):
    torch.manual_seed(0)
    steps, columns = shape
    slots = (torch.randint(12, (columns,)) + torch.arange(steps)[:, None]) % 12  # a frame is in a sequence once
    states = torch.randn(*shape, S)
    at_once, one_by_one = StoredStates(12, S), StoredStates(12, S)
    for column, values in zip(slots.unbind(-1), states.unbind(-2), strict=True):
        one_by_one.state[column] = values.bfloat16()
        one_by_one.known[column] = True
    at_once.store(slots, states)
    assert torch.equal(at_once.state, one_by_one.state) and torch.equal(at_once.known, one_by_one.known)


class Numbers(TorchDispatchMode):
    """Counts the numbers that are read out of tensors: on a GPU the host waits for each of them."""

    read = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.read += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_steps_and_updates_wait_for_no_number():
    replay, rows = make(), np.arange(2)
    append(replay, rows, [(0, 0), (1, 0)])
    with Numbers() as numbers:
        for step in range(1, 9):
            replay.remember(rows, torch.ones(2, S))
            append(replay, rows, [(0, step), (1, step)])
        batch = replay.sample(4, 5)
        replay.refresh(batch.index, torch.zeros(5, 4, S))
    assert numbers.read == 0


def test_a_state_that_is_not_finite_is_as_if_unknown():
    replay = make(streams=1)
    fill(replay, [10])
    replay.refresh(torch.tensor([[3]]), torch.tensor([[[1.0, torch.nan, 2.0]]]))
    batch = replay.sample(100, 4)
    after = batch.action[0, :, 1] == 4
    assert after.any() and (batch.state[after] == 0).all()
    check(batch._replace(action=batch.action[:, ~after], state=batch.state[~after]))


def test_a_replay_without_states_gives_none():
    replay = Replay(100, ACTION_DIM, 1, SHAPE)
    for step in range(10):
        append(replay, [0], [(0, step)])
    assert replay.sample(4, 3).state is None and replay.states is None


def test_frame_bytes_count_the_state():
    replay = make(capacity=100)
    stored = [*replay._frames.values(), *vars(replay.states).values()]
    assert sum(x.nbytes for x in stored) == 100 * frame_bytes(ACTION_DIM, SHAPE, S)


def test_states_come_back_from_their_file(tmp_path):
    replay = make(capacity=40, seed=1)
    fill(replay, [50, 33, 9], known=lambda number, step: step % 4 > 0)
    files = ReplayFiles(tmp_path, replay)
    files.write()
    saved = files.write_states(last=False)
    for capacity in (40, 200):
        other = make(capacity)
        other.load_state_dict(replay.state_dict())
        restored = ReplayFiles(tmp_path, other)
        restored.load_state_dict(files.state_dict())
        assert restored.read_states(saved)
        bounds = (replay.oldest, replay.written)
        for name, values in replay.read_states(*bounds).items():
            assert torch.equal(values, other.read_states(*bounds)[name])


@pytest.mark.parametrize("damage", ["missing", "flipped", "not named", "of another size"])
def test_states_that_were_not_saved_or_are_damaged_are_unknown(damage, tmp_path):
    replay = make()
    fill(replay, [20, 20])
    files = ReplayFiles(tmp_path, replay)
    files.write()
    saved = files.write_states(last=False)
    (path,) = tmp_path.glob("states-*")
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    elif damage == "not named":
        saved = {}
    else:
        saved["ends"] = [end + 5 for end in saved["ends"]]
    other = make()
    other.load_state_dict(replay.state_dict())
    restored = ReplayFiles(tmp_path, other)
    restored.load_state_dict(files.state_dict())
    assert not restored.read_states(saved)
    assert not other.states.known.any()


def test_many_states_are_written_only_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer_mpc.data.files.SMALL_STATES", 10)
    replay = make()
    fill(replay, [20])
    files = ReplayFiles(tmp_path, replay)
    assert files.write_states(last=False) == {} and not list(tmp_path.iterdir())
    assert files.write_states(last=True) and len(list(tmp_path.iterdir())) == 1


def test_files_of_replays_without_states_are_what_they_were(tmp_path):
    files = ReplayFiles(tmp_path, Replay(100, ACTION_DIM, 1, SHAPE))
    assert files.write_states(last=True) == {}


@pytest.mark.parametrize("presets, across", [("default", False), ("v3", True), ("v3-small", True)])
def test_runs_of_v3_sample_across_episodes(presets, across, tmp_path):
    config = replace(load_presets(presets), env_steps=2000)
    agent = make_agent()
    with contextlib.ExitStack() as opened:
        replay, _ = _make_replay(config, RunFolder(tmp_path), 3200, agent, opened)
    assert replay.across_episodes == across
