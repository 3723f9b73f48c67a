"""The losses of actor and critic on states that the policy imagines (`planners.rollout.imagine`)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.networks.heads import UnitNormal
from dreamer_mpc.util.returns import lambda_return


def actor_loss(returns: Float[Tensor, "T M"]) -> Float[Tensor, ""]:
    """Maximise lambda-returns by gradients through the world model (Dreamer, Eq. 7)."""
    return -returns.mean()


@torch.no_grad()
def own_returns(
    r_t: Float[Tensor, "T M"], v_tp1: Float[Tensor, "K T M"], discount: float, lambda_: float
) -> Float[Tensor, "K T M"]:
    """Lambda-returns of each head, which bootstrap from its own values; see `lambda_return`."""
    heads_second = v_tp1.transpose(0, 1)  # [T, K, M]
    rewards = r_t[:, None].expand_as(heads_second)
    return lambda_return(rewards, heads_second, discount, lambda_).transpose(0, 1)


def critic_loss(
    values: Float[Tensor, "K T M"], returns: Float[Tensor, "*K T M"], mask: Bool[Tensor, "K M"]
) -> Float[Tensor, ""]:
    """Each head's regression on the returns (Dreamer, Eq. 8), over the trajectories its bootstrap mask keeps.

    `returns` are the same for all heads, [T, M], or each head's, [K, T, M]. Summed over heads, so that each learns as
    fast as a single critic would.
    """
    error = UnitNormal(values).loss(returns.detach()).mean(dim=1)  # [K, M]
    return ((error * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).sum()
