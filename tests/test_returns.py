"""Lambda-returns against the sums that define them."""

import pytest
import torch

from dreamer_mpc.util.returns import lambda_return, lambda_weights


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
