"""MPPI against an independent plain-loop implementation, its draw of an elite, its warm start, broken models."""

import math
from typing import NamedTuple

import pytest
import torch

from dreamer_mpc.planners import MPPI, Memory
from tests.support.latent_models import Broken, Cliff, Counting, Noisy, Smooth, Spread
from tests.support.planning import clamp, marked, plain_j, plain_mean_and_std, plan, previous_plan, same, start

SMALL = dict(horizon=3, candidates=10, iterations=3, elites=4, policy_candidates=3, discount=0.9)


class Reference(NamedTuple):
    """What the plain loop finds; `refitted` are standard deviations before they are bounded."""

    candidates: torch.Tensor  # [B, N, H, A], of the last iteration
    values: torch.Tensor  # [B, N]
    drawn: torch.Tensor  # [B], the executed candidate
    mean: torch.Tensor  # [B, H, A]
    refitted: torch.Tensor  # [B, I, H, A]


@torch.no_grad()
def reference_plan(model, state, planner, memory, seed) -> Reference:
    """MPPI with one candidate and one number at a time; only the draws are those of whole tensors."""
    torch.manual_seed(seed)
    rows, n, p, h = len(state), planner.candidates, planner.policy_candidates, planner.horizon
    a = model.action_dim
    policy_draws = [torch.randn(rows, p, a, dtype=torch.float64) for _ in range(h if p else 0)]
    draws = [torch.randn(rows, n - p, h, a, dtype=torch.float64).tolist() for _ in range(planner.iterations)]
    arrivals = torch.empty(rows, planner.elites, dtype=torch.float64).exponential_().tolist()
    result = []
    for b in range(rows):
        proposals = []
        for c in range(p):
            s, actions = state[b], []
            for k in range(h):
                mean, std = model.policy(s)
                actions.append(torch.tanh(mean + std * policy_draws[k][b, c]))
                s = model.step(s, actions[-1])
            proposals.append([action.tolist() for action in actions])
        mean, std = [[0.0] * a for _ in range(h)], [[planner.max_std] * a for _ in range(h)]
        if memory is not None and memory.valid[b]:
            for k in range(h - 1):
                mean[k] = [planner.reuse * x for x in memory.actions[b, k + 1].tolist()]
        refitted = []
        for draw in draws:
            candidates = proposals + [
                [[clamp(mean[k][i] + std[k][i] * draw[b][c][k][i]) for i in range(a)] for k in range(h)]
                for c in range(n - p)
            ]
            values = [plain_j(model, state[b], torch.tensor(c, dtype=torch.float64), planner) for c in candidates]
            best = sorted(range(n), key=lambda c: -values[c])[: planner.elites]
            scores = [math.exp(planner.temperature * (values[c] - values[best[0]])) for c in best]
            weights = [score / sum(scores) for score in scores]
            mean, std = plain_mean_and_std([candidates[c] for c in best], weights)
            refitted.append(std)
            std = [[min(max(x, planner.min_std), planner.max_std) for x in step] for step in std]
        # Elite e arrives at rate weights[e]: the first to arrive is e with probability weights[e].
        drawn = best[min(range(len(best)), key=lambda e: arrivals[b][e] / weights[e])]
        result.append((candidates, values, drawn, mean, refitted))
    kinds = [torch.float64, torch.float64, torch.long, torch.float64, torch.float64]
    return Reference(*[torch.tensor(part, dtype=kind) for part, kind in zip(zip(*result), kinds)])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


SETTINGS = [
    {},
    {"reuse": 0.4},
    {"policy_candidates": 0},
    {"policy_candidates": 10, "iterations": 2},  # nothing is sampled
    {"temperature": 0.0},
    {"temperature": 20.0},
    {"elites": 1, "min_std": 0.3},
    {"elites": 10, "iterations": 2},
    {"max_std": 0.3, "min_std": 0.25},
    {"objective": "rewards", "discount": 1.0},
    {"uncertainty": 0.5},
    {"horizon": 1, "iterations": 1},
]


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_plan_is_that_of_the_plain_loop(settings, with_memory):
    planner, model, state = MPPI(**SMALL | settings), Smooth(), start()
    memory = previous_plan(horizon=planner.horizon) if with_memory else None
    expected = reference_plan(model, state, planner, memory, seed=5)
    result = plan(planner, model, state, memory, seed=5)
    close(result.candidates, expected.candidates)
    close(result.candidate_values, expected.values)
    close(result.memory.actions, expected.mean)
    assert result.memory.valid.all() and not result.fallback.any()
    for b in range(2):
        close(result.actions[b], expected.candidates[b, expected.drawn[b]])
        close(result.action[b], expected.candidates[b, expected.drawn[b], 0])
        close(result.value[b], expected.values[b, expected.drawn[b]])


def test_the_settings_of_the_plain_loop_reach_both_bounds_of_the_spread():
    def refitted(**settings):
        return reference_plan(Smooth(), start(), MPPI(**SMALL | settings), None, seed=5).refitted

    tight = refitted(max_std=0.3, min_std=0.25)
    assert (tight > 0.3).any() and (tight < 0.25).any()
    assert not refitted(elites=1, min_std=0.3).any()


def test_the_draws_of_the_plain_loop_are_not_all_of_the_best():
    model, state = Smooth(), start(rows=6)
    expected = reference_plan(model, state, MPPI(**SMALL), None, seed=5)
    best = expected.values.argmax(1)
    assert (expected.drawn != best).any() and (expected.drawn == best).any()
    result = plan(MPPI(**SMALL), model, state, seed=5)
    close(result.actions, expected.candidates[torch.arange(6), expected.drawn])


def test_defaults_are_tdmpc2s():
    planner = MPPI()
    assert (planner.horizon, planner.candidates, planner.iterations, planner.elites) == (3, 512, 6, 64)
    assert (planner.policy_candidates, planner.temperature, planner.min_std, planner.max_std) == (24, 0.5, 0.05, 2)
    assert (planner.objective, planner.uncertainty, planner.reuse) == ("return", 0, 1)
    assert planner.requires == ("value", "policy")


# Policy rollouts


def test_the_policys_rollouts_stand_first_in_every_iteration():
    model, state = Smooth(distribution=Spread, std=0.9), start()
    expected = torch.zeros(2, 3, 3, 2, dtype=torch.float64)
    current = state[:, None].expand(2, 3, 3)
    for k in range(3):
        expected[:, :, k] = model.policy(current).rsample().detach()
        current = model.step(current, expected[:, :, k]).detach()
    for iterations in (1, 3):
        result = plan(MPPI(**SMALL | dict(iterations=iterations)), model, state)
        assert torch.equal(result.candidates[:, :3], expected)
        assert result.candidates[:, 3:].unique().numel() > 12


def test_fixed_noise_leads_the_policys_rollouts_as_it_leads_their_evaluation():
    model = Noisy()
    planner = MPPI(**SMALL | dict(iterations=2), latent_noise="fixed")
    plan(planner, model, start())
    alone, together = model.given[:2], model.given[2:]
    assert len(together) == 2 * 3
    for k in range(2):
        assert alone[k].shape == (2, 3, 3) and together[k].shape == (2, 10, 3)
        assert torch.equal(alone[k], together[k][:, :3])
    assert all(torch.equal(together[k], together[3 + k]) for k in range(3))


@pytest.mark.parametrize("policy_candidates, proposals", [(0, 0), (4, 4 * 2), (10, 10 * 2)])
def test_policy_rollouts_cost_a_step_less_than_their_length(policy_candidates, proposals):
    planner, model = MPPI(**SMALL | dict(policy_candidates=policy_candidates)), Counting()
    result = plan(planner, model, start(rows=2))
    assert result.model_evaluations == planner.model_evaluations == 10 * 3 * 3 + proposals
    assert model.count == 2 * result.model_evaluations


# The Gaussian


def test_the_first_samples_have_the_largest_standard_deviation():
    planner = MPPI(horizon=3, candidates=50, iterations=1, elites=5, policy_candidates=0, max_std=0.7)
    result = plan(planner, Smooth(), start(), seed=3)
    torch.manual_seed(3)
    noise = torch.randn(2, 50, 3, 2, dtype=torch.float64)
    assert torch.equal(result.candidates, (0.7 * noise).clamp(-1, 1))


def test_the_smallest_standard_deviation_keeps_a_collapsed_gaussian_sampling():
    """One elite has no spread of its own."""
    settings = dict(horizon=2, candidates=400, iterations=2, elites=1, policy_candidates=0, max_std=0.2)
    spread = plan(MPPI(**settings, min_std=0.1), Smooth(), start()).candidates.std(1)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.1), rtol=0.15, atol=0)
    collapsed = plan(MPPI(**settings, min_std=0.0), Smooth(), start()).candidates
    assert collapsed.std(1).max() < 1e-12


def test_temperature_moves_the_mean_from_the_middle_of_the_elites_to_the_best():
    def mean(temperature):
        planner = MPPI(horizon=3, candidates=30, iterations=1, elites=8, policy_candidates=0, temperature=temperature)
        result = plan(planner, Smooth(), start())
        best = result.candidate_values.topk(8, dim=1).indices
        elites = torch.stack([result.candidates[b, best[b]] for b in range(2)])
        return result.memory.actions, elites

    alike, elites = mean(0.0)
    torch.testing.assert_close(alike, elites.mean(1), rtol=0, atol=1e-12)
    greedy, elites = mean(1e6)
    torch.testing.assert_close(greedy, elites[:, 0], rtol=0, atol=1e-12)


# The executed sequence


def test_the_executed_elite_is_drawn_by_its_weight():
    """Rows in the same state with the same candidates, those of a policy without randomness, differ by the draw."""
    rows, model = 4000, Smooth(distribution=Spread, std=1.2)
    planner = MPPI(horizon=3, candidates=8, policy_candidates=8, elites=5, iterations=1, temperature=0.6)
    state = start(rows=1, seed=2).expand(rows, 3)
    result = plan(planner, model, state)
    with torch.no_grad():
        values = [plain_j(model, state[0], sequence, planner) for sequence in result.candidates[0]]
    elites = sorted(range(8), key=lambda c: -values[c])[:5]
    scores = [math.exp(0.6 * values[c]) for c in elites]
    share = [scores[elites.index(c)] / sum(scores) if c in elites else 0.0 for c in range(8)]
    smallest = min(x for x in share if x > 0)
    assert 0.02 < smallest and 2 * smallest < max(share) < 0.6
    drawn = (result.actions[:, None] == result.candidates).all(dim=(-1, -2)).double()
    assert (drawn.sum(1) == 1).all()
    for c in range(8):
        deviation = (share[c] * (1 - share[c]) / rows) ** 0.5
        assert drawn[:, c].mean().item() == pytest.approx(share[c], abs=4 * deviation)


def test_the_next_call_starts_from_the_mean_and_not_from_what_was_executed():
    result = plan(MPPI(**SMALL), Smooth(), start())
    assert (result.actions != result.memory.actions).any(dim=(-1, -2)).all()
    memory = Memory(result.memory.actions.clone(), torch.ones(2, dtype=torch.bool))
    second = plan(MPPI(**SMALL), Smooth(), start(), result.memory, seed=1)
    same(second, plan(MPPI(**SMALL), Smooth(), start(), memory, seed=1))
    executed = Memory(result.actions, torch.ones(2, dtype=torch.bool))
    assert not torch.equal(second.candidates, plan(MPPI(**SMALL), Smooth(), start(), executed, seed=1).candidates)


# The previous plan


@pytest.mark.parametrize("reuse", [0.0, 0.5, 1.0])
def test_the_previous_mean_is_shifted_by_one_step_and_ends_in_zero(reuse):
    planner = MPPI(horizon=4, candidates=6, iterations=1, elites=2, policy_candidates=0, max_std=0.5, reuse=reuse)
    memory = previous_plan()
    result = plan(planner, Smooth(), start(), memory)
    torch.manual_seed(0)
    noise = torch.randn(2, 6, 4, 2, dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    shifted = torch.stack([memory.actions[:, 1], memory.actions[:, 2], memory.actions[:, 3], zero], dim=1)
    close(result.candidates, (reuse * shifted[:, None] + 0.5 * noise).clamp(-1, 1))


# Models that break


@pytest.mark.parametrize("part", ["reward", "value"])
def test_a_broken_row_falls_back_and_leaves_the_others_alone(part):
    planner, state, memory = MPPI(**SMALL), marked(start(3), row=1), previous_plan(3, horizon=3)
    result = plan(planner, Broken(part), state, memory)
    assert result.fallback.tolist() == [False, True, False]
    same(result, plan(planner, Broken("nothing"), state, memory), rows=[0, 2])
    assert torch.equal(result.action[1], Broken("nothing").policy(state[1]).mode)
    assert result.value[1] == -torch.inf and result.candidate_values[1].eq(-torch.inf).all()
    assert result.memory.valid.tolist() == [True, False, True] and result.memory.actions.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_broken_candidates_are_neither_averaged_nor_drawn(temperature):
    """Fewer samples are whole than there are elites."""
    planner = MPPI(
        horizon=2, candidates=24, iterations=1, elites=20, policy_candidates=4, temperature=temperature,
        objective="rewards", discount=1.0,
    )  # fmt: skip
    model, state = Cliff(), marked(start(rows=40), 0, 0.0)
    result = plan(planner, model, state)
    broken = (result.candidates[..., 0] > 0).any(-1)
    assert torch.equal(result.candidate_values == -torch.inf, broken)
    assert not result.fallback.any() and ((~broken).sum(1) < 20).all()
    assert (result.actions[..., 0] <= 0).all() and result.value.isfinite().all()
    for b in range(40):
        whole = ~broken[b]
        scores = (temperature * result.candidate_values[b, whole]).exp()
        expected = (scores[:, None, None] * result.candidates[b, whole]).sum(0) / scores.sum()
        close(result.memory.actions[b], expected)


def test_a_broken_policy_does_not_spoil_the_samples():
    state = marked(start(2), row=1)
    planner = MPPI(**SMALL)
    result = plan(planner, Broken("policy"), state)
    same(result, plan(planner, Broken("nothing"), state), rows=[0])
    assert not result.fallback.any() and result.actions.isfinite().all()
    assert result.candidate_values[1, :3].eq(-torch.inf).all() and result.candidate_values[1, 3:].isfinite().all()


def test_huge_values_leave_the_mean_finite():
    """Finite values whose product with the temperature is not."""

    class Huge(Smooth):
        def reward(self, state):
            return 1e308 * (1 + 0.5 * torch.tanh(super().reward(state)))

    settings = dict(horizon=1, candidates=8, iterations=1, elites=4, policy_candidates=0)
    planner = MPPI(**settings, temperature=10.0, objective="rewards")
    result = plan(planner, Huge(), start())
    assert result.candidate_values.isfinite().all() and not result.fallback.any()
    best = result.candidate_values.argmax(1)
    close(result.memory.actions, result.candidates[torch.arange(2), best])
    close(result.actions, result.candidates[torch.arange(2), best])
