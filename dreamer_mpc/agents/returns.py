"""Lambda-returns, the targets of actor and critic."""

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.kernels import returns


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
    if returns.fuses(r_t):
        return returns.LambdaReturn.apply(r_t, v_tp1, discount, lambda_, continues)
    discounts = [discount] * len(r_t) if continues is None else (discount * continues).flip(0).unbind(0)
    found = []
    last = v_tp1[-1]
    for r, v, d in zip(r_t.flip(0).unbind(0), v_tp1.flip(0).unbind(0), discounts, strict=True):
        last = r + d * ((1 - lambda_) * v + lambda_ * last)
        found.append(last)
    return torch.stack(found[::-1])
