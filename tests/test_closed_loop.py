"""Actor and critic learn the optimum of a small known world, with the behaviour learning of `Dreamer.update`.

They fail if that code is broken in one place; see `test_broken_code_misses_the_optimum`.
"""

import contextlib
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.dynamics import DynamicsBehavior
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.world_model import WorldModelConfig
from scripts.mutations import MUTATIONS
from tests.support.agents import make_batch

KEPT_X, KEPT_Y, COST, NOISE, DISCOUNT = 0.5, 0.75, 2.5, 0.2, 0.8
SMALLEST = WorldModelConfig(
    deter=1, stoch=1, hidden=1, encoder_channels=(1, 1, 1, 1), decoder_dense=1, decoder_channels=(1, 1, 1),
    reward_layers=1, reward_hidden=1,
)  # fmt: skip
# Few frames for each of many heads, so that the heads disagree: otherwise their minimum would be as good as their mean.
BEHAVIOR = BehaviorConfig(
    horizon=3, discount=DISCOUNT, return_lambda=0.3, actor_layers=1, actor_hidden=16, actor_init_std=0.1,
    value_heads=16, value_layers=1, value_hidden=16, bootstrap=0.1,
)  # fmt: skip
OPTIMIZER = OptimizerConfig(actor_lr=0.015, critic_lr=0.03)
UPDATES = 400


class Stream(nn.Module):
    """x' = x / 2 + a + noise, y' = 3/4 y + x', and y' - 2.5 x'^2 is paid on arriving.

    x costs immediately and pays later, through y, so a plan that looks only a step or two ahead uses too little of it.
    The noise is in the dynamics, so that the critic sees more than the policy's own path.

    The value of a state is v = y - c x^2 + discount E[v'], linear in y with slope w = 1 / (1 - 3/4 discount). For every
    x, the best action leads to the x' that maximises w x' - c x'^2, that is w / 2c = 1/2: within [-1, 1].
    """

    action_dim = 1
    slope = 1 / (1 - DISCOUNT * KEPT_Y)
    best_x = slope / (2 * COST)

    def __init__(self, actor, critic):
        super().__init__()
        self.actor, self.critic = actor, critic

    def step(self, state, action):
        x = KEPT_X * state[..., :1] + action
        x = x + NOISE * torch.randn_like(x)
        return torch.cat([x, KEPT_Y * state[..., 1:] + x], dim=-1)

    def reward(self, state):
        return state[..., 1] - COST * state[..., 0].square()

    def value(self, state):
        return self.critic(state)

    def policy(self, state):
        return self.actor(state)

    def optimal_value(self, state):
        """v in closed form; `reward(state)` is part of it."""
        a_step = self.slope * self.best_x - COST * (self.best_x**2 + NOISE**2)
        always = DISCOUNT / (1 - DISCOUNT) * a_step
        return self.reward(state) + DISCOUNT * KEPT_Y * self.slope * state[..., 1] + always


def grid(x, y, points=(12, 10)):
    """States [M, 2] that cover two intervals."""
    axes = torch.linspace(*x, points[0]), torch.linspace(*y, points[1])
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 2)


def learned_by(kind, seed=0):
    """The model after training with `kind`, DynamicsBehavior or a broken version."""
    torch.manual_seed(seed)
    agent = Dreamer(1, SMALLEST, BEHAVIOR, OPTIMIZER)
    agent.learner = kind(BEHAVIOR, agent.model, contextlib.nullcontext)
    agent.model = agent.learner.model = model = Stream(agent.model.actor, agent.model.critic)
    start, batch = grid((0, 1), (1, 3)).view(12, 10, 2), make_batch(length=12, batch_size=10, action_dim=1)
    # Learning rates decay to zero, so that the result does not contain the noise of the last steps.
    schedules = [
        torch.optim.lr_scheduler.LinearLR(agent.optimizers[part], 1.0, 0.01, total_iters=UPDATES)
        for part in ("actor", "critic")
    ]
    for _ in range(UPDATES):
        gradients, metrics, *_ = agent.learner.learn(start, batch)
        losses = torch.stack([metrics["actor_loss"], metrics["critic_loss"]])
        agent._descend(losses, agent._take(gradients), batch.index, Aside(agent.device))
        for schedule in schedules:
            schedule.step()
    return model


@torch.no_grad()
def distance_from_the_optimum(model):
    """The actor's loss of return, and the critic's error: root mean square, and mean."""
    torch.manual_seed(1)
    state, lost = grid((0, 1), (1, 3)).repeat(100, 1), 0.0
    for t in range(1, 30):
        action = model.policy(state).mode
        # At distance d from the best x', the value is lower by c d^2, whatever the noise adds.
        lost = lost + DISCOUNT**t * COST * (KEPT_X * state[:, :1] + action - model.best_x).square().mean()
        state = model.step(state, action)
    visited = grid((0.2, 0.8), (1.3, 2.7))
    error = model.value(visited).mean(0) - model.optimal_value(visited)
    return lost.item(), error.square().mean().sqrt().item(), abs(error.mean().item())


# Over seven seeds the largest values are 0.042, 0.098 and 0.032. Values range from 3.7 to 8.8.
LOST, ROOT_MEAN_SQUARE, ON_AVERAGE = 0.06, 0.15, 0.06
SHORT_OF_THE_OPTIMUM = 2.0  # times one of these limits; broken code gives 2.7 and more


def misses(model):
    """The largest of the three distances, as a multiple of its limit."""
    allowed = LOST, ROOT_MEAN_SQUARE, ON_AVERAGE
    return max(found / most for found, most in zip(distance_from_the_optimum(model), allowed))


def test_actor_and_critic_reach_the_optimum():
    assert misses(learned_by(DynamicsBehavior)) < 1


def test_a_new_actor_and_critic_are_far_from_it():
    torch.manual_seed(0)
    agent = Dreamer(1, SMALLEST, BEHAVIOR, OPTIMIZER)
    assert misses(Stream(agent.model.actor, agent.model.critic)) > 10


# Mutations that this learning detects. It does not detect a mask's transposed index, which only exchanges the heads'
# frames, nor an actor that is not clipped, because Adam rescales its steps: `test_reference_update.py` tests those.
@pytest.mark.parametrize("name", ["value gradient cut", "minimum over heads in place of their mean"])
def test_broken_code_misses_the_optimum(name):
    assert not misses(learned_by(broken_behavior(name))) < SHORT_OF_THE_OPTIMUM


def broken_behavior(name):
    """`DynamicsBehavior` with one line of the table of mutations changed."""
    row = next(row for row in MUTATIONS if row.name == name)
    assert row.file == "dreamer_mpc/agents/dynamics.py"
    source = Path(__file__).resolve().parent.parent.joinpath(row.file).read_text()
    assert source.count(row.old) == 1, "the table is out of date"
    module = types.ModuleType(f"broken_{name.replace(' ', '_')}")
    sys.modules[module.__name__] = module  # dataclasses look up their module
    exec(compile(source.replace(row.old, row.new), row.file, "exec"), module.__dict__)
    return module.DynamicsBehavior
