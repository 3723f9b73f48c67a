"""The replay on disk: when frames are written, and that they are restored."""


import numpy as np
import pytest
import torch

from dreamer_mpc.data.files import ReplayFiles, check_files
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.util.errors import UserError
from tests.support.replays import ACTION_DIM, SHAPE, append, as_before, make_replay, marked, same, sampled


def fill(replay, rng, frames, numbers, held):
    """Append `frames` random steps; `held` is the newest (episode, step) of each stream."""
    for _ in range(frames):
        rows = rng.permutation(replay.streams)[: rng.integers(1, replay.streams + 1)]
        for row in rows:
            number, step = held.get(row, (None, 0))
            goes_on = number is not None and rng.random() < 0.9
            held[row] = (number, step + 1) if goes_on else (next(numbers), 0)
        append(replay, rows, [held[row] for row in rows])


def copy_of(replay, files, capacity, folder, **settings):
    """Another replay, restored from the files."""
    other = Replay(capacity, ACTION_DIM, replay.streams, SHAPE, seed=99, **settings)
    other.load_state_dict(replay.state_dict())
    ReplayFiles(folder, other).load_state_dict(files.state_dict())
    return other


def draws(replay, length=3):
    return [replay.sample(50, length) for _ in range(5)]


@pytest.mark.parametrize("capacity, streams", [(60, 1), (90, 3), (2000, 2)])
@pytest.mark.parametrize("storage", ["ram", "memmap"])
def test_a_replay_comes_back_as_it_was(capacity, streams, storage, tmp_path):
    rng, numbers, held = np.random.default_rng(capacity), iter(range(10**6)), {}
    replay = make_replay(capacity, streams=streams, seed=1)
    files = ReplayFiles(tmp_path / "replay", replay)
    settings = {"memmap": tmp_path / "replay.bin"} if storage == "memmap" else {}
    for _ in range(6):
        fill(replay, rng, int(rng.integers(1, 60)), numbers, held)
        files.write()
        files.forget(files.needed())
        other = copy_of(replay, files, capacity, tmp_path / "replay", **settings)
        assert (len(other), other.episodes) == (len(replay), replay.episodes)
        state = replay.state_dict()
        for a, b in zip(draws(replay), draws(other)):
            assert same(a, b)
        replay.load_state_dict(state)
    fill(replay, rng, 100, numbers, held)
    sampled(replay.sample(500, 3))


def test_each_frame_is_written_once(tmp_path):
    replay = make_replay(1000, [100], streams=2)
    files = ReplayFiles(tmp_path, replay)
    sizes = []
    for number in range(1, 6):
        files.write()
        files.write()  # no new frames
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        for step in range(100):
            append(replay, [number % 2], [(number, step)])
    assert len(list(tmp_path.iterdir())) == 5
    grown = np.diff([0, *sizes])
    assert np.ptp(grown) < 20, "as much for the fifth hundred frames as for the first"


def test_large_replays_are_written_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer_mpc.data.files.MOST_FRAMES", 16)
    replay = make_replay(100, [30, 45], streams=2)
    files = ReplayFiles(tmp_path, replay)
    files.write()
    assert [sum(chunk.ends) - sum(chunk.starts) for chunk in files.chunks] == [16, 16, 16, 14, 8, 5]
    assert same(*(x.sample(99, 4) for x in (copy_of(replay, files, 100, tmp_path), replay)))


@pytest.mark.parametrize("capacity", [30, 47, 200])
def test_a_ring_of_another_size_keeps_what_it_can(capacity, tmp_path):
    replay = make_replay(60, [17, 18, 19, 25])  # all but the first 19 frames
    files = ReplayFiles(tmp_path, replay)
    files.write()
    other = copy_of(replay, files, capacity, tmp_path)
    kept = min(capacity, 60)
    assert len(other) == kept
    frames = [(number, step) for number, length in enumerate([17, 18, 19, 25]) for step in range(length)][-kept:]
    assert set(sampled(other.sample(3000, 1))) == set(frames)
    for step in range(200):
        append(other, [0], [(9, step)])
    assert set(sampled(other.sample(3000, 1))) == {(9, step) for step in range(200 - min(capacity, 200), 200)}


def test_frames_that_no_ring_holds_are_removed(tmp_path):
    replay = make_replay(50)
    files = ReplayFiles(tmp_path, replay)
    for number in range(10):
        for step in range(20):
            append(replay, [0], [(number, step)])
        files.write()
        files.forget(files.needed())
    assert [chunk.number for chunk in files.chunks] == [7, 8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == [chunk.name for chunk in files.chunks]


def test_what_a_killed_save_left_is_removed(tmp_path):
    replay = make_replay(50, [20])
    (tmp_path / ".chunk-000001.tmp.safetensors").write_bytes(b"half")
    (tmp_path / "chunk-000007.safetensors").write_bytes(b"of a history that was given up")
    (tmp_path / "mine.txt").write_text("")
    files = ReplayFiles(tmp_path, replay)
    files.write()
    files.forget(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunk-000000.safetensors", "mine.txt"]


def test_a_refused_write_is_made_up_for_by_the_next(tmp_path, monkeypatch):
    replay = make_replay(100, [20])
    files = ReplayFiles(tmp_path / "replay", replay)
    (tmp_path / "replay").write_text("in the way")
    with pytest.raises(UserError, match="cannot write replay .*chunk-000000") as error:
        files.write()
    assert "\n" not in str(error.value)
    (tmp_path / "replay").unlink()
    append(replay, [0], [(0, 20)])
    files.write()
    assert [(chunk.starts, chunk.ends) for chunk in files.chunks] == [([0], [21])]


@pytest.mark.parametrize("before, capacity", [(45, 200), (45, 40)])
def test_files_that_do_not_tell_where_episodes_terminate_are_read_and_gone_on_with(before, capacity, tmp_path):
    """Old frames are not terminal; new frames, also of the same episode, keep their flag."""
    replay = make_replay(200)
    files = ReplayFiles(tmp_path, replay)
    for step in range(before):
        append(replay, [0], [(0, step)])
        if step in (19, before - 1):
            files.write()
    state = as_before(tmp_path, files.state_dict())
    check_files(tmp_path, state, [0])
    resumed = Replay(capacity, ACTION_DIM, 1, SHAPE)
    resumed._frames["is_terminal"].fill_(True)  # any old content
    resumed.load_state_dict(replay.state_dict())
    files = ReplayFiles(tmp_path, resumed)
    files.load_state_dict(state)
    batch = resumed.sample(500, 3)
    assert not batch.is_terminal.any()
    sampled(batch._replace(is_terminal=marked(*batch.action.unbind(-1))))
    for step in range(before, before + 20):
        append(resumed, [0], [(0, step)])
    files.write()
    assert len(files.chunks) == 3
    other = copy_of(resumed, files, capacity, tmp_path)
    for each in (resumed, other):
        batch = each.sample(2000, 3)
        number, step = batch.action.unbind(-1)
        assert torch.equal(batch.is_terminal, marked(number, step) & (step >= before))
        assert batch.is_terminal.any() and (step < before).any()


def test_every_flipped_or_missing_byte_is_noticed(tmp_path):
    replay = make_replay(20, [9])
    files = ReplayFiles(tmp_path, replay)
    files.write()
    state, [path] = files.state_dict(), tmp_path.iterdir()
    content = path.read_bytes()
    check_files(tmp_path, state, [0])
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(UserError, match="chunk-000000.safetensors, .*is damaged"):
            check_files(tmp_path, state, [0])
        path.write_bytes(content[:position])
        with pytest.raises(UserError, match="damaged"):
            check_files(tmp_path, state, [0])
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        check_files(tmp_path, state, [0])
    check_files(tmp_path, state, [9])  # its frames are not needed


def test_a_dropped_episode_is_not_sampled_nor_its_frames_lost_to_others(tmp_path):
    replay = make_replay(100, [12, 12, 12], streams=2)  # stream 0: episodes 0 and 2
    replay.drop(np.array([0]))
    assert {number for number, _ in sampled(replay.sample(500, 3))} == {0, 1}
    append(replay, [0], [(7, 0)])
    for step in range(1, 5):
        append(replay, [0], [(7, step)])
    files = ReplayFiles(tmp_path, replay)
    files.write()
    other = copy_of(replay, files, 100, tmp_path)
    assert {number for number, _ in sampled(other.sample(500, 3))} == {0, 1, 7}
    with pytest.raises(ValueError, match="first frame"):
        replay.drop(np.array([1]))
        append(replay, [1], [(1, 12)])
