"""What replay stores and what it samples, with episodes whose frames say which they are."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from dreamer_mpc.errors import UserError
from dreamer_mpc.replay import GIB, Episode, Replay, ReplayConfig, choose_storage, frame_bytes

SHAPE = (2, 2, 3)
ACTION_DIM = 2


def make_episode(number, length):
    """Frame t: action (number, t), reward 1000 number + t, image of `number` and t modulo 256."""
    steps = np.arange(length)
    image = np.zeros((length, *SHAPE), np.uint8)
    image[..., 0], image[..., 1] = number % 256, steps[:, None, None] % 256
    action = np.stack([np.full(length, number), steps], 1).astype(np.float32)
    return Episode(image, action, (1000 * number + steps).astype(np.float32), steps == 0)


def make_replay(capacity, lengths=(), **settings):
    replay = Replay(capacity, ACTION_DIM, SHAPE, **settings)
    for number, length in enumerate(lengths):
        replay.add(make_episode(number, length))
    return replay


def sampled(batch):
    """(episode, first step) of each sequence, each checked to be consecutive steps of one episode."""
    number, step = batch.action.unbind(-1)  # [T, B]
    assert (number == number[0]).all()
    assert (step == step[0] + torch.arange(len(step))[:, None]).all()
    assert torch.equal(batch.reward, 1000 * number + step)
    assert torch.equal(batch.is_first, step == 0)
    assert (batch.image[..., 0] == (number % 256)[..., None, None]).all()
    assert (batch.image[..., 1] == (step % 256)[..., None, None]).all()
    return list(zip(number[0].int().tolist(), step[0].int().tolist()))


def test_each_frame_is_stored_once():
    replay = make_replay(100, [7, 5, 9])
    assert (len(replay), replay.episodes) == (21, 3)
    starts = set(sampled(replay.sample(2000, 1)))
    assert starts == {(number, t) for number, length in enumerate([7, 5, 9]) for t in range(length)}
    index = replay.sample(2000, 1).index
    assert index.unique().numel() == 21


def test_index_names_the_same_frame_each_time():
    replay = make_replay(100, [7, 5, 9])
    names = {}
    for _ in range(20):
        batch = replay.sample(50, 4)
        for index, reward in zip(batch.index.flatten().tolist(), batch.reward.flatten().tolist()):
            assert names.setdefault(index, reward) == reward
    assert len(set(names.values())) == len(names) == 21


def test_a_batch_has_replay_s_shapes_and_types():
    batch = make_replay(50, [20]).sample(5, 3)
    shapes = [(tuple(x.shape), x.dtype) for x in batch]
    assert shapes == [
        ((3, 5, *SHAPE), torch.uint8),
        ((3, 5, ACTION_DIM), torch.float32),
        ((3, 5), torch.float32),
        ((3, 5), torch.bool),
        ((3, 5), torch.int64),
    ]


def test_starts_are_uniform_over_every_place_that_fits():
    replay = make_replay(100, [12, 3, 5, 20], seed=3)
    counts = Counter()
    for _ in range(20):
        counts.update(sampled(replay.sample(1000, 5)))
    assert set(counts) == {(0, t) for t in range(8)} | {(2, 0)} | {(3, t) for t in range(16)}
    expected = 20_000 / 25
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 51.2, "99.9 % quantile of 24 degrees of freedom"


@pytest.mark.parametrize("capacity", [50, 53, 64])
def test_sequences_never_cross_an_episode_or_the_write_head(capacity):
    rng, replay = np.random.default_rng(capacity), make_replay(capacity)
    added, stored = 0, []
    for number in range(200):
        length = int(rng.integers(4, 22))
        added += length
        replay.add(make_episode(number, length))
        stored.append((number, length))
        assert len(replay) <= capacity
        stored = stored[-replay.episodes :]  # the newest, whole
        assert len(replay) == sum(length for _, length in stored)
        starts = {(episode, t) for episode, length in stored for t in range(length - 3)}
        assert set(sampled(replay.sample(300, 4))) <= starts
        if number % 30 == 0:
            assert set(sampled(replay.sample(3000, 4))) == starts, "every stored place is sampled"
    assert added > 30 * capacity


@pytest.mark.parametrize("length", [1, 7, 10, 25, 50])
def test_a_full_ring_keeps_whole_episodes_of_equal_length(length):
    replay = make_replay(50, [length] * (3 * 50 // length + 1))
    assert replay.episodes == 50 // length, "no room is lost but the rest at the end"


def test_an_episode_may_fill_the_whole_replay():
    replay = make_replay(20, [8, 20])
    assert (len(replay), replay.episodes) == (20, 1)
    assert {number for number, _ in sampled(replay.sample(50, 20))} == {1}


def test_an_episode_longer_than_the_replay_is_refused_and_nothing_lost():
    replay = make_replay(20, [8])
    with pytest.raises(ValueError, match="21 frames does not fit a replay of 20"):
        replay.add(make_episode(1, 21))
    assert (len(replay), replay.episodes) == (8, 1)
    sampled(replay.sample(50, 8))


@pytest.mark.parametrize("lengths, longest", [([], 0), ([3, 4], 4)])
def test_too_short_episodes_are_one_line_with_a_remedy(lengths, longest):
    with pytest.raises(UserError, match=f"has 5 frames .the longest has {longest}.*sequence-length") as error:
        make_replay(50, lengths).sample(2, 5)
    assert "\n" not in str(error.value)


def test_a_memory_map_holds_what_ram_holds(tmp_path):
    path = tmp_path / "run" / "replay.bin"
    lengths = [7, 12, 9, 14, 8, 11]
    ram, disk = make_replay(40, lengths, seed=1), make_replay(40, lengths, seed=1, memmap=path)
    for _ in range(5):
        for a, b in zip(ram.sample(8, 4), disk.sample(8, 4)):
            assert torch.equal(a, b)
    assert path.stat().st_size == 40 * int(np.prod(SHAPE))
    on_disk = np.fromfile(path, np.uint8).reshape(40, *SHAPE)
    batch = disk.sample(8, 4)
    assert (on_disk[batch.index.numpy()] == batch.image.numpy()).all()


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
    replay.add(make_episode(1, 20))
    assert torch.equal(batch.reward, before)


@pytest.mark.parametrize("setting", ["capacity", "batch_size", "sequence_length"])
def test_settings_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=setting):
        ReplayConfig(**{setting: 0})


def test_a_capacity_below_a_sequence_is_refused():
    with pytest.raises(ValueError, match="a sequence of 50"):
        ReplayConfig(capacity=49)


# where it goes

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """10 GiB of RAM, 20 GiB of disk."""
    disk = shutil.disk_usage("/")
    monkeypatch.setattr("dreamer_mpc.replay.available_memory", lambda: 10 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=20 * GIB))


def test_frame_bytes_are_what_is_allocated():
    replay = make_replay(10)
    allocated = sum(x.numel() * x.element_size() for x in replay._frames.values())
    assert allocated == 10 * frame_bytes(ACTION_DIM, SHAPE)


@pytest.mark.parametrize("storage", ["auto", "ram"])
def test_ram_is_taken_where_it_fits(free, tmp_path, storage):
    device, memmap, line = choose_storage(storage, int(8.9 * GIB), CPU, tmp_path)
    assert (device, memmap) == (CPU, None)
    assert "8.90 GiB in RAM (10 GiB available)" in line


@pytest.mark.parametrize("folder", [".", "not/yet"])
def test_a_memory_map_is_taken_where_it_fits(free, tmp_path, folder):
    device, memmap, line = choose_storage("memmap", int(17 * GIB), CPU, tmp_path / folder)
    assert (device, memmap) == (CPU, tmp_path / folder / "replay.bin")
    assert str(memmap) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "storage, gib, words",
    [
        ("ram", 9.1, r"9\.10 GiB does not fit RAM: 10\.00 GiB available; .*memmap"),
        ("auto", 9.1, r"9\.10 GiB does not fit RAM: 10\.00 GiB available; .*memmap"),
        ("memmap", 18.1, r"18\.10 GiB does not fit the disk .*20\.00 GiB free; .*capacity.*ram"),
        ("gpu", 0.1, r"--replay\.storage gpu needs a CUDA device, this run is on cpu: use ram or memmap"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(free, tmp_path, storage, gib, words):
    with pytest.raises(UserError, match=words) as error:
        choose_storage(storage, int(gib * GIB), CPU, tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def cuda(free, monkeypatch):
    """A GPU with 4 of 5 GiB free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * GIB, 5 * GIB))
    return torch.device("cuda", 0)


@pytest.mark.parametrize("storage, gib, where", [("auto", 3, "cuda"), ("gpu", 3, "cuda"), ("auto", 4, "cpu")])
def test_auto_takes_the_gpu_where_it_fits_and_ram_where_not(cuda, tmp_path, storage, gib, where):
    device, memmap, _ = choose_storage(storage, gib * GIB, cuda, tmp_path)
    assert (device.type, memmap) == (where, None)


def test_a_gpu_that_is_too_full_is_refused_in_one_line(cuda, tmp_path):
    with pytest.raises(UserError, match=r"does not fit cuda:0: 4\.00 GiB free; .*ram or memmap") as error:
        choose_storage("gpu", 4 * GIB, cuda, tmp_path)
    assert "\n" not in str(error.value)
