"""Grad-MPC and Policy+Grad-MPC: their proposals, their ascent, and what sets them apart from Dream-MPC."""

from dataclasses import fields, replace

import pytest
import torch

from dreamer_mpc.planners import CEM, DreamMPC, GradMPC, PolicyGradMPC
from dreamer_mpc.planners.objective import rollout
from tests.support.latent_models import Bare, Deaf, Noisy, Quadratic, Smooth
from tests.support.planning import (
    ASCENDING,
    marked,
    plain_ascent,
    plain_gradient,
    plan,
    previous_plan,
    same,
    small,
    start,
)

SMALL = dict(horizon=4, candidates=3, iterations=2, discount=0.9)


def normal_draws(planner, rows=2, seed=0):
    """The draws of Grad-MPC [B, N, H, A], step by step."""
    torch.manual_seed(seed)
    shape = (rows, planner.candidates, 2)
    return torch.stack([torch.randn(*shape, dtype=torch.float64) for _ in range(planner.horizon)], dim=2)


# Grad-MPC against a plain loop


@torch.no_grad()
def reference_plan(model, state, planner, seed):
    """(candidates after the ascent, J of each before its last step), one candidate at a time."""
    candidates = normal_draws(planner, len(state), seed).clamp(-1, 1)
    values = torch.zeros(candidates.shape[:2], dtype=torch.float64)
    for b in range(len(state)):
        for n in range(planner.candidates):
            candidates[b, n], values[b, n] = plain_ascent(model, state[b], candidates[b, n], planner)
    return candidates, values


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"iterations": 4, "step_size": 0.4},  # clamped
        {"grad_clip": 2.0},  # some candidates clipped, some not
        {"objective": "rewards", "discount": 1.0},
        {"uncertainty": 0.5},
        {"horizon": 1, "iterations": 1},
    ],
    ids=str,
)
def test_grad_mpc_is_the_plain_loop(settings):
    planner, model, state = GradMPC(**SMALL | settings), Smooth(), start()
    expected, values = reference_plan(model, state, planner, seed=5)
    result = plan(planner, model, state, seed=5)
    torch.testing.assert_close(result.candidates, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.candidate_values, values, rtol=0, atol=1e-7)
    best = values.argmax(1)
    for b in range(2):
        torch.testing.assert_close(result.actions[b], expected[b, best[b]], rtol=0, atol=1e-7)
        torch.testing.assert_close(result.value[b], values[b, best[b]], rtol=0, atol=1e-7)


def test_the_settings_of_the_plain_loop_reach_clip_and_clamp():
    planner, model, state = GradMPC(**SMALL), Smooth(), start()
    proposed = normal_draws(planner, seed=5).clamp(-1, 1)
    lengths = [plain_gradient(model, state[b], proposed[b, n], planner).norm() for b in range(2) for n in range(3)]
    assert min(lengths) < 2.0 < max(lengths)
    moved = plan(GradMPC(**SMALL | {"iterations": 4, "step_size": 0.4}), model, state, seed=5).candidates
    assert ((moved.abs() == 1) & (proposed.abs() < 1)).any() and not (moved.abs() == 1).all()


# Proposals


def test_grad_mpc_proposes_clamped_standard_normal_draws():
    planner = GradMPC(horizon=4, candidates=2000, iterations=0)
    result = plan(planner, Smooth(), start())
    draws = normal_draws(planner)
    assert torch.equal(result.candidates, draws.clamp(-1, 1)) and (draws.abs() > 1).any()
    assert draws.mean().abs() < 0.02 and abs(draws.std() - 1) < 0.02


def test_grad_mpcs_proposals_do_not_depend_on_state_model_or_policy():
    planner = GradMPC(**SMALL | dict(iterations=0))
    proposals = plan(planner, Smooth(), start()).candidates
    for model in (Smooth(), Smooth(seed=4), Deaf(), Quadratic()):
        size = 2 if isinstance(model, Quadratic) else 3
        assert torch.equal(plan(planner, model, start(size=size, seed=9)).candidates, proposals)


def test_the_policys_proposals_depend_on_the_state_that_they_have_led_to():
    """The policy's actions, replayed: each is a sample in the state that the ones before lead to."""
    planner, model, state = PolicyGradMPC(**SMALL | dict(iterations=0)), Smooth(), start()
    result = plan(planner, model, state)
    states = rollout(model, state, result.candidates).detach()
    before = torch.cat([state[:, None, None].expand(-1, 3, 1, -1), states[:, :, :-1]], dim=2)
    draws = normal_draws(planner)
    policy = model.policy(before)
    torch.testing.assert_close(
        result.candidates, torch.tanh(policy.mean + policy.std * draws).detach(), rtol=0, atol=1e-12
    )


def test_a_whole_previous_plan_leaves_grad_mpc_nothing_of_its_draws():
    memory = previous_plan()
    result = plan(GradMPC(**SMALL | dict(iterations=0, reuse=1.0)), Smooth(), start(), memory)
    shifted = torch.stack([memory.actions[:, k] for k in (1, 2, 3, 3)], dim=1)
    assert torch.equal(result.candidates, shifted[:, None].expand(-1, 3, -1, -1))


# The ascent


@pytest.mark.parametrize("name", ASCENDING)
def test_each_iteration_is_one_step_up_from_where_the_last_one_ended(name):
    model, state = Smooth(), start()
    planner = small(name, grad_clip=1.0, step_size=0.2)
    for iterations in (0, 1, 2):
        before = plan(replace(planner, iterations=iterations), model, state).candidates
        after = plan(replace(planner, iterations=iterations + 1), model, state)
        for b in range(2):
            for n in range(3):
                with torch.no_grad():
                    once = plain_ascent(model, state[b], before[b, n], replace(planner, iterations=1))
                torch.testing.assert_close(after.candidates[b, n], once[0], rtol=0, atol=1e-7)
                assert after.candidate_values[b, n].item() == pytest.approx(once[1], abs=1e-9)


@pytest.mark.parametrize("name", ASCENDING)
def test_no_iterations_choose_among_the_proposals_and_need_no_gradients(name):
    class Stiff(Smooth):
        def step(self, state, action):
            assert not torch.is_grad_enabled()
            return super().step(state, action)

    state = start()
    result = plan(small(name, iterations=0), Stiff(), state)
    best = result.candidate_values.argmax(1)
    assert torch.equal(result.actions, result.candidates[torch.arange(2), best])
    same(result, plan(small(name, iterations=1, step_size=0.0), Smooth(), state))


@pytest.mark.parametrize("name", ASCENDING)
def test_inference_mode_is_refused_in_words(name):
    """Under it the gradient would be zero without a word."""
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.no_grad"):
        small(name).plan(Smooth(), start())


def test_grad_mpc_on_dynamics_and_reward_alone_falls_back_to_zero():
    state = marked(start(3), row=1)
    result = plan(GradMPC(**SMALL, objective="rewards"), Bare(), state)
    assert result.fallback.tolist() == [False, True, False]
    assert not result.actions[1].any() and result.actions[[0, 2]].any(-1).all()


# The three differ in nothing else


@pytest.mark.parametrize(
    "settings",
    [SMALL, SMALL | dict(iterations=0), SMALL | dict(choose_by="after", mode_candidate=True, latent_noise="fixed")],
    ids=str,
)
def test_policy_grad_mpc_is_dream_mpc_without_reuse_and_penalty(settings):
    model, state, memory = Noisy(), start(), previous_plan()
    plain, dream = PolicyGradMPC(**settings), DreamMPC(**settings, reuse=0.0, uncertainty=0.0)
    same(plan(plain, model, state, memory), plan(dream, model, state, memory))
    assert not torch.equal(
        plan(plain, model, state, memory).candidates,
        plan(replace(dream, reuse=0.1), model, state, memory).candidates,
    )


def test_the_defaults_of_policy_grad_mpc_are_dream_mpcs_without_reuse_and_penalty():
    expected = replace(DreamMPC(), reuse=0.0, uncertainty=0.0)
    assert {f.name: getattr(expected, f.name) for f in fields(DreamMPC)} == {
        f.name: getattr(PolicyGradMPC(), f.name) for f in fields(PolicyGradMPC)
    }


def test_grad_mpc_has_the_budget_of_cem_and_the_objective_of_policy_grad_mpc():
    planner, cem, policy = GradMPC(), CEM(), PolicyGradMPC()
    assert all(getattr(planner, x) == getattr(cem, x) for x in ("horizon", "candidates", "iterations"))
    assert planner.objective_function() == policy.objective_function()
    assert (planner.step_size, planner.grad_clip, planner.reuse) == (policy.step_size, policy.grad_clip, policy.reuse)


@pytest.mark.parametrize("kind", ["return", "rewards"])
def test_grad_mpc_that_proposes_as_the_policy_does_is_policy_grad_mpc(kind):
    """With a policy that ignores the state and is not squashed, the two are one."""

    class Normal(Smooth):
        class Draws:
            def __init__(self, state):
                self.mode = torch.zeros_like(state[..., :2])

            def rsample(self):
                return torch.randn_like(self.mode)

        def policy(self, state):
            return self.Draws(state)

    settings = SMALL | dict(objective=kind)
    same(plan(GradMPC(**settings), Normal(), start()), plan(PolicyGradMPC(**settings), Normal(), start()))
