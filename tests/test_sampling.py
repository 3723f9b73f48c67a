"""CEM and MPPI against a plain loop: the Gaussian, the draw of an elite, the warm start, candidates that break."""

import math
from typing import NamedTuple

import pytest
import torch

from dreamer_mpc.planners import MPPI, make_planner
from tests.support.latent_models import Cliff, Noisy, Smooth, Spread
from tests.support.planning import clamp, marked, plain_j, plain_mean_and_std, plan, previous_plan, start

SMALL = {
    "cem": dict(horizon=3, candidates=10, iterations=3, elites=4),
    "mppi": dict(horizon=3, candidates=10, iterations=3, elites=4, policy_candidates=3, discount=0.9),
}


def small(name, **settings):
    return make_planner(name, **SMALL[name] | settings)


class Reference(NamedTuple):
    """The result of the plain loop; `refitted` are standard deviations before they are clamped."""

    candidates: torch.Tensor  # [B, N, H, A], of the last iteration
    values: torch.Tensor  # [B, N]
    drawn: torch.Tensor  # [B], the candidate that MPPI executes
    mean: torch.Tensor  # [B, H, A]
    refitted: torch.Tensor  # [B, I, H, A]
    value: torch.Tensor  # [B], the elites' mean J


@torch.no_grad()
def reference_plan(name, model, state, planner, memory, seed) -> Reference:
    """One candidate and one number at a time; only the draws are whole tensors. CEM weights elites equally."""
    torch.manual_seed(seed)
    rows, n, h, a = len(state), planner.candidates, planner.horizon, model.action_dim
    mppi = name == "mppi"
    p, first_std, temperature = 0, 1.0, 0.0
    if mppi:
        p, first_std, temperature = planner.policy_candidates, planner.max_std, planner.temperature
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
        mean, std = [[0.0] * a for _ in range(h)], [[first_std] * a for _ in range(h)]
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
            scores = [math.exp(temperature * (values[c] - values[best[0]])) for c in best]
            weights = [score / sum(scores) for score in scores]
            mean, std = plain_mean_and_std([candidates[c] for c in best], weights)
            refitted.append(std)
            if mppi:
                std = [[min(max(x, planner.min_std), planner.max_std) for x in step] for step in std]
        # Elite e arrives at rate weights[e]: the first to arrive is e with probability weights[e].
        drawn = best[min(range(len(best)), key=lambda e: arrivals[b][e] / weights[e])]
        result.append((candidates, values, drawn, mean, refitted, sum(values[c] for c in best) / len(best)))
    kinds = [torch.float64, torch.float64, torch.long, torch.float64, torch.float64, torch.float64]
    return Reference(*[torch.tensor(part, dtype=kind) for part, kind in zip(zip(*result), kinds)])


def close(actual, expected, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


SETTINGS = {
    "cem": [
        {},
        {"reuse": 0.7},
        {"discount": 0.6},
        {"objective": "return", "discount": 0.9, "reuse": 1.0},
        {"uncertainty": 0.4},
        {"elites": 1},  # the Gaussian collapses to the best sample
        {"elites": 10, "iterations": 2},  # no selection
        {"horizon": 1, "candidates": 7, "iterations": 1},
    ],
    "mppi": [
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
    ],
}


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("name, settings", [(name, more) for name in SETTINGS for more in SETTINGS[name]], ids=str)
def test_plan_is_that_of_the_plain_loop(name, settings, with_memory):
    planner, model, state = small(name, **settings), Smooth(), start()
    memory = previous_plan(horizon=planner.horizon) if with_memory else None
    expected = reference_plan(name, model, state, planner, memory, seed=5)
    result = plan(planner, model, state, memory, seed=5)
    close(result.candidates, expected.candidates)
    close(result.candidate_values, expected.values)
    close(result.memory.actions, expected.mean)
    assert result.memory.valid.all() and not result.fallback.any()
    for b in range(2):
        drawn = expected.drawn[b]
        close(result.actions[b], expected.mean[b] if name == "cem" else expected.candidates[b, drawn])
        close(result.value[b], expected.value[b] if name == "cem" else expected.values[b, drawn])
    assert torch.equal(result.action, result.actions[:, 0])


def test_the_settings_of_the_plain_loop_reach_both_bounds_of_the_spread_and_draws_that_are_not_the_best():
    def reference(rows=2, **settings):
        return reference_plan("mppi", Smooth(), start(rows), small("mppi", **settings), None, seed=5)

    tight = reference(max_std=0.3, min_std=0.25).refitted
    assert (tight > 0.3).any() and (tight < 0.25).any()
    assert not reference(elites=1, min_std=0.3).refitted.any()
    expected = reference(rows=6)
    best = expected.values.argmax(1)
    assert (expected.drawn != best).any() and (expected.drawn == best).any()
    result = plan(small("mppi"), Smooth(), start(rows=6), seed=5)
    close(result.actions, expected.candidates[torch.arange(6), expected.drawn])


# MPPI's policy rollouts


def test_fixed_noise_leads_the_policys_rollouts_as_it_leads_their_evaluation():
    model = Noisy()
    plan(small("mppi", iterations=2, latent_noise="fixed"), model, start())
    alone, together = model.given[:2], model.given[2:]
    assert len(together) == 2 * 3
    for k in range(2):
        assert alone[k].shape == (2, 3, 3) and together[k].shape == (2, 10, 3)
        assert torch.equal(alone[k], together[k][:, :3])
    assert all(torch.equal(together[k], together[3 + k]) for k in range(3))


# The sequence that MPPI executes


def test_the_executed_elite_is_drawn_by_its_weight():
    """Rows with the same state and the same candidates, from a deterministic policy, differ only by the draw."""
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


# Candidates that break


@pytest.mark.parametrize("name, temperature", [("cem", 0.0), ("mppi", 0.0), ("mppi", 0.5)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_broken_candidates_are_neither_averaged_nor_drawn(name, temperature, iterations):
    """At first fewer samples are finite than there are elites; then the Gaussian moves to the finite region."""
    more = {} if name == "cem" else dict(policy_candidates=4, temperature=temperature)
    settings = dict(horizon=2, candidates=24, elites=20, objective="rewards", discount=1.0) | more
    planner, state = make_planner(name, iterations=iterations, **settings), marked(start(rows=40), 0, 0.0)
    result = plan(planner, Cliff(), state)
    broken = (result.candidates[..., 0] > 0).any(-1)
    assert torch.equal(result.candidate_values == -torch.inf, broken) and not result.fallback.any()
    assert ((~broken).sum(1) < 20).all() if iterations == 1 else broken.double().mean() < 0.5
    assert (result.actions[..., 0] <= 0).all() and result.value.isfinite().all()
    for b in range(40):
        elites = result.candidate_values[b].topk(20).indices
        values = result.candidate_values[b, elites]
        whole = elites[values.isfinite()]
        scores = (temperature * result.candidate_values[b, whole]).exp()
        expected = (scores[:, None, None] * result.candidates[b, whole]).sum(0) / scores.sum()
        close(result.memory.actions[b], expected)
        if name == "cem":
            close(result.value[b], values[values.isfinite()].mean())


def test_huge_values_leave_the_mean_finite():
    """Finite values whose product with the temperature is not finite."""

    class Huge(Smooth):
        def reward(self, state):
            return 1e308 * (1 + 0.5 * torch.tanh(super().reward(state)))

    settings = dict(horizon=1, candidates=8, iterations=1, elites=4, policy_candidates=0)
    result = plan(MPPI(**settings, temperature=10.0, objective="rewards"), Huge(), start())
    assert result.candidate_values.isfinite().all() and not result.fallback.any()
    best = result.candidate_values.argmax(1)
    close(result.memory.actions, result.candidates[torch.arange(2), best])
    close(result.actions, result.candidates[torch.arange(2), best])
