"""Lambda-returns against the sums that define them."""

import pytest
import torch

from dreamer_mpc.util.returns import folded_lambda_return, lambda_return, lambda_weights, survival


def n_step(r, v, t, n, discount):
    """V_N^n at step t (Dreamer, Eq. 5): up to n rewards, then the value; r[k] = r_k and v[k] = v_{k+1}."""
    h = min(t + n, len(r))
    return sum(discount ** (k - t) * r[k] for k in range(t, h)) + discount ** (h - t) * v[h - 1]


def explicit(r, v, t, discount, lambda_):
    """V_lambda at step t (Dreamer, Eq. 6), written out."""
    steps = len(r)
    mixed = sum(lambda_ ** (n - 1) * n_step(r, v, t, n, discount) for n in range(1, steps))
    return (1 - lambda_) * mixed + lambda_ ** (steps - 1) * n_step(r, v, t, steps, discount)


@pytest.mark.parametrize(
    "discount, lambda_", [(0.99, 0.95), (0.9, 0.3), (1.0, 0.5), (0.0, 0.95), (0.9, 0.0), (0.9, 1.0)]
)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_matches_the_explicit_mixture_of_n_step_returns(steps, discount, lambda_):
    torch.manual_seed(0)
    r, v = torch.randn(2, steps, 3, 2, dtype=torch.float64)
    expected = torch.stack([explicit(r, v, t, discount, lambda_) for t in range(steps)])
    torch.testing.assert_close(lambda_return(r, v, discount, lambda_), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("discount, lambda_", [(0.99, 0.95), (1.0, 0.5), (0.0, 0.95), (0.9, 0.0), (0.9, 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_first_return_is_a_weighted_sum_of_rewards_and_values(steps, discount, lambda_):
    torch.manual_seed(1)
    r, v = torch.randn(2, steps, 3, dtype=torch.float64)
    of_r, of_v = lambda_weights(steps, discount, lambda_, r.device, r.dtype)
    torch.testing.assert_close(of_r @ r + of_v @ v, lambda_return(r, v, discount, lambda_)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("discount, lambda_", [(0.99, 0.95), (1.0, 0.5), (0.0, 0.95), (0.9, 0.0), (0.9, 1.0)])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("steps", [1, 7])
def test_with_one_operation_in_a_step_returns_are_the_same(steps, ends, discount, lambda_):
    torch.manual_seed(2)
    r, v = torch.randn(2, steps, 3, dtype=torch.float64)
    continues = torch.rand(steps, 3, dtype=torch.float64) if ends else None
    inputs = [x.requires_grad_() for x in (r.clone(), v.clone(), continues) if x is not None]
    g, found = torch.randn(steps, 3, dtype=torch.float64), []
    for function in (folded_lambda_return, lambda_return):
        y = function(*inputs[:2], discount, lambda_, *inputs[2:])
        found.append((y, *torch.autograd.grad(y, inputs, g)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_worked_by_hand():
    r, v = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    # R_2 = 3 + (30 + 30) / 4,  R_1 = 2 + (20 + 18) / 4,  R_0 = 1 + (10 + 11.5) / 4
    assert lambda_return(r, v, 0.5, 0.5).tolist() == [6.375, 11.5, 18.0]


def test_columns_do_not_mix_and_gradients_reach_rewards_and_values():
    torch.manual_seed(2)
    r, v = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind(0)
    alone = torch.stack([lambda_return(r[:, i], v[:, i], 0.9, 0.8) for i in range(3)], dim=1)
    assert torch.equal(lambda_return(r, v, 0.9, 0.8), alone)
    assert torch.autograd.gradcheck(lambda r, v: lambda_return(r, v, 0.9, 0.8), (r, v))


# where episodes may end


def ended(x, step):
    """Rewards or values of an episode that ends after state `step`: nothing follows."""
    return torch.cat([x[:step], torch.zeros_like(x[step:])])


@pytest.mark.parametrize("discount, lambda_", [(0.99, 0.95), (0.9, 0.3), (1.0, 0.5), (0.9, 0.0), (0.9, 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_with_continuation_it_is_the_mean_over_the_states_where_the_episode_may_end(steps, discount, lambda_):
    torch.manual_seed(3)
    r, v = torch.randn(2, steps, 4, dtype=torch.float64)
    c = torch.rand(steps, 4, dtype=torch.float64)
    expected = torch.zeros_like(r)
    for t in range(steps):
        alive = torch.ones(4, dtype=torch.float64)
        for last in range(t, steps):  # v[last] is the value of the state after the last one
            expected[t] += alive * (1 - c[last]) * explicit(ended(r, last + 1), ended(v, last), t, discount, lambda_)
            alive = alive * c[last]
        expected[t] += alive * explicit(r, v, t, discount, lambda_)
    found = lambda_return(r, v, discount, lambda_, c)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_nothing_after_a_certain_end_counts():
    r, v = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    # R_1 = 2, because the second state is the last one,  R_0 = 1 + (10 + 2) / 4
    assert lambda_return(r, v, 0.5, 0.5, torch.tensor([1.0, 0.0, 1.0])).tolist() == [4.0, 2.0, 18.0]


def test_without_continuation_and_with_certain_continuation_bits_are_equal():
    torch.manual_seed(4)
    r, v = torch.randn(2, 7, 3).unbind(0)
    assert torch.equal(lambda_return(r, v, 0.99, 0.95, torch.ones(7, 3)), lambda_return(r, v, 0.99, 0.95))


def test_the_gradient_reaches_continuations_also_where_they_are_zero():
    torch.manual_seed(5)
    r, v, c = torch.randn(3, 4, 3, dtype=torch.float64).unbind(0)
    c = c.sigmoid()
    c[1, 0] = c[2, 1] = c[0, 2] = 0.0
    inputs = [x.clone().requires_grad_() for x in (r, v, c)]
    assert torch.autograd.gradcheck(lambda r, v, c: lambda_return(r, v, 0.9, 0.8, c), inputs)
    assert torch.autograd.gradcheck(survival, inputs[2:])


def test_survival_is_the_product_of_the_states_before():
    c = torch.tensor([[0.5, 1.0], [0.2, 0.0], [0.9, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.1, 0.0], [0.09, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(survival(c), expected)
    assert survival(c[:0]).tolist() == [[1.0, 1.0]]
