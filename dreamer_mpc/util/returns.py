"""Returns as pure functions of predicted rewards, values and continuations."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def lambda_return(
    r_t: Float[Tensor, "T *b"],
    v_tp1: Float[Tensor, "T *b"],
    discount: float,
    lambda_: float,
    continues: Float[Tensor, "T *b"] | None = None,
) -> Float[Tensor, "T *b"]:
    """TD(lambda) returns (Dreamer, Hafner et al. 2020, Eq. 6, written as a recursion).

        R_t = r_t + discount c_t ((1 - lambda) v_{t+1} + lambda R_{t+1}),     R_T = v_T

    `r_t[k]` is the reward of the k-th state and `v_tp1[k]` the value of the one after it, so R_t begins with r_t and a
    value head trained on it includes the reward of its own state. `continues[k]`, c_k in [0, 1], is the probability
    that the episode goes on after the k-th state; without it no episode ends, c = 1.
    """
    if r_t.is_cuda:
        return folded_lambda_return(r_t, v_tp1, discount, lambda_, continues)
    discounts = [discount] * len(r_t) if continues is None else (discount * continues).flip(0).unbind(0)
    returns = []
    last = v_tp1[-1]
    for r, v, d in zip(r_t.flip(0).unbind(0), v_tp1.flip(0).unbind(0), discounts, strict=True):
        last = r + d * ((1 - lambda_) * v + lambda_ * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def folded_lambda_return(
    r_t: Float[Tensor, "T *b"],
    v_tp1: Float[Tensor, "T *b"],
    discount: float,
    lambda_: float,
    continues: Float[Tensor, "T *b"] | None = None,
) -> Float[Tensor, "T *b"]:
    """`lambda_return` with one operation in a step of its loops: what a GPU does in T steps, and back, counts."""
    discounts = torch.full_like(v_tp1, discount) if continues is None else discount * continues
    return _Folded.apply(r_t, v_tp1, discounts, lambda_)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, r_t, v_tp1, discounts, lambda_):
        fixed, share = torch.addcmul(r_t, discounts, v_tp1, value=1 - lambda_), lambda_ * discounts
        returns, last = torch.empty_like(fixed), v_tp1[-1]
        for k in reversed(range(len(returns))):
            last = torch.addcmul(fixed[k], share[k], last, out=returns[k])
        ctx.lambda_ = lambda_
        ctx.save_for_backward(v_tp1, discounts, share, returns)
        return returns

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        """A return counts for itself, and by its share for the one before: the gradient walks forward in time."""
        v_tp1, discounts, share, returns = ctx.saved_tensors
        d_return = torch.empty_like(returns)
        last = d_return[0].copy_(g[0])
        for k in range(1, len(g)):
            last = torch.addcmul(g[k], share[k - 1], last, out=d_return[k])
        d_value = (1 - ctx.lambda_) * discounts * d_return
        d_value[-1].addcmul_(share[-1], last)
        if not ctx.needs_input_grad[2]:
            return d_return, d_value, None, None
        after = torch.cat([returns[1:], v_tp1[-1:]])
        return d_return, d_value, torch.lerp(v_tp1, after, ctx.lambda_) * d_return, None


def survival(continues: Float[Tensor, "T *b"]) -> Float[Tensor, "T+1 *b"]:
    """Probabilities that an episode that is in the first of T + 1 states reaches each of them: 1, c_0, c_0 c_1, ...

    A loop, because the gradient of `torch.cumprod` waits for the device.
    """
    reached = [continues.new_ones(continues.shape[1:])]
    for c in continues.unbind(0):
        reached.append(reached[-1] * c)
    return torch.stack(reached)


@functools.cache  # a CUDA graph may read them, but cannot copy them from the host
def lambda_weights(
    steps: int, discount: float, lambda_: float, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Weights of `r_t` and of `v_tp1` in the first of the T = `steps` returns of `lambda_return`, which is their sum.

    One product in place of a recursion of T steps, whose small operations take most of a plan's time on a GPU.
    """
    rewards = [(discount * lambda_) ** k for k in range(steps)]
    values = [(1 - lambda_) * discount * weight for weight in rewards[:-1]] + [discount * rewards[-1]]
    return tuple(torch.tensor(weights, device=device, dtype=dtype) for weights in (rewards, values))
