"""Rollouts of latent models: by `step` alone, or in one call if the model supports it."""

import pytest
import torch

from dreamer_mpc.planners import PLANNERS, make_planner
from dreamer_mpc.planners.rollout import FusedRollouts, imagine, policy_rollout, rollout
from tests.support.latent_models import Noisy, Smooth

SMALL = {
    "cem": {"candidates": 20, "elites": 5, "iterations": 2},
    "mppi": {"candidates": 20, "elites": 5, "iterations": 2, "policy_candidates": 4},
    "grad-mpc": {"candidates": 20, "iterations": 2},
}


class Unrelated(Noisy):
    """A custom model with methods of the same names as ours but another meaning."""

    def rollout(self, *_, **__):
        raise AssertionError("not what a planner needs")

    policy_rollout = imagine = walk = walk_policy = walk_imagination = rollout


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("latent_noise", ["fresh", "fixed", "mean"])
@pytest.mark.parametrize("name", PLANNERS)
def test_methods_that_merely_bear_a_name_of_ours_are_left_alone(name, latent_noise):
    settings = {} if name == "policy" else {"horizon": 4, "latent_noise": latent_noise}
    planner = make_planner(name, **settings | SMALL.get(name, {}))
    plans = []
    for model in (Noisy(), Unrelated()):
        torch.manual_seed(0)
        plans.append(planner.plan(model, double(2, 3)))
    assert torch.equal(plans[0].candidates, plans[1].candidates)
    assert torch.equal(plans[0].action, plans[1].action)


def test_imagination_leaves_them_alone_too():
    start, states = double(5, 3), []
    for model in (Noisy(), Unrelated()):
        torch.manual_seed(0)
        states.append(imagine(model, start, 3))
    assert torch.equal(*states)


class Fused(Smooth, FusedRollouts):
    """Computes its own rollouts, and counts the calls."""

    walks = 0

    def walk(self, state, actions, noise):
        self.walks += 1
        states = []
        for action in actions.unbind(-2):
            state = self.step(state, action)
            states.append(state)
        return torch.stack(states, dim=-2)


def test_a_model_that_says_so_walks_itself():
    state, actions = double(2, 3), double(2, 4, 5, 2).tanh()
    model = Fused()
    torch.testing.assert_close(rollout(model, state, actions), rollout(Smooth(), state, actions))
    assert model.walks == 1


def test_blended_actions_are_where_the_policy_acts_from():
    model, state, horizon = Smooth(), double(2, 3, 3), 4
    previous, weight = double(2, 3, horizon, 2).tanh(), torch.rand(2, 3, horizon, dtype=torch.float64)
    torch.manual_seed(0)
    leaves, states = policy_rollout(model, state, horizon, previous, weight)
    torch.manual_seed(0)
    current = state
    for k in range(horizon):
        share = weight[..., k, None]
        action = (share * previous[:, :, k] + (1 - share) * model.policy(current).rsample()).clamp(-1, 1)
        torch.testing.assert_close(leaves[k][..., 0, :], action)
        current = model.step(current, action)
        torch.testing.assert_close(states[..., k, :], current)
    (grad,) = torch.autograd.grad(states[..., -1, :].sum(), leaves[:1])
    assert grad.shape == (2, 3, 1, 2) and grad.any(), "the first action is felt to the end"
