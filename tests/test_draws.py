"""The ascent under shared draws: J's mean, its gradient, the line search, the policy in the loop; released habits."""

from dataclasses import replace

import pytest
import torch

from dreamer_mpc.planners import DreamMPC, make_planner
from dreamer_mpc.planners.objective import Objective
from tests.support.latent_models import Noisy, Smooth, Squashed
from tests.support.planning import PAPER, plain_j, plan, start

M, H, FREE = 5, 4, 2
SETTINGS = dict(horizon=H, draws=M, open_loop=FREE, iterations=1, uncertainty=0.3, discount=0.9, caution=0.0)


def held_draws(model, rows, seed=0):
    """The draws [B, M, H, Z] of a call: the first thing that a plan draws."""
    torch.manual_seed(seed)
    return model.noise(torch.zeros(rows, M, H, 3, dtype=torch.float64))


class Given:
    """`Noisy` under one sequence of draws, step after step, as a model without noise."""

    def __init__(self, model, draws):
        self.model, self.draws, self.k = model, draws, 0
        self.action_dim, self.reward, self.value, self.policy = 2, model.reward, model.value, model.policy

    def step(self, state, action):
        self.k += 1
        return self.model.step(state, action, self.draws[self.k - 1])


@torch.no_grad()
def plain_mean_j(model, state, actions, draws, planner, answers=None):
    """J of free actions [h, A] under each of M draws [M, H, Z]; the policy's mode, or `answers`, takes the rest."""
    values, taken = [], []
    for m, noise in enumerate(draws):
        s, sequence = state, []
        for k in range(H):
            if k < len(actions):
                action = actions[k]
            else:
                action = model.policy(s).mode if answers is None else answers[m][k]
            sequence.append(action)
            s = model.step(s, action, noise[k])
        values.append(plain_j(Given(model, noise), state, sequence, planner))
        taken.append(torch.stack(sequence))
    return torch.tensor(values, dtype=torch.float64), torch.stack(taken)


def mode_along_the_mean(model, state, steps=FREE):
    actions = []
    for _ in range(steps):
        actions.append(model.policy(state).mode.detach())
        state = model.step(state, actions[-1], torch.zeros_like(state)).detach()
    return torch.stack(actions)


@pytest.mark.parametrize("free", [1, FREE, H])
@pytest.mark.parametrize("objective", ["lambda-return", "return"])
def test_one_step_of_the_ascent_is_that_of_a_plain_loop(free, objective):
    """J's mean over draws, central differences with the policy's answers held, and the best of the lengths."""
    planner = DreamMPC(**SETTINGS | {"open_loop": free, "objective": objective})
    model, state = Noisy(), start()
    result, draws = plan(planner, model, state), held_draws(model, 2)
    for b in range(2):
        actions = mode_along_the_mean(model, state[b], free)
        value, answers = plain_mean_j(model, state[b], actions, draws[b], planner)
        slope = torch.zeros_like(actions)
        for k, i in ((k, i) for k in range(free) for i in range(2)):
            moved = [actions.clone(), actions.clone()]
            for sign, x in zip((1, -1), moved):
                x[k, i] += sign * 1e-6
            up, down = (plain_mean_j(model, state[b], x, draws[b], planner, answers)[0].mean() for x in moved)
            slope[k, i] = (up - down) / 2e-6
        direction = slope / slope.norm() * (2 * free) ** 0.5
        tried = [actions, *((actions + x * direction).clamp(-1, 1) for x in planner.line_search)]
        found = [plain_mean_j(model, state[b], x, draws[b], planner) for x in tried]
        best = max(range(len(tried)), key=lambda i: found[i][0].mean())
        assert best > 0, "a step was taken"
        torch.testing.assert_close(result.candidates[b, 0], found[best][1].mean(0), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(result.value[b], found[best][0].mean(), rtol=1e-8, atol=1e-10)


def test_all_candidates_and_iterations_see_the_same_draws():
    model, planner = Noisy(), DreamMPC(**SETTINGS | {"candidates": 3, "iterations": 2})
    plan(planner, model, start())
    draws = held_draws(model, 2)
    rolled = [x for x in model.given if x.dim() == 3 and x.shape[1] % M == 0 and x.any()]
    assert len(rolled) == 3 * H, "a rollout of the proposals and two of trials"
    for k, given in enumerate(rolled):
        for m in range(given.shape[1]):
            assert torch.equal(given[:, m], draws[:, m % M, k % H])


@pytest.mark.parametrize("settings", [{}, {"caution": 1.0}, {"direction": "random"}, {"open_loop": 0}], ids=str)
def test_the_line_search_never_lowers_mean_j(settings):
    model, state = Noisy(), start(rows=40)
    values = [
        plan(DreamMPC(**SETTINGS | {"line_search": (3.0, 1.0, 0.3), "iterations": i} | settings), model, state).value
        for i in range(5)
    ]
    assert all((after >= before - 1e-12).all() for before, after in zip(values, values[1:]))
    assert (values[-1] > values[0] + 1e-3).sum() > 20
    # The same steps without a search lower it somewhere.
    plain = DreamMPC(**SETTINGS | {"line_search": (), "step_size": 3.0, "choose_by": "after"} | settings)
    assert (plan(plain, model, state).value < values[0]).any()


def test_with_one_draw_a_line_search_holds_it():
    model, state = Noisy(), start(rows=20)
    values = [plan(DreamMPC(**SETTINGS | {"draws": 1, "iterations": i}), model, state).value for i in range(4)]
    assert all((after >= before - 1e-12).all() for before, after in zip(values, values[1:]))


class Bowl:
    """One step of s' = a + noise, r = v = -curvature |s - 0.3|^2: the best action is 0.3 less the draws' mean."""

    action_dim, curvature = 1, 20.0

    def noise(self, state):
        return torch.randn_like(state)

    def step(self, state, action, noise=None):
        noise = torch.randn_like(state) if noise is None else noise
        return action + 0.1 * noise + 0 * state

    def reward(self, state):
        return -self.curvature * (state[..., 0] - 0.3).square()

    def value(self, state):
        return self.reward(state)[None]

    def policy(self, state):
        return Squashed(torch.zeros_like(state), torch.full_like(state, 0.2))


def test_the_executed_action_spreads_over_seeds_as_one_over_the_root_of_the_draws():
    state = torch.zeros(400, 1, dtype=torch.float64)
    lengths = tuple(x / 200 for x in range(1, 180))
    settings = dict(horizon=1, iterations=1, uncertainty=0.0, caution=0.0, line_search=lengths)
    spread = {m: plan(DreamMPC(**settings, draws=m), Bowl(), state).action.std().item() for m in (1, 4, 16, 64)}
    for m, found in spread.items():
        assert found == pytest.approx(0.1 / m**0.5, rel=0.12), spread


def test_where_the_paper_s_step_overshoots_the_search_reaches_the_optimum():
    state = torch.zeros(8, 1, dtype=torch.float64)
    held = dict(horizon=1, uncertainty=0.0, latent_noise="mean")
    start_at = plan(DreamMPC(**held, iterations=0), Bowl(), state)  # at 0
    paper = make_planner("dream-mpc", **PAPER | held | {"choose_by": "after", "mode_candidate": True, "candidates": 1})
    stepped, found = plan(paper, Bowl(), state), plan(DreamMPC(**held, iterations=6), Bowl(), state)
    assert (stepped.value < start_at.value).all(), "the step of 0.1 lowers J"
    torch.testing.assert_close(found.action, torch.full_like(found.action, 0.3), rtol=0, atol=0.011)


def test_caution_keeps_the_policy_s_action_where_the_draws_do_not_agree():
    model, state = Noisy(), start(rows=50)
    mode = model.policy(state).mode
    kept = []
    for caution in (0.0, 1.0, 4.0):
        action = plan(DreamMPC(**SETTINGS | {"caution": caution}), model, state).action
        kept.append(torch.isclose(action, mode).all(1).sum().item())
    assert kept[0] <= kept[1] < kept[2], kept


def test_a_random_step_is_as_long_as_the_gradient_s_and_goes_elsewhere():
    model, state = Smooth(), start(rows=6)
    settings = dict(horizon=H, iterations=1, line_search=(), step_size=0.01, choose_by="after", open_loop=0)
    moves = []
    for more in ({"step_size": 0.0}, {}, {"direction": "random"}):
        moves.append(plan(DreamMPC(**settings | more), model, state).candidates[:, 0])
    along, across = (x - moves[0] for x in moves[1:])
    torch.testing.assert_close(along.flatten(1).norm(dim=1), torch.full((6,), 0.01 * (2 * H) ** 0.5).double())
    inside = across.abs().amax((1, 2)) > 0
    assert inside.all() and (across.flatten(1).norm(dim=1) <= 0.01 * (2 * H) ** 0.5 + 1e-9).all()
    cosine = torch.cosine_similarity(along.flatten(1), across.flatten(1))
    assert cosine.abs().max() < 0.99 and cosine.mean().abs() < 0.5


@pytest.mark.parametrize("draws", [2, 16])
def test_draws_need_a_model_that_takes_its_noise(draws):
    words = rf"^draws={draws} needs a model with noise\(state\).*Smooth has no noise method: use .* and draws=1$"
    with pytest.raises(ValueError, match=words):
        plan(DreamMPC(draws=draws), Smooth(), start())


def test_left_open_there_are_as_many_draws_as_the_model_can_share():
    assert plan(DreamMPC(), Smooth(), start()).model_evaluations == 10 * (1 + 2 * 4) + 5
    noisy = plan(DreamMPC(), Noisy(), start())
    assert noisy.model_evaluations == 16 * 10 * (1 + 2 * 4) + 5 == DreamMPC().model_evaluations


def test_draws_of_the_mean_are_an_error():
    with pytest.raises(ValueError, match="draws must be 1 with latent_noise mean"):
        DreamMPC(draws=4, latent_noise="mean")


# The released code's habits

RELEASED = PAPER | dict(horizon=H, candidates=3, reuse=0.5, uncertainty=0.2, discount=0.9)


def test_each_candidate_goes_on_with_its_own_plan():
    model, state = Smooth(std=0.0), start()
    planner = DreamMPC(**RELEASED | {"habits": ("own-plan",), "step_size": 0.0, "uncertainty": 0.0})
    first = plan(planner, model, state)
    kept = first.memory._replace(actions=torch.rand(2, 3, H, 2).double() - 0.5)
    second = plan(planner, model, state, kept)
    expected = 0.5 * kept.actions[:, :, 1] + 0.5 * model.policy(state).mode[:, None]
    torch.testing.assert_close(second.candidates[:, :, 0], expected)
    assert torch.equal(first.memory.actions, first.candidates)
    with pytest.raises(ValueError, match=r"this call needs \[2, 3, 4, 2\]"):
        plan(planner, model, state, first.memory._replace(actions=first.actions))


def test_whole_sequences_are_blended_after_the_rollout():
    model, state = Smooth(std=0.0), start()
    planner = DreamMPC(**RELEASED | {"habits": ("blend",), "step_size": 0.0})
    memory = plan(planner, model, state).memory._replace(actions=torch.rand(2, H, 2).double() - 0.5)
    s, policy = state, []
    for _ in range(H):
        policy.append(model.policy(s).mode)
        s = model.step(s, policy[-1])  # as the policy alone would go
    shifted = torch.cat([memory.actions[:, 1:], memory.actions[:, -1:]], dim=1)
    expected = 0.5 * shifted + 0.5 * torch.stack(policy, dim=1)
    torch.testing.assert_close(plan(planner, model, state, memory).candidates[:, 1], expected)


def test_the_norm_is_clipped_over_all_candidates_together():
    model, state, slopes = Smooth(std=0.1), start() / 4, {}  # away from the bounds
    for clip, habits in ((1e9, ()), (0.3, ()), (0.3, ("clip",))):
        planner = DreamMPC(**RELEASED | {"grad_clip": clip, "habits": habits, "step_size": 1e-3, "reuse": 0.0})
        still = plan(replace(planner, step_size=0.0), model, state).candidates
        slopes[clip, habits] = (plan(planner, model, state).candidates - still) / 1e-3
    free, together = slopes[1e9, ()], slopes[0.3, ("clip",)]
    norm = free.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(together, free * (0.3 / norm).clamp(max=1), rtol=1e-4, atol=1e-8)
    each = slopes[0.3, ()].flatten(2).norm(dim=2)
    assert (each <= 0.3 + 1e-6).all() and (each.square().sum(1).sqrt() > 0.31).any()


def test_actions_are_clamped_after_the_last_step_alone():
    model, state = Smooth(), start(rows=6)
    settings = RELEASED | {"iterations": 2, "step_size": 2.0, "reuse": 0.0}
    last, each = (plan(DreamMPC(**settings | {"habits": h}), model, state) for h in (("clamp",), ()))
    assert last.candidates.abs().max() == 1 and not torch.allclose(last.candidates, each.candidates)


def test_the_released_penalty_is_unbiased_undiscounted_and_twice_at_the_end():
    model, states = Smooth(), torch.randn(2, 3, H, 3, dtype=torch.float64)
    plain = Objective(0.9)(model, states)
    heads = model.value(states)
    spread = heads.std(dim=0, correction=1) * heads.mean(0)
    expected = plain - 0.2 * (spread.sum(-1) + spread[..., -1])
    found = Objective(0.9, 0.2, scale_penalty=True, released_penalty=True)(model, states)
    torch.testing.assert_close(found, expected)


def test_the_terminal_value_is_that_of_two_heads_drawn_at_random():
    model, states = Smooth(heads=4), torch.randn(2, 3, 1, 3, dtype=torch.float64)
    heads = model.value(states)[..., 0]
    pairs = {(i, j): (heads[i] + heads[j]) / 2 for i in range(4) for j in range(i)}
    objective, seen = Objective(0.9, two_heads=True), set()
    for seed in range(60):
        torch.manual_seed(seed)
        found = objective(model, states)
        seen.add(next(pair for pair, mean in pairs.items() if torch.allclose(mean, found)))
    assert seen == set(pairs)


@pytest.mark.parametrize("size, steps", [(19, 1), (20, 3)])
def test_wide_actions_get_two_more_iterations(size, steps):
    class Wide(Bowl):
        action_dim = size

        def policy(self, state):
            mean = state.new_zeros(*state.shape[:-1], size)
            return Squashed(mean, mean + 0.1)

        def step(self, state, action, noise=None):
            return action.mean(-1, keepdim=True) + 0 * state

    planner = DreamMPC(**RELEASED | {"habits": ("wide",), "reuse": 0.0})
    assert plan(planner, Wide(), start(size=1)).model_evaluations == 3 * H * steps
