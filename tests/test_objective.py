"""J against the formula of the paper, its gradient against finite differences."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from dreamer_mpc.planners.objective import Objective, ensemble_std
from dreamer_mpc.planners.rollout import draw_noise, rollout
from tests.support.latent_models import Ended, Ledge, Mortal, Noisy, Quadratic, Smooth
from tests.support.planning import plain_j

B, N, A = 2, 3, 2


def problem(horizon, seed=0):
    torch.manual_seed(seed)
    state = torch.randn(B, 3, dtype=torch.float64)
    return state, torch.rand(B, N, horizon, A, dtype=torch.float64) * 1.6 - 0.8


@pytest.mark.parametrize("horizon", [1, 2, 6])
@pytest.mark.parametrize("c, scale", list(product([0.0, 0.7, -0.4], [False, True])))
@pytest.mark.parametrize("kind", ["return", "lambda-return", "rewards"])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_j_is_the_formula(horizon, c, scale, kind, discount):
    model, (state, actions) = Smooth(), problem(horizon)
    values = Objective(discount, c, kind, 0.6, scale)(model, rollout(model, state, actions))
    settings = SimpleNamespace(objective=kind, discount=discount, uncertainty=c, return_lambda=0.6, scale_penalty=scale)
    expected = [[plain_j(model, state[b], actions[b, n], settings) for n in range(N)] for b in range(B)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)



@pytest.mark.parametrize(
    "kind, c, needed",
    [
        ("rewards", 0.0, False),
        ("rewards", 0.7, True),
        ("rewards", -0.7, True),
        ("return", 0.0, True),
        ("lambda-return", 0.0, True),
    ],
)
def test_the_value_heads_are_asked_only_where_j_needs_them(kind, c, needed):
    class Asked(Smooth):
        calls = 0

        def value(self, state):
            self.calls += 1
            return super().value(state)

    model, objective = Asked(), Objective(0.9, c, kind)
    state, actions = problem(3)
    objective(model, rollout(model, state, actions))
    assert objective.needs_value is needed and model.calls == needed


@pytest.mark.parametrize("kind", ["return", "lambda-return"])
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_the_reward_of_the_last_state_counts_once(kind, horizon):
    """Value heads that return only the reward: J is the plain sum of the rewards of s_1 .. s_H (lambda = 1)."""

    class RewardOnly(Smooth):
        def value(self, state):
            return self.reward(state).expand(3, *state.shape[:-1])

    model = RewardOnly()
    state, actions = problem(horizon)
    states = rollout(model, state, actions)
    values = Objective(1.0, 0.0, kind, lambda_=1.0)(model, states)
    torch.testing.assert_close(values, model.reward(states).sum(-1))


@pytest.mark.parametrize(
    "kind, c, scale", list(product(["return", "lambda-return", "rewards"], [0.0, 0.7], [False, True]))
)
@pytest.mark.parametrize("horizon", [1, 4])
def test_gradient_is_that_of_central_differences(horizon, kind, c, scale):
    model = Smooth().requires_grad_(False)
    state, actions = problem(horizon)
    objective = Objective(0.9, c, kind, 0.6, scale)
    assert torch.autograd.gradcheck(
        lambda a: objective(model, rollout(model, state, a)), actions.requires_grad_()
    )


def value_and_gradient(objective, model, state, actions):
    leaf = actions.clone().requires_grad_()
    values = objective(model, rollout(model, state, leaf))
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize("kind, scale", list(product(["return", "lambda-return", "rewards"], [False, True])))
def test_penalty_gradient_changes_the_gradient_only(kind, scale):
    model = Smooth()
    state, actions = problem(4)

    def evaluate(c, through):
        return value_and_gradient(Objective(0.9, c, kind, 0.6, scale, through), model, state, actions)

    (seen, slope), (cut, flat), (none, free) = evaluate(0.7, True), evaluate(0.7, False), evaluate(0.0, True)
    assert torch.equal(seen, cut) and not torch.allclose(cut, none)
    torch.testing.assert_close(flat, free)
    assert not torch.allclose(slope, flat, atol=1e-3)


@pytest.mark.parametrize("kind", ["return", "lambda-return", "rewards"])
def test_a_positive_coefficient_is_a_penalty_and_a_negative_one_a_bonus(kind):
    model = Smooth()
    state, actions = problem(4)
    states = rollout(model, state, actions)
    low, middle, high = (Objective(0.9, c, kind)(model, states) for c in (0.5, 0.0, -0.5))
    assert (low < middle).all() and (middle < high).all()


@pytest.mark.parametrize("model", [Smooth(heads=1), Quadratic()], ids=["K=1", "equal heads"])
@pytest.mark.parametrize("kind, scale", list(product(["return", "lambda-return", "rewards"], [False, True])))
def test_heads_that_agree_leave_value_and_gradient_as_without_penalty(model, kind, scale):
    state, actions = problem(4)
    state = state[:, :2] if isinstance(model, Quadratic) else state
    values, slope = value_and_gradient(Objective(0.9, 0.7, kind, 0.6, scale), model, state, actions)
    expected, free = value_and_gradient(Objective(0.9, 0.0, kind, 0.6, scale), model, state, actions)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(slope, free, rtol=0, atol=1e-6)


def test_ensemble_std_divides_by_the_number_of_heads():
    assert ensemble_std(torch.tensor([[1.0], [3.0]])).item() == 1.0
    assert ensemble_std(torch.tensor([[0.0], [3.0], [6.0]])).item() == pytest.approx(6**0.5)


def test_rollout_starts_with_the_state_after_the_first_action():
    model = Quadratic()
    state = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    actions = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]], dtype=torch.float64)
    assert rollout(model, state, actions).tolist() == [[[[1.5, 2.0], [1.5, 1.5]]]]


def test_noise_is_none_draws_or_zeros():
    model, state = Noisy(), torch.zeros(B, N, 3, dtype=torch.float64)
    assert draw_noise(model, state, 4, "fresh") is None
    draws = draw_noise(model, state, 4, "fixed")
    assert draws.shape == (B, N, 4, 3) and draws.flatten().unique().numel() == draws.numel()
    assert not draw_noise(model, state, 4, "mean").any()


# where episodes may end


def ends(model, state, actions):
    """Pairs (k, its probability): the episode ends in s_k; k = H, where it does not end before."""
    alive, steps = 1.0, len(actions)
    for k, action in enumerate(actions[:-1], start=1):
        state = model.step(state, action)
        goes_on = model.continues(state).item()
        yield k, alive * (1 - goes_on)
        alive *= goes_on
    yield steps, alive


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("c, scale", [(0.0, False), (0.7, False), (-0.4, True)])
@pytest.mark.parametrize("kind", ["return", "lambda-return", "rewards"])
def test_j_is_the_mean_over_the_states_where_the_episode_may_end(horizon, c, scale, kind):
    model, (state, actions) = Mortal(), problem(horizon)
    values = Objective(0.9, c, kind, 0.6, scale)(model, rollout(model, state, actions))
    settings = SimpleNamespace(objective=kind, discount=0.9, uncertainty=c, return_lambda=0.6, scale_penalty=scale)
    for b, n in product(range(B), range(N)):
        begin = torch.cat([state[b], torch.zeros(1, dtype=torch.float64)])
        expected = sum(
            share * plain_j(Ended(model, k), begin, actions[b, n], settings)
            for k, share in ends(model, state[b], actions[b, n])
        )
        assert values[b, n].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["return", "rewards"])
def test_the_released_penalty_too_counts_only_in_states_that_are_reached(kind):
    model, (state, actions) = Mortal(), problem(4)
    objective = Objective(0.9, 0.7, kind, released_penalty=True)
    states = rollout(model, state, actions)
    values = objective(model, states)
    clock = torch.arange(1, 5, dtype=torch.float64).expand(B, N, 4)[..., None]
    for b, n in product(range(B), range(N)):
        expected = sum(
            share * objective(Ended(model, k), torch.cat([states, clock], dim=-1))[b, n]
            for k, share in ends(model, state[b], actions[b, n])
        )
        torch.testing.assert_close(values[b, n], expected, rtol=1e-6, atol=1e-6)  # a spread of 0 counts as 1e-8


@pytest.mark.parametrize("kind", ["return", "lambda-return", "rewards"])
def test_nothing_behind_a_cliff_counts(kind):
    """x is 0.1, 0.6, 1.1, 1.6. The episode ends behind a top of 1, and the reward of arriving there counts."""
    model, state = Ledge(sharpness=1e4), torch.full((1, 1), 0.1, dtype=torch.float64)
    objective = Objective(0.5, 0.0, kind, lambda_=1.0)
    states = rollout(model, state, torch.ones(1, 1, 3, 1, dtype=torch.float64))
    assert objective(model, states).item() == pytest.approx(0.6 + 0.5 * 1.1)
    model.top = 9
    last = 1.6 if kind == "rewards" else 1.6 + 4
    assert objective(model, states).item() == pytest.approx(0.6 + 0.5 * 1.1 + 0.25 * last)


@pytest.mark.parametrize("kind, c", list(product(["return", "lambda-return", "rewards"], [0.0, 0.7])))
@pytest.mark.parametrize("horizon", [1, 4])
def test_gradient_through_continuation_is_that_of_central_differences(horizon, kind, c):
    model = Mortal().requires_grad_(False)
    state, actions = problem(horizon)
    objective = Objective(0.9, c, kind, 0.6)
    assert torch.autograd.gradcheck(
        lambda a: objective(model, rollout(model, state, a)), actions.requires_grad_()
    )


class Immortal(Mortal):
    terminates = False


class Unrelated(Smooth):
    """Has a method of that name, with another meaning."""

    def continues(self, state):
        raise AssertionError("not what J needs")


@pytest.mark.parametrize("kind", ["return", "lambda-return", "rewards"])
@pytest.mark.parametrize("model", [Immortal(), Unrelated()], ids=["says none ends", "does not say"])
def test_continuation_is_asked_only_where_a_model_says_that_episodes_end(model, kind):
    state, actions = problem(4)
    objective = Objective(0.9, 0.7, kind, 0.6)
    values = objective(model, rollout(model, state, actions))
    assert torch.equal(values, objective(Smooth(), rollout(Smooth(), state, actions)))
    assert not getattr(model, "asked", 0)
