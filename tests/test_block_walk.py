"""Rollouts of the categorical world model with their own backward pass against the loop over `step`."""

import pytest
import torch

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.latents import make_latents
from dreamer_mpc.planners.rollout import closed_loop, joined, policy_rollout, prepare_loop, rollout
from dreamer_mpc.world_model import WorldModelConfig, make_world_model

A, B, N, H = 2, 2, 3, 4
WORLD = WorldModelConfig(
    kind="categorical", deter=12, stoch=3, classes=4, blocks=3, hidden=6, encoder_channels=(2, 2, 2, 2),
    decoder_dense=48, decoder_channels=(2, 2, 2), reward_layers=1, reward_hidden=6,
)  # fmt: skip


def make_pair(kind="v3"):
    """A model with fast rollouts and one without, of the same weights, in float64."""
    models = []
    for kernels in (True, False):
        torch.manual_seed(0)
        config = BehaviorConfig(kind=kind, actor_layers=1, actor_hidden=6, value_layers=1, value_hidden=6)
        model = make_latents(config, make_world_model(WORLD, A, kernels, False), A, kernels).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        models.append(model)
    return models


def inputs():
    torch.manual_seed(1)
    state = torch.randn(B, 24, dtype=torch.float64)
    actions = (1.5 * torch.randn(B, N, H, A, dtype=torch.float64)).requires_grad_()
    return state.requires_grad_(), actions, torch.randn(B, N, H, 12, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["v3", "dreamer"])
def test_a_rollout_is_the_loop_with_its_gradients(kind):
    found = []
    for model in make_pair(kind):
        state, actions, noise = inputs()
        states = rollout(model, state, actions, noise)
        torch.manual_seed(2)
        weights = torch.randn(states.shape, dtype=states.dtype)
        found.append((states, *torch.autograd.grad((states * weights).sum(), (state, actions))))
    for got, expected in zip(*found, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("blend", [True, False])
def test_a_policy_s_rollout_is_the_loop_with_its_gradients(mode, blend):
    """The model is given its noise: then the policy's draws come in the same order as in the loop."""
    found = []
    for model in make_pair():
        state, previous, noise = inputs()
        weight = torch.rand(B, N, H, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        given = (previous.detach().clamp(-1, 1), weight) if blend else (None, None)
        torch.manual_seed(3)
        start = state.detach()[:, None].expand(-1, N, -1)
        leaves, states = policy_rollout(model, start, H, *given, noise, mode)
        torch.manual_seed(2)
        grads = torch.autograd.grad((states * torch.randn(states.shape, dtype=states.dtype)).sum(), leaves)
        found.append((joined(leaves), states, joined(grads)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_any_rule_may_choose_the_actions():
    found = []
    for model in make_pair():
        state, _, noise = inputs()
        with torch.no_grad():
            leaves, states = closed_loop(model, state, H, lambda now: now[..., :A] * 3, noise=noise[:, 0])
        found.append((joined(leaves), states))
    assert (found[0][0].abs() <= 1).all()
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_a_loop_fills_a_path_whose_rule_may_look_back():
    for model in make_pair():
        state, _, noise = inputs()
        path, seen = torch.full((H + 1, *state.shape), torch.nan, dtype=state.dtype), []

        def act(now):
            seen.append(path.clone())
            return now[..., :A]

        with torch.no_grad():
            expected = closed_loop(model, state, H, lambda now: now[..., :A], noise=noise[:, 0]).states
            states = closed_loop(model, state, H, act, noise=noise[:, 0], path=path).states
        assert torch.equal(states, expected)
        assert torch.equal(path, torch.cat([state[:, None], expected], dim=1).movedim(1, 0))
        for k, so_far in enumerate(seen):
            assert torch.equal(so_far[: k + 1], path[: k + 1])


def test_noise_and_weights_may_be_prepared_before_a_loop():
    """On a CPU the loop draws for itself, in the order of the plain loop."""
    model = make_pair()[0]
    state, _, noise = inputs()
    prepared = model.world_model.rssm.prepared(noise[:, 0].movedim(1, 0))
    given = [{"noise": noise[:, 0]}, {"prepared": prepared}]
    with torch.no_grad():
        found = [closed_loop(model, state, H, lambda now: now[..., :A] * 3, **kind).states for kind in given]
    assert torch.equal(*found)
    assert prepare_loop(model, len(state), H) is None


def test_states_may_be_rounded_while_the_walk_is_not():
    found = []
    for model in make_pair():
        state, _, noise = inputs()
        seen = []

        def act(now):
            seen.append(now)
            return 0 * now[..., :A].double()

        with torch.no_grad():
            exact = closed_loop(model, state, H, act, noise=noise[:, 0]).states
            seen.clear()
            path = torch.empty(H + 1, *state.shape, dtype=torch.bfloat16)
            rounded = closed_loop(model, state, H, act, noise=noise[:, 0], path=path).states
        before = torch.cat([state[:, None], exact[:, :-1]], dim=1)
        assert torch.equal(torch.stack(seen, dim=1), before.bfloat16())
        assert torch.equal(rounded, exact.bfloat16())
        found.append(rounded)
    torch.testing.assert_close(*found)


def test_drawn_steps_have_the_prior_s_distribution():
    """Without given noise, the first variable's classes are as frequent after a step as the loop's prior says."""
    fast, plain = make_pair()
    state = torch.randn(1, 24, dtype=torch.float64).expand(20_000, -1)
    actions = torch.full((20_000, 1, 1, A), 0.3, dtype=torch.float64)
    with torch.no_grad():
        found = rollout(fast, state, actions)[:, 0, 0, 12:16].mean(0)
        deter = plain.step(state[:1], actions[0, 0])[:, :12]
        expected = plain.world_model.rssm.prior(deter)[0, 0].exp()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)


def test_with_bf16_products_states_and_gradients_are_near():
    """In and outside of autocast; the walk's own precision does not depend on it."""
    found = []
    for bf16, ambient in [(False, False), (True, False), (True, True)]:
        model = make_pair()[0].float()
        model.world_model.rssm.bf16 = bf16
        state, actions, noise = (x.detach().float() for x in inputs())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ambient):
            states = rollout(model, state, actions.requires_grad_(), noise)
            closed = closed_loop(model, state, H, lambda now: model.policy(now).mode, noise=noise[:, 0]).states
        assert states.dtype == closed.dtype == torch.float32
        first = states[:, :, 0, :12]
        found.append((first, closed[:, 0, :12], torch.autograd.grad(first.sum(), actions)[0]))
    for got in found[1:]:
        for a, b in zip(got, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)
    assert torch.equal(found[1][0], found[2][0]) and not torch.equal(found[0][0], found[1][0])
