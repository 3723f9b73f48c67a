"""Sequences of the recurrent cell with their own backward pass against loops under autograd, in float64."""

import pytest
import torch

from dreamer_mpc.agents import latents
from dreamer_mpc.agents.latents import Latents, UnrolledLatents
from dreamer_mpc.planners import make_planner
from dreamer_mpc.planners.rollout import FusedRollouts, imagine, policy_rollout, rollout
from dreamer_mpc.world_model import WorldModelConfig
from dreamer_mpc.world_model.rssm import RSSM
from tests.support.agents import make_agent
from tests.support.planning import PAPER

T, B, A, E, D, Z = 6, 4, 2, 5, 7, 3
SMALL = WorldModelConfig(
    deter=D, stoch=Z, hidden=9, encoder_channels=(2, 2, 2, 2), decoder_dense=4, decoder_channels=(2, 2, 2),
    reward_hidden=8,
)  # fmt: skip
BEHAVIOR = dict(actor_layers=2, actor_hidden=8, value_hidden=8, value_layers=2, actor_init_std=5.0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def models():
    """The same weights, rolled out in one call and step by step."""
    unrolled = make_agent(0, BEHAVIOR, SMALL, A).model.double()
    assert isinstance(unrolled, UnrolledLatents)
    stepped = Latents(unrolled.world_model, unrolled.actor, unrolled.critic, A)
    return unrolled, stepped


def test_observe_and_all_its_gradients_are_autograd_s():
    torch.manual_seed(0)
    rssm = RSSM(A, E, deter=D, stoch=Z, hidden=9).double()
    inputs = [double(T, B, E), double(T, B, A), double(B, D + Z)]
    is_first = torch.rand(T, B) < 0.3
    outputs = []
    for rssm.kernels in (True, False):
        embed, action, state = (x.clone().requires_grad_() for x in inputs)
        torch.manual_seed(1)
        states, posterior = rssm.observe(embed, action, is_first, state)
        prior = rssm.prior(states[..., :D])
        weights = [torch.linspace(-1, 1, x.numel()).view_as(x) for x in (states, *posterior, *prior)]
        loss = sum((w * x).sum() for w, x in zip(weights, (states, *posterior, *prior)))
        grads = torch.autograd.grad(loss, [embed, action, state, *rssm.parameters()])
        outputs.append((states, *posterior, *prior, *grads))
    assert is_first[1:].any() and all(g.any() for g in outputs[1])
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


def test_a_rollout_and_its_gradients_are_those_of_single_steps(models):
    unrolled, stepped = models
    state, actions, noise = double(2, D + Z), double(2, 3, T, A).tanh(), double(2, 3, T, Z)
    results = []
    for model in (unrolled, stepped):
        leaf, start = actions.clone().requires_grad_(), state.clone().requires_grad_()
        states = rollout(model, start, leaf, noise)
        weight = torch.linspace(-1, 1, states.numel()).view_as(states)
        results.append((states, *torch.autograd.grad((weight * states).sum(), [leaf, start])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_rollout_without_gradients_keeps_nothing(models):
    unrolled, stepped = models
    state, actions, noise = double(2, D + Z), double(2, 3, T, A), double(2, 3, T, Z)
    with torch.no_grad():
        states = [rollout(model, state, actions, noise) for model in models]
    assert not states[0].requires_grad
    torch.testing.assert_close(*states, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("blend", [False, True])
def test_a_policy_rollout_takes_the_policy_s_actions_in_the_states_they_lead_to(models, monkeypatch, blend, mode):
    unrolled, stepped = models
    state, noise, eps = double(2, 3, D + Z), double(2, 3, T, Z), double(T, 6, A)
    previous, weight = double(2, 3, T, A).tanh(), torch.rand(2, 3, T, dtype=torch.float64)
    monkeypatch.setattr(latents, "_draw", lambda steps, rows, size: eps)
    settings = {"previous": previous, "weight": weight} if blend else {}
    (actions,), states = policy_rollout(unrolled, state, T, noise=noise, mode=mode, **settings)
    current, leaves, visited = state, [], []
    for t in range(T):
        with torch.no_grad():
            policy = stepped.policy(current)
            action = policy.mode if mode else torch.tanh(policy.mean + policy.std * eps[t].view(2, 3, A))
            if blend:
                share = weight[..., t, None]
                action = (share * previous[:, :, t] + (1 - share) * action).clamp(-1, 1)
        leaves.append(action.requires_grad_())
        current = stepped.step(current, action, noise[:, :, t])
        visited.append(current)
    expected = torch.stack(visited, dim=2)
    torch.testing.assert_close(actions, torch.stack(leaves, dim=2), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(states, expected, rtol=1e-10, atol=1e-12)
    w = torch.linspace(-1, 1, states.numel()).view_as(states)
    (found,) = torch.autograd.grad((w * states).sum(), actions)
    wanted = torch.stack(torch.autograd.grad((w * expected).sum(), leaves), dim=2)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_imagination_and_the_actor_s_gradient_are_those_of_single_steps(models, monkeypatch):
    unrolled, stepped = models
    start, eps, noise = double(B, D + Z), double(T, B, A), double(T, B, Z)
    monkeypatch.setattr(latents, "_draw", lambda steps, rows, size: {A: eps, Z: noise}[size])
    states = imagine(unrolled, start, T)
    current, visited = start, []
    for t in range(T):
        policy = stepped.policy(current.detach())
        current = stepped.step(current, torch.tanh(policy.mean + policy.std * eps[t]), noise[t])
        visited.append(current)
    expected = torch.stack(visited)
    torch.testing.assert_close(states, expected, rtol=1e-10, atol=1e-12)
    parameters = list(stepped.actor.parameters())
    w = torch.linspace(-1, 1, states.numel()).view_as(states)
    grads = [torch.autograd.grad((w * s).sum(), parameters) for s in (states, expected)]
    assert all(g.any() for g in grads[1])
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)


MEAN = PAPER | {"latent_noise": "mean"}
PLANS = {
    "dream-mpc": MEAN | {"iterations": 2},
    "dream-mpc chosen after": MEAN | {"choose_by": "after", "reuse": 0.5},
    "dream-mpc with the mode": MEAN | {"mode_candidate": True},
    "dream-mpc as it is": {"draws": 4, "reuse": 0.5},
    "dream-mpc of one action": {"draws": 4, "open_loop": 1, "iterations": 1},
    "policy-grad-mpc": {},
    "grad-mpc": {"candidates": 20, "iterations": 2, "horizon": 4},
    "cem": {"candidates": 20, "elites": 5, "iterations": 2, "horizon": 4},
    "mppi": {"candidates": 20, "elites": 5, "iterations": 2, "policy_candidates": 0},
    "mppi with the policy": {"candidates": 20, "elites": 5, "iterations": 2, "policy_candidates": 8},
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_the_same_walked_at_once_or_step_by_step(models, monkeypatch, name):
    # Without noise in the policy and in the model, the order of draws does not matter.
    monkeypatch.setattr(models[0].actor, "min_std", 0.0)
    monkeypatch.setattr(models[0].actor, "raw_init_std", -1e3)
    settings = {} if "draws" in PLANS[name] else {"latent_noise": "mean"}
    planner = make_planner(name.split()[0], **PLANS[name] | settings)
    state = double(2, D + Z)
    plans = []
    for model in models:
        torch.manual_seed(0)
        first = planner.plan(model, state)
        plans.append(planner.plan(model, state, first.memory))
    for field in ("action", "actions", "value", "candidates", "candidate_values"):
        torch.testing.assert_close(*(getattr(plan, field) for plan in plans), rtol=1e-8, atol=1e-10)
    assert plans[0].model_evaluations == plans[1].model_evaluations


def test_an_agent_without_kernels_is_plain_modules_under_autograd():
    agent = make_agent(0, BEHAVIOR, SMALL, A, kernels=False)
    world = agent.model.world_model
    assert not isinstance(agent.model, FusedRollouts)
    assert not (world.rssm.kernels or world.encoder.kernels or world.decoder.kernels)
