"""The policy rolled out in latent imagination, and the losses of actor and critic on it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentModel
from dreamer_mpc.util.returns import lambda_return


def imagine(model: LatentModel, start: Float[Tensor, "M S"], horizon: int) -> Float[Tensor, "H M S"]:
    """States s_1 .. s_H under the policy's samples, differentiable in the actions (Dreamer, section 3).

    The policy reads detached states: its gradient comes through the actions, not through what it was shown. A model
    that can walk the whole rollout at once does so.
    """
    if hasattr(model, "imagine"):
        return model.imagine(start, horizon)
    state, states = start, []
    for _ in range(horizon):
        action = model.policy(state.detach()).rsample()
        state = model.step(state, action)
        states.append(state)
    return torch.stack(states)


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
    error = 0.5 * (values - returns.detach()).square().mean(dim=1)  # [K, M]
    return ((error * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).sum()
