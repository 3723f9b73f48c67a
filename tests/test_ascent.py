"""The gradient planners against a plain loop: their proposals, the ascent and its options."""

from dataclasses import replace

import pytest
import torch

from dreamer_mpc.planners import DreamMPC, PolicyGradMPC
from dreamer_mpc.planners.objective import Objective
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.planners.steps import ascend, clipped, norm_of
from tests.support.latent_models import Cliff, Deaf, Kinked, Noisy, Quadratic, Smooth, Spread
from tests.support.planning import (
    ASCENDING,
    PAPER,
    SMALL,
    near,
    plain_ascent,
    plain_gradient,
    plan,
    previous_plan,
    same,
    small,
    start,
)  # fmt: skip

every_ascent = pytest.mark.parametrize("name", ASCENDING)


@torch.no_grad()
def reference_plan(name, model, state, planner, memory, seed):
    """(candidates after the ascent, J of each before its last step), one candidate at a time."""
    rows, n, h = len(state), planner.candidates, planner.horizon
    torch.manual_seed(seed)
    draws = [torch.randn(rows, n, 2, dtype=torch.float64) for _ in range(h)]
    candidates, values = torch.zeros(rows, n, h, 2, dtype=torch.float64), torch.zeros(rows, n, dtype=torch.float64)
    for b in range(rows):
        for c in range(n):
            s, actions = state[b], []
            for k in range(h):
                policy = model.policy(s)
                sampled = torch.tanh(policy.mean + policy.std * draws[k][b, c])
                action = draws[k][b, c].clamp(-1, 1) if name == "grad-mpc" else sampled
                if memory is not None and memory.valid[b]:
                    old = memory.actions[b, min(k + 1, h - 1)]
                    action = planner.reuse * old + (1 - planner.reuse) * action
                actions.append(action)
                s = model.step(s, action)
            candidates[b, c], values[b, c] = plain_ascent(model, state[b], torch.stack(actions), planner)
    return candidates, values


LONG = {"dream-mpc": {"step_size": 1.0}, "grad-mpc": {"iterations": 4, "step_size": 0.4}}  # some entries are clamped
CLIPS = {"dream-mpc": 1.5, "grad-mpc": 2.0}  # some candidates are clipped, some not
SETTINGS = [
    *[(name, more) for name in ("dream-mpc", "grad-mpc") for more in ({}, LONG[name], {"reuse": 0.6})],
    ("dream-mpc", {"grad_clip": CLIPS["dream-mpc"], "step_size": 0.3}),
    ("dream-mpc", {"iterations": 3}),
    ("dream-mpc", {"horizon": 1, "uncertainty": -0.5}),
    ("grad-mpc", {"grad_clip": CLIPS["grad-mpc"]}),
    ("grad-mpc", {"objective": "rewards", "discount": 1.0}),
    ("grad-mpc", {"uncertainty": 0.5}),
    ("grad-mpc", {"horizon": 1, "iterations": 1}),
    ("policy-grad-mpc", {}),
]


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("name, settings", SETTINGS, ids=str)
def test_plan_is_that_of_the_plain_loop(name, settings, with_memory):
    planner, model, state = small(name, **settings), Smooth(), start()
    memory = previous_plan(horizon=planner.horizon) if with_memory else None
    expected, values = reference_plan(name, model, state, planner, memory, seed=5)
    result = plan(planner, model, state, memory, seed=5)
    torch.testing.assert_close(result.candidates, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.candidate_values, values, rtol=0, atol=1e-9)
    best = values.argmax(1)
    for b in range(2):
        torch.testing.assert_close(result.actions[b], expected[b, best[b]], rtol=0, atol=1e-7)
        torch.testing.assert_close(result.value[b], values[b, best[b]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CLIPS)
def test_the_settings_of_the_plain_loop_reach_clip_and_clamp(name):
    planner, model, state = small(name), Smooth(), start()
    idle = plan(replace(planner, iterations=0), model, state, seed=5).candidates
    lengths = [plain_gradient(model, state[b], idle[b, n], planner).norm() for b in range(2) for n in range(3)]
    assert min(lengths) < CLIPS[name] < max(lengths)
    moved = plan(replace(planner, **LONG[name]), model, state, seed=5).candidates
    assert ((moved.abs() == 1) & (idle.abs() < 1)).any() and not (moved.abs() == 1).all()


def test_executes_the_first_action_of_each_rows_best_candidate():
    result = plan(small("dream-mpc"), Smooth(), start(rows=8))
    best = result.candidate_values.argmax(1)
    assert best.unique().numel() > 1
    for b in range(8):
        assert torch.equal(result.actions[b], result.candidates[b, best[b]])
        assert torch.equal(result.action[b], result.candidates[b, best[b], 0])
        assert result.value[b] == result.candidate_values[b].max()
    assert torch.equal(result.memory.actions, result.actions) and result.memory.valid.all()
    assert not result.fallback.any()


# Proposals


@every_ascent
@pytest.mark.parametrize("reuse", [0.0, 0.3, 1.0])
def test_proposals_blend_with_the_previous_plan_shifted_by_one_step(name, reuse):
    """With a policy that is the same in every state: the last action of the previous plan is repeated."""

    class Constant(Smooth):
        def policy(self, state):
            return super().policy(torch.ones_like(state))

    memory, planner = previous_plan(), small(name, reuse=reuse, step_size=0.0)
    fresh, result = plan(planner, Constant(), start()), plan(planner, Constant(), start(), memory)
    shifted = torch.stack([memory.actions[:, k] for k in (1, 2, 3, 3)], dim=1)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(result.candidates, reuse * shifted + (1 - reuse) * fresh.candidates)


def test_the_mode_candidate_is_the_policys_mode_rolled_out():
    planner, model, state = small("dream-mpc", step_size=0.0, mode_candidate=True), Smooth(), start()
    result = plan(planner, model, state)
    current = state
    for k in range(4):
        action = model.policy(current).mode
        torch.testing.assert_close(result.candidates[:, 0, k], action)
        current = model.step(current, action)
    plain = plan(replace(planner, mode_candidate=False), model, state)
    assert torch.equal(result.candidates[:, 1:], plain.candidates[:, 1:])
    assert not torch.equal(result.candidates[:, 0], plain.candidates[:, 0])


@pytest.mark.parametrize(
    "settings", [{}, dict(iterations=0), dict(choose_by="after", mode_candidate=True, latent_noise="fixed")], ids=str
)
def test_policy_grad_mpc_is_dream_mpc_without_reuse_and_penalty(settings):
    model, state, memory = Noisy(), start(), previous_plan()
    settings = SMALL["policy-grad-mpc"] | settings
    plain, dream = PolicyGradMPC(**settings), DreamMPC(**PAPER | settings | {"reuse": 0.0, "uncertainty": 0.0})
    same(plan(plain, model, state, memory), plan(dream, model, state, memory))


# Candidates and gradients that break


def test_a_broken_candidate_is_never_chosen():
    planner, model = small("dream-mpc", candidates=8, horizon=2), Cliff()
    state = torch.cat([start(rows=6), torch.zeros(6, 1, dtype=torch.float64)], dim=1)
    result = plan(planner, model, state)
    proposed = plan(replace(planner, step_size=0.0), model, state).candidates
    # The reward of the last state is part of its value and is not read.
    broken = (proposed[:, :, :-1, 0] > 0).any(-1)
    assert torch.equal(result.candidate_values == -torch.inf, broken)
    assert broken.any() and not broken.all(1).any() and not result.fallback.any()
    assert not broken.gather(1, result.candidate_values.argmax(1, keepdim=True)).any()
    assert result.value.isfinite().all()


def test_a_gradient_that_is_not_finite_leaves_its_candidate_where_it_was():
    planner, model, state = small("dream-mpc"), Kinked(), start()
    result, idle = plan(planner, model, state), plan(replace(planner, step_size=0.0), model, state)
    kinked = (rollout(model, state, idle.candidates)[..., 0] > 0.9).any(-1)
    moved = (result.candidates != idle.candidates).flatten(2).any(-1)
    assert torch.equal(moved, ~kinked) and kinked.any() and moved.any()
    assert not result.fallback.any()


# The ascent


def test_gradient_is_clipped_per_candidate():
    grad = torch.tensor([3.0, 4.0, 0.3, 0.4, 30.0, 40.0, 0.0, 0.0]).view(2, 2, 2, 1)
    shortened = clipped(grad, 1.0, norm_of(grad)).flatten()
    torch.testing.assert_close(shortened, torch.tensor([0.6, 0.8, 0.3, 0.4, 0.6, 0.8, 0.0, 0.0]))
    assert not clipped(grad, 0.0, norm_of(grad)).any()


def test_ascent_skips_gradients_that_are_not_finite():
    actions = torch.full((1, 3, 1, 2, 1), 0.9)
    grad = torch.tensor([[5.0, -50.0], [torch.nan, 1.0], [torch.inf, 1.0]]).view(1, 3, 1, 2, 1)
    moved = ascend(actions, clipped(grad, 1000.0, norm_of(grad)), (0.1, 0.01))  # [1, 3, 2, 2, 1]
    expected = torch.tensor([1.4, -4.1, 0.95, 0.4, *[0.9] * 8])
    torch.testing.assert_close(moved.flatten(), expected)


def test_a_small_step_raises_j_of_every_candidate():
    planner = DreamMPC(**PAPER | dict(horizon=5, step_size=0.02, choose_by="after"))
    model, state = Quadratic(), start(size=2) * 0.5
    before = plan(replace(planner, step_size=0.0), model, state).candidate_values
    assert (plan(planner, model, state).candidate_values > before).all()


def test_a_model_that_ignores_the_actions_leaves_them_as_proposed():
    model, state, planner = Deaf(), start(), small("dream-mpc")
    result = plan(planner, model, state)
    same(result, plan(replace(planner, step_size=0.0), model, state))
    near(result, plan(planner, model.requires_grad_(False), state))


@every_ascent
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
    same(result, plan(small(name, iterations=0, choose_by="after"), Smooth(), state))


@every_ascent
def test_inference_mode_is_refused_in_words(name):
    """Without this check the gradient would silently be zero."""
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.no_grad"):
        small(name).plan(Smooth(), start())


# Options


def test_values_are_those_before_or_after_the_last_step():
    planner, model, state = small("dream-mpc", iterations=2), Smooth(), start()
    once = plan(replace(planner, iterations=1), model, state)
    before = plan(planner, model, state)
    after = plan(replace(planner, choose_by="after"), model, state)
    objective = planner.objective_function()
    for result, actions in ((before, once.candidates), (after, after.candidates)):
        torch.testing.assert_close(result.candidate_values, objective(model, rollout(model, state, actions)))
    assert torch.equal(before.candidates, after.candidates)


@every_ascent
@pytest.mark.parametrize("kind", ["return", "lambda-return"])
def test_objective_and_its_options_are_those_of_the_settings(name, kind):
    planner = small(
        name, objective=kind, return_lambda=0.4, scale_penalty=True, penalty_gradient=False, uncertainty=0.3
    )
    assert planner.objective_function() == Objective(0.9, 0.3, kind, 0.4, True, False)


def test_fresh_noise_is_drawn_at_each_rollout_by_the_model_itself():
    """With unchanged actions, J before and after differ only by the noise."""
    model, state = Noisy(distribution=Spread), start()

    def values(noise, choose_by):
        planner = small("dream-mpc", step_size=0.0, latent_noise=noise, choose_by=choose_by)
        return plan(planner, model, state).candidate_values

    assert torch.equal(values("fixed", "before"), values("fixed", "after"))
    assert not torch.equal(values("fresh", "before"), values("fresh", "after"))
    model.given.clear()
    values("fresh", "after")
    assert not model.given
