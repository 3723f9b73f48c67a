"""J against the formula of the paper, its gradient against finite differences."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from dreamer_mpc.planners.objective import Objective, ensemble_std
from dreamer_mpc.planners.rollout import draw_noise, rollout
from tests.support.latent_models import Noisy, Quadratic, Smooth
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
