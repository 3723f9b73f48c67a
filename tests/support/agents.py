"""Small agents and batches, and the command lines of small runs."""

from dataclasses import replace

import torch

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.world_model import Batch, WorldModelConfig

ACTION_DIM = 2
WORLD = WorldModelConfig(
    deter=16, stoch=8, hidden=16, encoder_channels=(4, 8, 16, 32), decoder_dense=32,
    decoder_channels=(8, 8, 4), reward_hidden=16, free_nats=0.0,
)  # fmt: skip
CATEGORICAL = replace(WORLD, kind="categorical", stoch=4, classes=4, blocks=2, reward_layers=1, continuation=True)
BEHAVIOR = dict(horizon=4, actor_init_std=0.5, actor_hidden=16, value_hidden=16, value_heads=3)

# `WORLD` and a behavior of its size, by the command line.
SIZES = [
    "--world-model.deter", "16", "--world-model.stoch", "8", "--world-model.hidden", "16",
    "--world-model.encoder-channels", "4", "8", "16", "32", "--world-model.decoder-dense", "32",
    "--world-model.decoder-channels", "8", "8", "4", "--world-model.reward-hidden", "16",
    "--behavior.horizon", "3", "--behavior.actor-hidden", "16", "--behavior.value-hidden", "16",
]  # fmt: skip
ENV = ["--env", "tests.example_env:make"]
# Episodes of 8 steps, with one update each: a run takes a second or two in any environment.
LENGTHS = [
    "--action-repeat", "1", "--max-env-steps", "8", "--env-steps", "16",
    "--train.seed-episodes", "1", "--train.every", "8", "--train.updates", "1", "--eval.every", "1000",
    "--eval.episodes", "1", "--eval.num-envs", "1", "--eval.no-video", "--replay.batch-size", "4",
    "--replay.sequence-length", "4", *SIZES,
]  # fmt: skip
BRIEF = ["--config", "quick", *LENGTHS]
TINY = [*ENV, *BRIEF]
# The same of the second family, by its preset; its learning rate rises over a few updates, so that all of them count.
V3 = [
    "--config", "quick,v3-small", *ENV, *LENGTHS, "--world-model.stoch", "4", "--world-model.classes", "4",
    "--world-model.blocks", "2", "--optimizer.warmup", "2",
]  # fmt: skip
FAMILIES = {"paper": TINY, "v3": V3}
# Very cheap planners.
CHEAP = [
    "--cem.candidates", "20", "--cem.elites", "4", "--cem.iterations", "2", "--cem.horizon", "4",
    "--mppi.candidates", "16", "--mppi.elites", "4", "--mppi.iterations", "2", "--mppi.policy-candidates", "2",
    "--grad-mpc.candidates", "4", "--grad-mpc.iterations", "2", "--grad-mpc.horizon", "3",
    "--policy-grad-mpc.horizon", "3", "--dream-mpc.horizon", "3",
]  # fmt: skip


def make_agent(seed=0, behavior=None, world=WORLD, action_dim=ACTION_DIM, kernels=True, **optimizer):
    """A Dreamer of `BEHAVIOR` with the changes in `behavior`."""
    torch.manual_seed(seed)
    settings = BehaviorConfig(**BEHAVIOR | (behavior or {}))
    return Dreamer(action_dim, world, settings, OptimizerConfig(**optimizer), kernels=kernels)


def make_planet(seed=0, **optimizer):
    """A world model alone."""
    torch.manual_seed(seed)
    return Dreamer(ACTION_DIM, WORLD, None, OptimizerConfig(**optimizer))


def make_batch(
    seed=0, length=5, batch_size=3, action_dim=ACTION_DIM, first=((0, 0),), device="cpu", shape=(64, 64, 3)
):
    """Random frames with their numbers as index; episodes start at the frames `first`, each (t, row)."""
    draw = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
    is_first = torch.zeros(length, batch_size, dtype=torch.bool, device=device)
    for frame in first:
        is_first[frame] = True
    return Batch(
        torch.randint(0, 256, (length, batch_size, *shape), dtype=torch.uint8, **draw),
        torch.rand(length, batch_size, action_dim, **draw) * 2 - 1,
        torch.randn(length, batch_size, **draw),
        is_first,
        torch.zeros_like(is_first),
        torch.arange(length * batch_size, device=device).view(length, batch_size),
    )


def same(a, b):
    """Equal state dicts, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_mirror_images(agent):
    """Bins beyond +-3.9e4 that were never a target, at both sides of 0, have moved alike, bit for bit.

    They stand at up to 4.9e8, so that a difference in the last digit is read as noise.
    """
    reward, value = agent.model.world_model.reward_head.last, agent.model.critic.layers.last
    for parameter in (reward.weight.t(), reward.bias, value.weight, value.bias):
        outer, mirrored = parameter.detach()[..., :60], parameter.detach().flip(-1)[..., :60]
        assert outer.any() and torch.equal(outer, mirrored)
