"""What replay stores and samples, with frames that encode their episode and step."""

from collections import Counter, deque

import numpy as np
import pytest
import torch

from dreamer_mpc.data.replay import ReplayConfig, frame_bytes
from dreamer_mpc.util.errors import UserError
from tests.support.replays import ACTION_DIM, SHAPE, add_episode, append, make_replay, same, sampled


@pytest.mark.parametrize("streams", [1, 3])
def test_each_frame_is_stored_once(streams):
    replay = make_replay(100, [7, 5, 9], streams)
    assert (len(replay), replay.episodes) == (21, 3)
    starts = set(sampled(replay.sample(2000, 1)))
    assert starts == {(number, t) for number, length in enumerate([7, 5, 9]) for t in range(length)}
    index = replay.sample(2000, 1).index
    assert index.unique().numel() == 21


@pytest.mark.parametrize("streams", [1, 3])
def test_index_names_the_same_frame_each_time(streams):
    replay = make_replay(100, [7, 5, 9], streams)
    names = {}
    for _ in range(20):
        batch = replay.sample(50, 4)
        for index, reward in zip(batch.index.flatten().tolist(), batch.reward.flatten().tolist()):
            assert names.setdefault(index, reward) == reward
    assert len(set(names.values())) == len(names) == 21


def test_a_batch_has_replay_s_shapes_and_types():
    batch = make_replay(50, [20]).sample(5, 3)
    assert batch.state is None
    shapes = [(tuple(x.shape), x.dtype) for x in batch[:-1]]
    assert shapes == [
        ((3, 5, *SHAPE), torch.uint8),
        ((3, 5, ACTION_DIM), torch.float32),
        ((3, 5), torch.float32),
        ((3, 5), torch.bool),
        ((3, 5), torch.bool),
        ((3, 5), torch.int64),
    ]


@pytest.mark.parametrize("streams", [1, 2])
def test_starts_are_uniform_over_every_place_that_fits(streams):
    replay = make_replay(100, [12, 3, 5, 20], streams, seed=3)
    counts = Counter()
    for _ in range(20):
        counts.update(sampled(replay.sample(1000, 5)))
    assert set(counts) == {(0, t) for t in range(8)} | {(2, 0)} | {(3, t) for t in range(16)}
    assert_uniform(counts)


def assert_uniform(counts):
    expected = counts.total() / len(counts)
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = len(counts) - 1
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 6, "about the 99.9 % quantile"


@pytest.mark.parametrize(
    "capacity, streams, episode_length", [(50, 1, 21), (53, 2, 12), (64, 5, 9), (9, 1, 3), (20, 1, 40)]
)
def test_a_replay_is_what_plain_lists_say(capacity, streams, episode_length):
    """Random appends to random streams: the frames that a stream still holds determine what may be sampled.

    Episodes in progress are among them, and in the last case some that are longer than the replay.
    """
    rng, replay = np.random.default_rng(capacity), make_replay(capacity, streams=streams)
    size, numbers, written = capacity // streams, iter(range(10**6)), 0
    held = [deque(maxlen=size) for _ in range(streams)]  # (episode, step)
    while written < 25 * capacity:
        rows = rng.permutation(streams)[: rng.integers(1, streams + 1)]
        frames = []
        for row in rows:
            goes_on = held[row] and held[row][-1][1] + 1 < rng.integers(1, 2 * episode_length)
            frames.append((held[row][-1][0], held[row][-1][1] + 1) if goes_on else (next(numbers), 0))
            held[row].append(frames[-1])
        append(replay, rows, frames)
        written += len(rows)
        if rng.random() < 0.8:
            continue
        everything = {frame for stream in held for frame in stream}
        assert len(replay) == len(everything)
        assert replay.episodes == len({number for number, _ in everything})
        starts = {(number, t) for number, t in everything if {(number, t + k) for k in range(3)} <= everything}
        if starts:
            seen = Counter(sampled(replay.sample(40 * len(starts), 3)))
            assert set(seen) == starts, "every place, and no other"
            assert_uniform(seen)


@pytest.mark.parametrize("capacity, streams", [(1000, 2), (40, 2), (23, 1)])
def test_across_episodes_every_place_of_a_stream_is_drawn_alike(capacity, streams):
    """Also the last frames of an episode with the first of the next one, and episodes shorter than a sequence."""
    lengths, length = [12, 3, 5, 20, 2, 9, 1], 6
    replay = make_replay(capacity, lengths, streams, seed=3, across_episodes=True)
    rows = [[(n, t) for n, frames in enumerate(lengths) if n % streams == row for t in range(frames)]
            [-(capacity // streams):] for row in range(streams)]  # fmt: skip
    places = {tuple(row[k : k + length]) for row in rows for k in range(len(row) - length + 1)}
    seen = Counter()
    for _ in range(20):
        batch = replay.sample(1000, length)
        assert torch.equal(batch.is_first, batch.action[..., 1] == 0)
        seen.update(tuple(map(tuple, sequence)) for sequence in batch.action.int().movedim(1, 0).tolist())
    assert set(seen) == places, "every place, and no other"
    assert_uniform(seen)


def test_first_frames_are_rare_in_sequences_of_one_episode_and_not_across_episodes():
    """What the agent has to do at an episode's start is learned from these frames."""
    share = {}
    for across in (False, True):
        replay = make_replay(2000, [101] * 10, across_episodes=across)
        share[across] = replay.sample(4000, 50).is_first.float().mean().item()
    assert share[False] == pytest.approx(1 / 52 / 50, rel=0.5)
    assert share[True] == pytest.approx(1 / 101, rel=0.1)


def test_no_sequence_reaches_over_a_dropped_episode():
    replay = make_replay(1000, [7, 8], across_episodes=True)
    add_episode(replay, 2, 6)
    replay.drop(np.array([0]))
    add_episode(replay, 3, 9)
    add_episode(replay, 4, 4)
    sequences = replay.sample(3000, 5).action[..., 0].int().T.tolist()
    assert {tuple(sorted(set(row))) for row in sequences} == {(0,), (0, 1), (1,), (3,), (3, 4)}
    assert make_replay(1000, [3, 3], across_episodes=True).sample(9, 6).is_first.sum() == 18


def test_across_episodes_too_few_frames_are_one_line_with_a_remedy():
    with pytest.raises(UserError, match="no sequence of episodes in replay has 5 frames .the longest has 4") as error:
        make_replay(50, [3, 1], across_episodes=True).sample(2, 5)
    assert "\n" not in str(error.value)


def test_thousands_of_episodes_stay_cheap_to_keep():
    replay = make_replay(500, streams=2)
    for number in range(3000):
        append(replay, [0, 1], [(2 * number, 0), (2 * number + 1, 0)])
    assert replay.episodes == 500
    assert len(replay._episodes._table) < 2500


def test_a_stream_begins_with_an_episode_s_first_frame():
    with pytest.raises(ValueError, match="first frame"):
        append(make_replay(10), [0], [(0, 1)])


def test_a_replay_without_a_frame_for_each_stream_is_refused():
    with pytest.raises(ValueError, match="3 frames has none for each of 4 streams"):
        make_replay(3, streams=4)


@pytest.mark.parametrize("lengths, longest", [([], 0), ([3, 4], 4)])
def test_too_short_episodes_are_one_line_with_a_remedy(lengths, longest):
    with pytest.raises(UserError, match=f"has 5 frames .the longest has {longest}.*sequence-length") as error:
        make_replay(50, lengths).sample(2, 5)
    assert "\n" not in str(error.value)


def test_a_memory_map_holds_what_ram_holds(tmp_path):
    path = tmp_path / "run" / "replay.bin"
    lengths = [7, 12, 9, 14, 8, 11]
    ram, disk = make_replay(40, lengths, 2, seed=1), make_replay(40, lengths, 2, seed=1, memmap=path)
    for _ in range(5):
        assert same(ram.sample(8, 4), disk.sample(8, 4))
    assert path.stat().st_size == 40 * int(np.prod(SHAPE))
    on_disk = np.fromfile(path, np.uint8).reshape(2, 20, *SHAPE)
    batch = disk.sample(8, 4)
    position, stream = np.divmod(batch.index.numpy(), 2)
    assert (on_disk[stream, position % 20] == batch.image.numpy()).all()


def test_the_same_seed_samples_the_same():
    draws = []
    for seed in (5, 5, 6):
        replay = make_replay(100, [20, 30], seed=seed)
        draws.append([replay.sample(16, 5).index for _ in range(3)])
    assert all(map(torch.equal, draws[0], draws[1]))
    assert not torch.equal(draws[0][0], draws[2][0])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_sampling_leaves_torch_s_generator_alone():
    replay, before = make_replay(50, [20]), torch.get_rng_state()
    replay.sample(4, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_is_a_copy():
    replay = make_replay(20, [20])
    batch = replay.sample(4, 5)
    before = batch.reward.clone()
    add_episode(replay, 1, 20)
    assert torch.equal(batch.reward, before)


@pytest.mark.parametrize("setting", ["capacity", "batch_size", "sequence_length"])
def test_settings_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=setting):
        ReplayConfig(**{setting: 0})


def test_frame_bytes_are_what_is_allocated():
    replay = make_replay(10)
    allocated = sum(x.numel() * x.element_size() for x in replay._frames.values())
    assert allocated == 10 * frame_bytes(ACTION_DIM, SHAPE)
