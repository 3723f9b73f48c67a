"""CEM against an independent plain-loop implementation, its warm start, and models that break."""

import pytest
import torch

from dreamer_mpc.planners import CEM, Memory
from dreamer_mpc.planners.objective import rollout
from tests.support.latent_models import Bare, Broken, Cliff, Counting, Smooth
from tests.support.planning import clamp, marked, plain_j, plain_mean_and_std, plan, previous_plan, same, start

SMALL = dict(horizon=3, candidates=10, iterations=3, elites=4)


@torch.no_grad()
def reference_plan(model, state, planner, memory, seed):
    """Of each row: the last iteration's candidates [N][H][A], J of each, its elites' mean J, the mean [H][A]."""
    torch.manual_seed(seed)
    rows, n, h, a = len(state), planner.candidates, planner.horizon, model.action_dim
    draws = [torch.randn(rows, n, h, a, dtype=torch.float64).tolist() for _ in range(planner.iterations)]
    result = []
    for b in range(rows):
        mean, std = [[0.0] * a for _ in range(h)], [[1.0] * a for _ in range(h)]
        if memory is not None and memory.valid[b]:
            for k in range(h - 1):
                mean[k] = [planner.reuse * x for x in memory.actions[b, k + 1].tolist()]
        for draw in draws:
            candidates = [
                [[clamp(mean[k][i] + std[k][i] * draw[b][c][k][i]) for i in range(a)] for k in range(h)]
                for c in range(n)
            ]
            values = [plain_j(model, state[b], torch.tensor(c, dtype=torch.float64), planner) for c in candidates]
            best = sorted(range(n), key=lambda c: -values[c])[: planner.elites]
            mean, std = plain_mean_and_std([candidates[c] for c in best], [1 / len(best)] * len(best))
        result.append((candidates, values, sum(values[c] for c in best) / len(best), mean))
    return [torch.tensor(part, dtype=torch.float64) for part in zip(*result)]


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reuse": 0.7},
        {"discount": 0.6},
        {"objective": "return", "discount": 0.9, "reuse": 1.0},
        {"uncertainty": 0.4},
        {"elites": 1},  # the Gaussian collapses to the best sample
        {"elites": 10, "iterations": 2},  # no selection
        {"horizon": 1, "candidates": 7, "iterations": 1},
    ],
    ids=str,
)
def test_plan_is_that_of_the_plain_loop(settings, with_memory):
    planner, model, state = CEM(**SMALL | settings), Smooth(), start()
    memory = previous_plan(horizon=planner.horizon) if with_memory else None
    candidates, values, value, mean = reference_plan(model, state, planner, memory, seed=5)
    result = plan(planner, model, state, memory, seed=5)
    torch.testing.assert_close(result.candidates, candidates, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.candidate_values, values, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.value, value, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.actions, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.action, mean[:, 0], rtol=0, atol=1e-10)
    assert torch.equal(result.memory.actions, result.actions) and result.memory.valid.all()
    assert not result.fallback.any()


def test_defaults_are_planets():
    planner = CEM()
    assert (planner.horizon, planner.candidates, planner.iterations, planner.elites) == (12, 1000, 10, 100)
    assert (planner.objective, planner.discount, planner.uncertainty, planner.reuse) == ("rewards", 1, 0, 0)
    assert planner.requires == ()


def test_the_first_samples_are_standard_normal_and_clamped():
    result = plan(CEM(horizon=3, candidates=4000, iterations=1, elites=5), Smooth(), start(), seed=3)
    torch.manual_seed(3)
    noise = torch.randn(2, 4000, 3, 2, dtype=torch.float64)
    assert torch.equal(result.candidates, noise.clamp(-1, 1))
    assert (noise.abs() > 1).any()


# The previous plan


@pytest.mark.parametrize("reuse", [0.0, 0.5, 1.0])
def test_the_previous_mean_is_shifted_by_one_step_and_ends_in_zero(reuse):
    planner, memory = CEM(horizon=4, candidates=6, iterations=1, elites=2, reuse=reuse), previous_plan()
    result = plan(planner, Smooth(), start(), memory)
    torch.manual_seed(0)
    noise = torch.randn(2, 6, 4, 2, dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    shifted = torch.stack([memory.actions[:, 1], memory.actions[:, 2], memory.actions[:, 3], zero], dim=1)
    torch.testing.assert_close(result.candidates, (reuse * shifted[:, None] + noise).clamp(-1, 1), rtol=0, atol=1e-12)


def test_a_plan_hands_its_mean_to_the_next():
    planner, model, state = CEM(**SMALL, reuse=1.0), Smooth(), start()
    first = plan(planner, model, state)
    by_hand = Memory(first.actions.clone(), torch.ones(2, dtype=torch.bool))
    second = plan(planner, model, state, first.memory, seed=1)
    same(second, plan(planner, model, state, by_hand, seed=1))
    assert not torch.equal(second.candidates, plan(planner, model, state, seed=1).candidates)


# Models that break


def fell(candidates):
    """Which candidates of `Cliff` have a reward of NaN under the sum of all rewards."""
    return (candidates[..., 0] > 0).any(-1)


def test_broken_candidates_never_enter_the_elites():
    """About a quarter of the samples are whole, fewer than there are elites: those alone make the mean."""
    planner, model, state = CEM(horizon=2, candidates=24, iterations=1, elites=12), Cliff(), marked(start(), 0, 0.0)
    result = plan(planner, model, state)
    broken = fell(result.candidates)
    assert torch.equal(result.candidate_values == -torch.inf, broken) and not result.fallback.any()
    for b in range(2):
        whole = [c for c in range(24) if not broken[b, c]]
        assert 2 <= len(whole) < 12
        torch.testing.assert_close(result.actions[b], result.candidates[b, whole].mean(0), rtol=0, atol=1e-12)
        values = [plain_j(model, state[b], result.candidates[b, c], planner) for c in whole]
        assert result.value[b].item() == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_broken_candidates_keep_away_the_mean_of_every_iteration():
    state = marked(start(), 0, 0.0)
    planner = CEM(horizon=2, candidates=24, iterations=3, elites=6)
    result = plan(planner, Cliff(), state)
    assert (result.actions[..., 0] <= 0).all() and result.value.isfinite().all()
    # The Gaussian has moved to where most of what it samples is whole.
    assert fell(result.candidates).double().mean() < 0.4 < fell(start(1000, 4).view(1, 1000, 2, 2)).double().mean()
    values = rollout(Cliff(), state, result.actions[:, None])
    assert Cliff().reward(values).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_row_falls_back_and_leaves_the_others_alone(bad):
    planner, state, memory = CEM(**SMALL, reuse=0.5), marked(start(3), row=1), previous_plan(3, horizon=3)
    result = plan(planner, Broken("reward", bad), state, memory)
    healthy = plan(planner, Broken("nothing"), state, memory)
    assert result.fallback.tolist() == [False, True, False]
    same(result, healthy, rows=[0, 2])
    assert torch.equal(result.action[1], Broken("nothing").policy(state[1]).mode)
    assert result.value[1] == -torch.inf and result.candidate_values[1].eq(-torch.inf).all()
    assert result.memory.valid.tolist() == [True, False, True]


def test_without_a_policy_the_fallback_is_the_zero_action():
    state = marked(start(3), row=1)
    result = plan(CEM(**SMALL), Bare(), state)
    assert result.fallback.tolist() == [False, True, False]
    assert not result.actions[1].any() and result.actions[[0, 2]].all()


def test_every_iteration_steps_every_candidate_along_the_horizon():
    planner, model = CEM(**SMALL), Counting()
    assert plan(planner, model, start(rows=5)).model_evaluations == 10 * 3 * 3
    assert model.count == 5 * 10 * 3 * 3
