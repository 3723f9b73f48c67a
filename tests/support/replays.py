"""Replays whose frames encode their episode and step."""

import hashlib

import numpy as np
import torch
from safetensors.torch import load, save

from dreamer_mpc.data.files import Chunk
from dreamer_mpc.data.replay import Replay

SHAPE = (2, 2, 3)
ACTION_DIM = 2
PLACES = torch.arange(4, dtype=torch.uint8).view(2, 2)


def append(replay, rows, frames):
    """Append frame (episode, step) of `frames` to each stream of `rows`.

    Its action is (episode, step), its reward 1000 episode + step, its image shows both, modulo 256, and each pixel's
    place; it is terminal where 3 divides episode + 2 step.
    """
    number, step = np.array(frames).T
    image = np.zeros((len(rows), *SHAPE), np.uint8)
    image[..., 0], image[..., 1] = number[:, None, None] % 256, step[:, None, None] % 256
    image[..., 2] = PLACES
    reward, is_terminal = 1000.0 * number + step, marked(number, step)
    replay.append(np.array(rows), image, np.array(frames, np.float32), reward, step == 0, is_terminal)


def marked(number, step):
    return (number + 2 * step) % 3 == 0


def add_episode(replay, number, length, row=0):
    for step in range(length):
        append(replay, [row], [(number, step)])


def make_replay(capacity, lengths=(), streams=1, **settings):
    """Episode n, of lengths[n] frames, in stream n modulo `streams`."""
    replay = Replay(capacity, ACTION_DIM, streams, SHAPE, **settings)
    for number, length in enumerate(lengths):
        add_episode(replay, number, length, number % streams)
    return replay


def as_before(folder, state):
    """Rewrite the files in the old format without `is_terminal`; returns the state that lists them."""
    chunks = []
    for chunk in state:
        path = folder / Chunk(**chunk).name
        frames = load(path.read_bytes())
        path.write_bytes(save({name: frames[name] for name in ("image", "action", "reward", "is_first")}))
        chunks.append({**chunk, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return chunks


def same(a, b):
    """Whether two batches are equal; parts that replay does not keep are None in both."""
    return all(x is y if x is None else torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sampled(batch):
    """(episode, first step) of each sequence, each checked to be consecutive steps of one episode."""
    number, step = batch.action.unbind(-1)  # [T, B]
    assert (number == number[0]).all()
    assert (step == step[0] + torch.arange(len(step))[:, None]).all()
    assert torch.equal(batch.reward, 1000 * number + step)
    assert torch.equal(batch.is_first, step == 0)
    assert torch.equal(batch.is_terminal, marked(number, step))
    assert (batch.image[..., 0] == (number % 256)[..., None, None]).all()
    assert (batch.image[..., 1] == (step % 256)[..., None, None]).all()
    assert (batch.image[..., 2] == PLACES).all()
    return list(zip(number[0].int().tolist(), step[0].int().tolist()))
