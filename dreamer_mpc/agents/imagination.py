"""The losses of actor and critic on states that the policy imagines (`planners.rollout.imagine`)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.networks.heads import UnitNormal
from dreamer_mpc.util.returns import lambda_return, survival


@torch.no_grad()
def arrival(continues: Float[Tensor, "T M"], is_terminal: Bool[Tensor, " M"]) -> Float[Tensor, "T M"]:
    """Probability that an episode reaches each of the states s_1 .. s_T of imagination, without gradient.

    It is the product of the continuation of every state before, from the root s_0 on: 0 where the root `is_terminal`,
    else 1, then `continues` of s_1 .. s_{T-1}.
    """
    return survival(continues[:-1]) * ~is_terminal


def actor_loss(returns: Float[Tensor, "T M"], weight: Float[Tensor, "T M"] | None = None) -> Float[Tensor, ""]:
    """Maximise lambda-returns by gradients through the world model (Dreamer, Eq. 7), each times its `weight`."""
    if weight is not None:
        returns = weight * returns
    return -returns.mean()


@torch.no_grad()
def own_returns(
    r_t: Float[Tensor, "T M"],
    v_tp1: Float[Tensor, "K T M"],
    discount: float,
    lambda_: float,
    continues: Float[Tensor, "T M"] | None = None,
) -> Float[Tensor, "K T M"]:
    """Lambda-returns of each head, which bootstrap from its own values; see `lambda_return`."""
    heads_second = v_tp1.transpose(0, 1)  # [T, K, M]
    rewards = r_t[:, None].expand_as(heads_second)
    continues = None if continues is None else continues[:, None].expand_as(heads_second)
    return lambda_return(rewards, heads_second, discount, lambda_, continues).transpose(0, 1)


def critic_loss(
    values: Float[Tensor, "K T M"],
    returns: Float[Tensor, "*K T M"],
    mask: Bool[Tensor, "K M"],
    weight: Float[Tensor, "T M"] | None = None,
) -> Float[Tensor, ""]:
    """Each head's regression on the returns (Dreamer, Eq. 8), over the trajectories its bootstrap mask keeps.

    `returns` are the same for all heads, [T, M], or each head's, [K, T, M]; each error counts with its `weight`. Summed
    over heads, so that each learns as fast as a single critic would.
    """
    error = UnitNormal(values).loss(returns.detach())  # [K, T, M]
    error = (error if weight is None else weight * error).mean(dim=1)  # [K, M]
    return ((error * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).sum()
