"""Parts of returns as pure functions of predicted continuations, and the weights of a lambda-return."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor


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
    """Weights of `r_t` and of `v_tp1` in the first of the T = `steps` returns of `agents.returns.lambda_return`, a sum.

    One product in place of a recursion of T steps, whose small operations take most of a plan's time on a GPU.
    """
    rewards = [(discount * lambda_) ** k for k in range(steps)]
    values = [(1 - lambda_) * discount * weight for weight in rewards[:-1]] + [discount * rewards[-1]]
    return tuple(torch.tensor(weights, device=device, dtype=dtype) for weights in (rewards, values))
