"""An agent that knows where episodes end learns to stay alive where another one, which does not, runs to its end."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.planners.objective import Objective
from dreamer_mpc.planners.protocol import Terminating
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.world_model import Batch, WorldModelConfig
from tests.support.agents import BEHAVIOR as SMALL_BEHAVIOR
from tests.support.agents import WORLD

TOP, STEP, DISCOUNT = 1.0, 0.3, 0.9
SMALLEST = WorldModelConfig(
    deter=1, stoch=1, hidden=1, encoder_channels=(1, 1, 1, 1), decoder_dense=1, decoder_channels=(1, 1, 1),
    reward_layers=1, reward_hidden=1,
)  # fmt: skip
BEHAVIOR = BehaviorConfig(
    horizon=6, discount=DISCOUNT, return_lambda=0.9, actor_layers=1, actor_hidden=16, actor_init_std=0.3,
    value_heads=2, value_layers=1, value_hidden=16, bootstrap=1.0,
)  # fmt: skip
UPDATES = 200


class Hill(nn.Module):
    """x' = x + 0.3 a, and x' is paid on arriving. What says nothing of the abyss behind the top."""

    action_dim = 1

    def __init__(self, actor, critic):
        super().__init__()
        self.actor, self.critic = actor, critic

    def step(self, state, action):
        return torch.cat([state[..., :1] + STEP * action, torch.ones_like(state[..., :1])], dim=-1)

    def reward(self, state):
        return state[..., 0]

    def value(self, state):
        return self.critic(state)

    def policy(self, state):
        return self.actor(state)


class Known(Hill, Terminating):
    """The same, and the abyss is known."""

    def continues(self, state):
        return torch.sigmoid(15 * (TOP - state[..., 0]))


def starting(x):
    """A batch of frames [1, 60] of which learning by imagination reads where an episode ended, and the index."""
    nothing = torch.zeros(1, 60, 1)
    index = torch.arange(60)[None]
    return Batch(nothing[..., None, None].byte(), nothing, x, index == 0, x > TOP, index)


def learned(kind, seed):
    """The model after learning from starts on both sides of the top; those behind it are the end of an episode."""
    torch.manual_seed(seed)
    agent = Dreamer(1, SMALLEST, BEHAVIOR, OptimizerConfig(actor_lr=0.01, critic_lr=0.02))
    agent.model = agent.learner.model = model = kind(agent.model.actor, agent.model.critic)
    x = torch.linspace(-1, 1.5, 60)[:, None]
    states, batch = torch.cat([x, torch.ones_like(x)], dim=1)[None], starting(x.T)
    for _ in range(UPDATES):
        learned = agent.learner.learn(states, batch)
        losses = torch.stack([learned.metrics["actor_loss"], learned.metrics["critic_loss"]])
        agent._descend(losses, agent._take(learned.gradients), batch.index, Aside(agent.device))
    return model


@torch.no_grad()
def played(model, steps=40):
    """Mean return of the policy's mode from starts below the top, and the share that never stepped behind it."""
    x = torch.linspace(-0.8, 0.6, 15)[:, None]
    state, total, alive = torch.cat([x, torch.ones_like(x)], dim=1), 0.0, torch.ones(15)
    for _ in range(steps):
        state = model.step(state, model.policy(state).mode)
        total = total + alive * model.reward(state)
        alive = alive * (state[:, 0] < TOP)
    return total.mean().item(), alive.mean().item()


# Over seven seeds: 28.4 to 28.8 for the one that knows, 2.73 for the other. Staying at the top would give close to 40.
def test_who_knows_where_episodes_end_stays_below_the_top_and_who_does_not_runs_over_it():
    known, alive = played(learned(Known, seed=0))
    assert alive == 1 and known > 20
    unknown, alive = played(learned(Hill, seed=0))
    assert alive == 0 and unknown < 5


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("behavior", [None, BehaviorConfig(**SMALL_BEHAVIOR)], ids=["planet", "dreamer"])
def test_the_continue_head_is_what_planners_ask(behavior, kernels):
    torch.manual_seed(0)
    world = replace(WORLD, continuation=True)
    model = Dreamer(2, world, behavior, kernels=kernels).model
    state, actions = torch.randn(3, model.world_model.state_dim), torch.rand(3, 4, 5, 2)
    with torch.no_grad():
        states = rollout(model, state, actions)
        for odds, rewards in ((-30.0, 1), (30.0, 5)):  # every state is the last one, or none is
            model.world_model.continue_head.linear[-1].weight.zero_()
            model.world_model.continue_head.linear[-1].bias.fill_(odds)
            expected = model.reward(states[:, :, :rewards]).sum(-1)
            torch.testing.assert_close(Objective(1.0, kind="rewards")(model, states), expected)
