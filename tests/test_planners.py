"""Dream-MPC against an independent plain-loop implementation, and the promises of every planner."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from dreamer_mpc.planners import (
    DreamMPC,
    LatentModel,
    Memory,
    Plan,
    Planner,
    Policy,
    make_planner,
    reset_memory,
)
from dreamer_mpc.planners.ascent import ascend
from dreamer_mpc.planners.objective import rollout
from tests.latent_models import Broken, Cliff, Counting, Deaf, Kinked, Noisy, Quadratic, Smooth, Spread

SMALL = dict(horizon=4, candidates=3, uncertainty=0.3, step_size=0.1, discount=0.9)


def start(rows=2, size=3, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def previous_plan(rows=2, horizon=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    actions = torch.rand(rows, horizon, 2, generator=draw, dtype=torch.float64) * 1.8 - 0.9
    return Memory(actions, torch.ones(rows, dtype=torch.bool))


def plan(planner, model, state, memory=None, seed=0) -> Plan:
    torch.manual_seed(seed)
    return planner.plan(model, state, memory)


def same(a: Plan, b: Plan, rows=slice(None)):
    """Equal bit for bit in `rows`."""
    assert all(
        torch.equal(getattr(a, name)[rows], getattr(b, name)[rows])
        for name in ("action", "actions", "value", "candidates", "candidate_values", "fallback")
    )
    if a.memory is not None:
        assert all(torch.equal(x[rows], y[rows]) for x, y in zip(a.memory, b.memory, strict=True))


# Dream-MPC written again, one candidate and one number at a time.


def reference_j(model, state, actions, planner):
    total = 0.0
    for k, action in enumerate(actions):
        state = model.step(state, action)
        heads = model.value(state)
        spread = (heads - heads.mean()).square().mean().sqrt().item()
        gain = model.reward(state).item() if k < len(actions) - 1 else heads.mean().item()
        total += planner.discount**k * (gain - planner.uncertainty * spread)
    return total


def reference_gradient(model, state, actions, planner, epsilon=1e-6):
    slope = torch.zeros_like(actions)
    for k in range(actions.shape[0]):
        for i in range(actions.shape[1]):
            up, down = actions.clone(), actions.clone()
            up[k, i] += epsilon
            down[k, i] -= epsilon
            difference = reference_j(model, state, up, planner) - reference_j(model, state, down, planner)
            slope[k, i] = difference / (2 * epsilon)
    return slope


@torch.no_grad()
def reference_plan(model, state, planner, memory, seed):
    """(candidates after the ascent, J of each before its last step)."""
    rows, n, h = len(state), planner.candidates, planner.horizon
    torch.manual_seed(seed)
    draws = [torch.randn(rows, n, 2, dtype=torch.float64) for _ in range(h)]
    candidates, values = (
        torch.zeros(rows, n, h, 2, dtype=torch.float64),
        torch.zeros(rows, n, dtype=torch.float64),
    )
    for b in range(rows):
        for c in range(n):
            s, actions = state[b], []
            for k in range(h):
                policy = model.policy(s)
                action = torch.tanh(policy.mean + policy.std * draws[k][b, c])
                if memory is not None and memory.valid[b]:
                    old = memory.actions[b, min(k + 1, h - 1)]
                    action = planner.reuse * old + (1 - planner.reuse) * action
                actions.append(action)
                s = model.step(s, action)
            actions = torch.stack(actions)
            for _ in range(planner.iterations):
                values[b, c] = reference_j(model, state[b], actions, planner)
                slope = reference_gradient(model, state[b], actions, planner)
                length = slope.square().sum().sqrt().item()
                slope = slope * min(1.0, planner.grad_clip / length)
                actions = (actions + planner.step_size * slope).clamp(-1, 1)
            candidates[b, c] = actions
    return candidates, values


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"step_size": 1.0},  # clamped
        {"grad_clip": 1.5, "step_size": 0.3},  # some candidates clipped, some not
        {"iterations": 3},
        {"reuse": 0.6},
        {"horizon": 1, "uncertainty": -0.5},
    ],
    ids=str,
)
def test_plan_is_that_of_the_plain_loop(settings, with_memory):
    planner, model, state = DreamMPC(**SMALL | settings), Smooth(), start()
    memory = previous_plan(horizon=planner.horizon) if with_memory else None
    expected, values = reference_plan(model, state, planner, memory, seed=5)
    result = plan(planner, model, state, memory, seed=5)
    torch.testing.assert_close(result.candidates, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(result.candidate_values, values, rtol=0, atol=1e-9)
    best = values.argmax(1)
    for b in range(2):
        torch.testing.assert_close(result.actions[b], expected[b, best[b]], rtol=0, atol=1e-7)


def test_the_settings_of_the_plain_loop_reach_clip_and_clamp():
    """Some candidates are clipped and some not; with a long step some entries meet the bound."""
    planner, model, state = DreamMPC(**SMALL), Smooth(), start()
    idle = plan(replace(planner, step_size=0.0), model, state).candidates
    lengths = [
        reference_gradient(model, state[b], idle[b, n], planner).norm() for b in range(2) for n in range(3)
    ]
    assert min(lengths) < 1.5 < max(lengths)
    at_bound = plan(replace(planner, step_size=1.0), model, state).candidates.abs() == 1
    assert at_bound.any() and not at_bound.all()


def test_executes_the_first_action_of_each_rows_best_candidate():
    result = plan(DreamMPC(**SMALL), Smooth(), start(rows=8))
    best = result.candidate_values.argmax(1)
    assert best.unique().numel() > 1
    for b in range(8):
        assert torch.equal(result.actions[b], result.candidates[b, best[b]])
        assert torch.equal(result.action[b], result.candidates[b, best[b], 0])
        assert result.value[b] == result.candidate_values[b].max()
    assert torch.equal(result.memory.actions, result.actions) and result.memory.valid.all()
    assert not result.fallback.any()


def test_gradient_is_clipped_per_candidate():
    actions, grad = (
        torch.zeros(2, 2, 2, 1),
        torch.tensor([3.0, 4.0, 0.3, 0.4, 30.0, 40.0, 0.0, 0.0]).view(2, 2, 2, 1),
    )
    moved = ascend(actions, grad, step_size=0.5, grad_clip=1.0).flatten()
    torch.testing.assert_close(moved, torch.tensor([0.3, 0.4, 0.15, 0.2, 0.3, 0.4, 0.0, 0.0]))
    assert not ascend(actions, grad, step_size=0.5, grad_clip=0.0).any()


def test_ascent_stays_in_bounds_and_skips_gradients_that_are_not_finite():
    actions = torch.full((1, 3, 2, 1), 0.9)
    grad = torch.tensor([[5.0, -50.0], [torch.nan, 1.0], [torch.inf, 1.0]]).view(1, 3, 2, 1)
    moved = ascend(actions, grad, step_size=1.0, grad_clip=1000.0).flatten()
    torch.testing.assert_close(moved, torch.tensor([1.0, -1.0, 0.9, 0.9, 0.9, 0.9]))


# The previous plan


@pytest.mark.parametrize("reuse", [0.0, 0.3, 1.0])
def test_proposals_blend_with_the_previous_plan_shifted_by_one_step(reuse):
    """With a policy that always says 0.5: the last action of the previous plan is repeated."""

    class Constant(Smooth):
        def policy(self, state):
            mean = torch.full_like(state[..., :2], 0.5).atanh()
            return self.distribution(mean, torch.zeros_like(mean))

    memory = previous_plan()
    result = plan(DreamMPC(**SMALL | dict(reuse=reuse, step_size=0.0)), Constant(), start(), memory)
    shifted = torch.stack([memory.actions[:, k] for k in (1, 2, 3, 3)], dim=1)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(result.candidates, reuse * shifted + (1 - reuse) * 0.5)


def test_without_reuse_the_memory_does_not_matter():
    planner, model, state = DreamMPC(**SMALL | dict(reuse=0.0)), Smooth(), start()
    same(plan(planner, model, state, previous_plan()), plan(planner, model, state))


def test_rows_that_are_reset_start_over_and_the_others_do_not():
    planner, model, state, memory = DreamMPC(**SMALL), Smooth(), start(rows=3), previous_plan(rows=3)
    fresh, kept = plan(planner, model, state), plan(planner, model, state, memory)
    mixed = plan(planner, model, state, reset_memory(memory, torch.tensor([False, True, False])))
    same(mixed, fresh, rows=[1])
    same(mixed, kept, rows=[0, 2])
    assert not torch.equal(fresh.candidates[0], kept.candidates[0])
    assert memory.valid.all() and reset_memory(None, torch.tensor([True])) is None


def test_reset_forgets_for_good():
    memory = previous_plan(rows=2).reset(torch.tensor([True, False]))
    assert memory.reset(torch.tensor([False, False])).valid.tolist() == [False, True]


def test_a_plan_takes_the_memory_of_the_one_before():
    planner, model, state = DreamMPC(**SMALL | dict(reuse=0.5)), Smooth(), start()
    first = plan(planner, model, state)
    by_hand = Memory(first.actions.clone(), torch.ones(2, dtype=torch.bool))
    same(plan(planner, model, state, first.memory, seed=1), plan(planner, model, state, by_hand, seed=1))


@pytest.mark.parametrize("rows, horizon", [(2, 3), (2, 5), (3, 4), (1, 4)])
def test_memory_of_another_shape_is_an_error(rows, horizon):
    with pytest.raises(ValueError, match="memory has actions"):
        DreamMPC(**SMALL).plan(Smooth(), start(), previous_plan(rows, horizon))


# What every plan promises


def test_rows_plan_as_they_would_alone():
    """With candidates that differ without randomness, so that alone and together they are the same."""
    planner, model = DreamMPC(**SMALL | dict(iterations=2)), Smooth(distribution=Spread, std=0.9)
    state, memory = start(rows=3), previous_plan(rows=3)
    together = planner.plan(model, state, memory)
    for b in range(3):
        alone = planner.plan(
            model, state[b : b + 1], Memory(memory.actions[b : b + 1], memory.valid[b : b + 1])
        )
        for name in ("action", "actions", "value", "candidates", "candidate_values"):
            torch.testing.assert_close(
                getattr(together, name)[b], getattr(alone, name)[0], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize(
    "settings", [{}, {"choose_by": "after", "latent_noise": "fixed", "objective": "lambda-return"}]
)
@pytest.mark.parametrize("change", [3.0, torch.nan, 1e300])
def test_a_row_does_not_influence_the_others(change, settings):
    planner, model, state = DreamMPC(**SMALL | settings), Noisy(), start(rows=3)
    before = plan(planner, model, state, previous_plan(rows=3))
    other = state.clone()
    other[1] = change
    after = plan(planner, model, other, previous_plan(rows=3))
    same(before, after, rows=[0, 2])
    assert not torch.equal(before.candidates[1], after.candidates[1])


@pytest.mark.parametrize("planner", [DreamMPC(**SMALL), Policy()], ids=lambda planner: type(planner).__name__)
def test_planning_leaves_parameters_inputs_and_grad_mode_alone(planner):
    model, state, memory = Smooth(), start(), previous_plan() if isinstance(planner, DreamMPC) else None
    model.push.grad = torch.ones_like(model.push)
    kept = [state.clone(), *(x.clone() for x in memory or [])]
    result = plan(planner, model, state, memory)
    assert torch.equal(model.push.grad, torch.ones_like(model.push))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "push")
    assert all(torch.equal(x, y) for x, y in zip(kept, [state, *(memory or [])], strict=True))
    assert not any(getattr(result, f.name).requires_grad for f in fields(Plan)[:5])
    assert torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters())


def test_plans_the_same_under_no_grad_and_with_frozen_parameters_or_a_state_that_has_a_graph():
    planner, model, state = DreamMPC(**SMALL | dict(iterations=2)), Smooth(), start()
    expected = plan(planner, model, state)
    with torch.no_grad():
        same(plan(planner, model, state), expected)
    leaf = state.clone().requires_grad_()
    same(plan(planner, model, leaf * 1.0), expected)
    assert leaf.grad is None
    same(plan(planner, model.requires_grad_(False), state), expected)


def test_a_seed_repeats_a_plan_and_another_seed_does_not():
    planner, model, state = DreamMPC(**SMALL), Noisy(), start()
    same(plan(planner, model, state, seed=7), plan(planner, model, state, seed=7))
    assert not torch.equal(
        plan(planner, model, state, seed=7).action, plan(planner, model, state, seed=8).action
    )


def test_a_planner_carries_nothing_from_one_call_to_the_next():
    planner, model, state = DreamMPC(**SMALL), Smooth(), start()
    expected = plan(planner, model, state)
    plan(planner, Noisy(seed=3), start(rows=5, seed=4), previous_plan(rows=5))
    same(plan(planner, model, state), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "planner", [DreamMPC(**SMALL | dict(choose_by="after")), Policy()], ids=["dream", "policy"]
)
def test_dtype_of_the_state_is_that_of_the_plan(planner, dtype):
    model, state = Smooth().to(dtype), start().to(dtype)
    first = plan(planner, model, state)
    second = plan(planner, model, state, first.memory)
    for result in (first, second):
        assert all(getattr(result, f.name).dtype == dtype for f in fields(Plan)[:5])
        assert result.action.isfinite().all() and result.action.abs().max() <= 1


def test_any_state_size_and_any_action_size():
    class Wide(Quadratic):
        action_dim = 7

        def step(self, state, action):
            return state + action.repeat(*[1] * (action.ndim - 1), 2)

        def policy(self, state):
            return super().policy(state[..., :7])

    model = Wide((0.1,) * 14)
    assert (
        isinstance(model, LatentModel) and isinstance(DreamMPC(), Planner) and isinstance(Policy(), Planner)
    )
    assert plan(DreamMPC(**SMALL), model, start(size=14)).actions.shape == (2, 4, 7)


def test_a_model_that_ignores_the_actions_leaves_them_as_proposed():
    model, state = Deaf(), start()
    result = plan(DreamMPC(**SMALL), model, state)
    same(result, plan(DreamMPC(**SMALL | dict(step_size=0.0)), model, state))
    same(result, plan(DreamMPC(**SMALL), model.requires_grad_(False), state))


# Models that return something not finite


@pytest.mark.parametrize(
    "part, bad",
    [
        *[(part, bad) for part in ("reward", "value") for bad in (torch.nan, torch.inf, -torch.inf)],
        ("step", torch.nan),
    ],
)
@pytest.mark.parametrize("choose_by", ["before", "after"])
def test_a_broken_row_falls_back_to_the_policys_mode(part, bad, choose_by):
    planner = DreamMPC(
        **SMALL | dict(choose_by=choose_by, iterations=2, uncertainty=0.0 if part == "reward" else 0.3)
    )
    marks = torch.tensor([[0.0], [20.0], [0.0]], dtype=torch.float64)
    state = torch.cat([start(rows=3), marks], dim=1)
    result = plan(planner, Broken(part, bad), state, previous_plan(rows=3))
    healthy = plan(planner, Broken("nothing"), state, previous_plan(rows=3))
    assert result.fallback.tolist() == [False, True, False]
    same(result, healthy, rows=[0, 2])
    assert torch.equal(result.action[1], Broken(part).policy(state[1]).mode)
    assert result.candidate_values[1].eq(-torch.inf).all()
    assert all(
        x.isfinite().all() and x.abs().max() <= 1 for x in (result.action, result.actions, result.candidates)
    )
    assert result.memory.valid.tolist() == [True, False, True]


def test_a_fallback_is_not_blended_into_the_next_plan():
    state = torch.cat([start(rows=2), torch.tensor([[0.0], [20.0]], dtype=torch.float64)], dim=1)
    planner = DreamMPC(**SMALL | dict(reuse=0.5))
    first = plan(planner, Broken("reward"), state)
    same(plan(planner, Broken("none"), state, first.memory), plan(planner, Broken("none"), state), rows=[1])


@pytest.mark.parametrize("planner", [DreamMPC(**SMALL), Policy()], ids=["dream", "policy"])
def test_actions_are_finite_even_where_the_policy_is_not(planner):
    state = torch.cat([start(rows=2), torch.tensor([[0.0], [20.0]], dtype=torch.float64)], dim=1)
    result = plan(planner, Broken("policy"), state)
    same(result, plan(planner, Broken("nothing"), state), rows=[0])
    assert result.fallback.tolist() == [False, True]
    assert result.action.isfinite().all() and result.candidates.isfinite().all()


def test_a_broken_candidate_is_never_chosen():
    planner, model = DreamMPC(**SMALL | dict(candidates=8, horizon=2)), Cliff()
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
    planner, model, state = DreamMPC(**SMALL), Kinked(), start()
    result, idle = plan(planner, model, state), plan(replace(planner, step_size=0.0), model, state)
    kinked = (rollout(model, state, idle.candidates)[..., 0] > 0.9).any(-1)
    moved = (result.candidates != idle.candidates).flatten(2).any(-1)
    assert torch.equal(moved, ~kinked) and kinked.any() and moved.any()
    assert not result.fallback.any()


# The ascent


def test_a_small_step_raises_j_of_every_candidate():
    planner, model, state = (
        DreamMPC(horizon=5, step_size=0.02, choose_by="after"),
        Quadratic(),
        start(size=2) * 0.5,
    )
    before = plan(replace(planner, step_size=0.0), model, state).candidate_values
    after = plan(planner, model, state).candidate_values
    assert (after > before).all()


def test_more_iterations_lead_to_the_optimum():
    planner, model, state = (
        DreamMPC(horizon=3, step_size=0.6, choose_by="after"),
        Quadratic(),
        start(size=2) * 0.1,
    )
    best = torch.zeros(2, 3, 2, dtype=torch.float64)
    best[:, 0] = 2 * (model.goal.detach() - state)
    assert best.abs().max() < 1
    gaps = [
        (plan(replace(planner, iterations=i), model, state).candidates - best[:, None]).norm()
        for i in (0, 1, 10, 120)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3] and gaps[3] < 1e-3
    result = plan(replace(planner, iterations=120), model, state)
    assert (result.value > -1e-6).all()


def test_at_the_optimum_the_ascent_stays():
    class Settled(Quadratic):
        def policy(self, state):
            return super().policy(torch.zeros_like(state))._replace(std=torch.zeros_like(state))

    model = Settled()
    state = model.goal.detach().expand(2, 2)
    result = plan(DreamMPC(**SMALL), model, state)
    torch.testing.assert_close(result.candidates, torch.zeros_like(result.candidates), rtol=0, atol=1e-12)


# Settings


def test_values_are_those_before_or_after_the_last_step():
    planner, model, state = DreamMPC(**SMALL | dict(iterations=2)), Smooth(), start()
    once = plan(replace(planner, iterations=1), model, state)
    before = plan(planner, model, state)
    after = plan(replace(planner, choose_by="after"), model, state)
    objective = planner.objective_function()
    torch.testing.assert_close(
        before.candidate_values, objective(model, rollout(model, state, once.candidates))
    )
    torch.testing.assert_close(
        after.candidate_values, objective(model, rollout(model, state, after.candidates))
    )
    assert torch.equal(before.candidates, after.candidates)


def test_no_iterations_choose_among_the_policys_rollouts():
    planner, model, state = DreamMPC(**SMALL | dict(iterations=0)), Smooth(), start()
    result = plan(planner, model, state)
    same(result, plan(replace(planner, iterations=1, step_size=0.0), model, state))
    same(result, plan(replace(planner, choose_by="after"), model, state))


@pytest.mark.parametrize("kind", ["return", "lambda-return"])
def test_objective_and_its_options_are_those_of_the_settings(kind):
    planner = DreamMPC(**SMALL, objective=kind, return_lambda=0.4, scale_penalty=True, penalty_gradient=False)
    objective = planner.objective_function()
    assert (objective.kind, objective.lambda_, objective.discount, objective.uncertainty) == (
        kind,
        0.4,
        0.9,
        0.3,
    )
    assert objective.scale_penalty and not objective.penalty_gradient


def test_the_mode_candidate_is_the_policys_mode_rolled_out():
    planner, model, state = DreamMPC(**SMALL | dict(step_size=0.0), mode_candidate=True), Smooth(), start()
    result = plan(planner, model, state)
    current = state
    for k in range(4):
        action = model.policy(current).mode
        torch.testing.assert_close(result.candidates[:, 0, k], action)
        current = model.step(current, action)
    plain = plan(replace(planner, mode_candidate=False), model, state)
    assert torch.equal(result.candidates[:, 1:], plain.candidates[:, 1:])
    assert not torch.equal(result.candidates[:, 0], plain.candidates[:, 0])


def test_fixed_noise_is_drawn_once_for_every_step_and_candidate_and_reused():
    model = Noisy()
    plan(DreamMPC(**SMALL, iterations=3, choose_by="after", latent_noise="fixed"), model, start())
    given = torch.stack(model.given).unflatten(0, (4, 4))  # [rollout, H, B, N, S]
    assert all(torch.equal(given[0], again) for again in given[1:])
    assert given[0].unique().numel() == given[0].numel()


def test_mean_noise_plans_in_the_model_without_noise():
    planner, state = DreamMPC(**SMALL, iterations=2, latent_noise="mean"), start()
    noisy, smooth = Noisy(distribution=Spread), Smooth(distribution=Spread)
    same(plan(planner, noisy, state, seed=1), plan(replace(planner, latent_noise="fresh"), smooth, state))
    assert not any(draw.any() for draw in noisy.given)


def test_fresh_noise_is_drawn_at_each_rollout_by_the_model_itself():
    """With actions that stay where they are, J before and after differ only by the noise."""
    model, state = Noisy(distribution=Spread), start()

    def values(noise, choose_by):
        planner = DreamMPC(**SMALL | dict(step_size=0.0), latent_noise=noise, choose_by=choose_by)
        return plan(planner, model, state).candidate_values

    assert torch.equal(values("fixed", "before"), values("fixed", "after"))
    assert not torch.equal(values("fresh", "before"), values("fresh", "after"))
    model.given.clear()
    values("fresh", "after")
    assert not model.given


@pytest.mark.parametrize("noise", ["fixed", "mean"])
def test_a_model_without_noise_says_so(noise):
    with pytest.raises(ValueError, match="Smooth has no noise method"):
        DreamMPC(**SMALL, latent_noise=noise).plan(Smooth(), start())


CHANGES = [
    ({}, {"horizon": 3}),
    ({}, {"candidates": 4}),
    ({}, {"iterations": 2}),
    ({}, {"step_size": 0.2}),
    ({}, {"grad_clip": 0.1}),
    ({}, {"reuse": 0.5}),
    ({}, {"discount": 0.5}),
    ({}, {"uncertainty": 0.6}),
    ({}, {"scale_penalty": True}),
    ({}, {"penalty_gradient": False}),
    ({}, {"objective": "lambda-return"}),
    ({"objective": "lambda-return"}, {"return_lambda": 0.5}),
    ({}, {"choose_by": "after"}),
    ({}, {"latent_noise": "fixed"}),
    ({"latent_noise": "fixed"}, {"latent_noise": "mean"}),
    ({}, {"mode_candidate": True}),
]


def test_every_setting_is_in_the_list_of_changes():
    assert {name for _, change in CHANGES for name in change} == {field.name for field in fields(DreamMPC)}


@pytest.mark.parametrize("base, change", CHANGES, ids=str)
def test_every_setting_changes_the_plan(base, change):
    model, state = Noisy(), start()
    memory = None if "horizon" in change else previous_plan()
    results = [plan(DreamMPC(**SMALL | base | more), model, state, memory) for more in ({}, change)]
    a, b = (r.candidate_values if "choose_by" in change else r.candidates for r in results)
    assert a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings, expected",
    [({}, 75), ({"iterations": 3, "choose_by": "after"}, 300), ({"iterations": 0, "choose_by": "after"}, 75)],
    ids=str,
)
def test_model_evaluations_are_the_steps_that_the_model_counts(settings, expected):
    planner, model = DreamMPC(**settings), Counting()
    first = planner.plan(model, start(rows=1))
    assert model.count == first.model_evaluations == planner.model_evaluations == expected
    model.count = 0
    second = planner.plan(model, start(rows=1), first.memory)
    assert model.count == second.model_evaluations == expected
    model.count = 0
    assert planner.plan(model, start(rows=3)).model_evaluations * 3 == model.count


def test_defaults_are_the_papers():
    planner = make_planner("dream-mpc")
    assert (planner.horizon, planner.candidates, planner.iterations) == (15, 5, 1)
    assert (planner.step_size, planner.reuse, planner.discount) == (0.1, 0.1, 0.99)
    assert planner.penalty_gradient and not planner.scale_penalty and planner.objective == "return"


# make_planner, and the policy


def test_make_planner_passes_settings_on():
    assert make_planner("dream-mpc", horizon=7, reuse=0.2) == DreamMPC(horizon=7, reuse=0.2)
    assert make_planner("policy") == Policy()


def test_an_unknown_planner_or_setting_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="unknown planner 'dreem-mpc'.*policy, dream-mpc"):
        make_planner("dreem-mpc")
    with pytest.raises(
        ValueError, match="dream-mpc has no setting horizn: known are horizon, candidates, .*reuse"
    ):
        make_planner("dream-mpc", horizn=3)
    with pytest.raises(ValueError, match="policy has no setting horizon: known are none"):
        make_planner("policy", horizon=3)


@pytest.mark.parametrize(
    "name, value",
    [
        *[(name, 0) for name in ("horizon", "candidates")],
        *[(name, -1) for name in ("iterations", "step_size", "grad_clip", "reuse", "discount", "return_lambda")],
        *[(name, 1.01) for name in ("reuse", "discount", "return_lambda")],
        *[(name, float("nan")) for name in ("step_size", "grad_clip", "reuse", "discount", "uncertainty")],
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        make_planner("dream-mpc", **{name: value})


CHOICES = """
from dreamer_mpc.planners import make_planner
for name in ("objective", "choose_by", "latent_noise"):
    try:
        make_planner("dream-mpc", **{name: "frozen"})
    except ValueError as error:
        assert name in str(error) and "frozen" in str(error), error
    else:
        raise AssertionError(f"{name}='frozen' is accepted")
"""


def test_a_choice_that_does_not_exist_is_an_error_that_names_it():
    """In a process of its own, where nothing checks the annotations."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", CHOICES], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_policy_executes_its_mode_for_no_evaluation():
    model, state = Counting(), start(rows=4)
    torch.manual_seed(0)
    result = Policy().plan(model, state)
    assert torch.equal(result.action, model.policy(state).mode) and torch.equal(
        result.actions[:, 0], result.action
    )
    assert result.actions.shape == (4, 1, 2) and result.candidates.shape == (4, 1, 1, 2)
    torch.testing.assert_close(result.value, model.value(state).mean(0).detach())
    assert result.model_evaluations == model.count == 0 and result.memory is None
