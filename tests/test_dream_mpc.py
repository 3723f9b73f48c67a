"""Dream-MPC against an independent plain-loop implementation: the previous plan, the ascent and its options."""

from dataclasses import replace

import pytest
import torch

from dreamer_mpc.planners import DreamMPC, Memory
from dreamer_mpc.planners.ascent import ascend
from dreamer_mpc.planners.objective import rollout
from tests.support.latent_models import Cliff, Counting, Deaf, Kinked, Noisy, Quadratic, Smooth, Spread
from tests.support.planning import plain_ascent, plain_gradient, plan, previous_plan, same, start

SMALL = dict(horizon=4, candidates=3, uncertainty=0.3, step_size=0.1, discount=0.9)


@torch.no_grad()
def reference_plan(model, state, planner, memory, seed):
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
                action = torch.tanh(policy.mean + policy.std * draws[k][b, c])
                if memory is not None and memory.valid[b]:
                    old = memory.actions[b, min(k + 1, h - 1)]
                    action = planner.reuse * old + (1 - planner.reuse) * action
                actions.append(action)
                s = model.step(s, action)
            candidates[b, c], values[b, c] = plain_ascent(model, state[b], torch.stack(actions), planner)
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
        plain_gradient(model, state[b], idle[b, n], planner).norm() for b in range(2) for n in range(3)
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


def test_defaults_are_the_papers():
    planner = DreamMPC()
    assert (planner.horizon, planner.candidates, planner.iterations) == (15, 5, 1)
    assert (planner.step_size, planner.reuse, planner.discount) == (0.1, 0.1, 0.99)
    assert planner.penalty_gradient and not planner.scale_penalty and planner.objective == "return"


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


def test_a_plan_takes_the_memory_of_the_one_before():
    planner, model, state = DreamMPC(**SMALL | dict(reuse=0.5)), Smooth(), start()
    first = plan(planner, model, state)
    by_hand = Memory(first.actions.clone(), torch.ones(2, dtype=torch.bool))
    same(plan(planner, model, state, first.memory, seed=1), plan(planner, model, state, by_hand, seed=1))


# Candidates alone, and candidates that break


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


def test_a_model_that_ignores_the_actions_leaves_them_as_proposed():
    model, state = Deaf(), start()
    result = plan(DreamMPC(**SMALL), model, state)
    same(result, plan(DreamMPC(**SMALL | dict(step_size=0.0)), model, state))
    same(result, plan(DreamMPC(**SMALL), model.requires_grad_(False), state))


# Options


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
