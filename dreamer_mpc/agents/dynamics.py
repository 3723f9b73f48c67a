"""Actor and critic by gradients through the world model's dynamics (Dreamer, Hafner et al. 2020)."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.agents.behavior import BehaviorConfig, Learned
from dreamer_mpc.agents.latents import Latents
from dreamer_mpc.agents.returns import lambda_return
from dreamer_mpc.networks.heads import UnitNormal
from dreamer_mpc.planners.protocol import predicts_ends
from dreamer_mpc.planners.rollout import imagine
from dreamer_mpc.util.returns import survival
from dreamer_mpc.world_model import Batch


class DynamicsBehavior:
    """Trains actor and critic as the paper's base does; see `Behavior`. It has no state beside their weights.

    Where the world model predicts continuation, returns stop where it expects an end, and each imagined state counts
    with the probability of reaching it: not at all from a terminal frame. `amp` is autocast for the heads; with
    `bf16` the states are rounded for them.
    """

    lane = "beside"

    def __init__(self, config: BehaviorConfig, model: Latents, amp: Callable[[], torch.autocast], bf16: bool = False):
        self.config, self.model, self.amp, self.bf16 = config, model, amp, bf16

    def prepare(self, batch: Batch) -> None:
        """Nothing."""

    def learn(self, states: Float[Tensor, "T B S"], batch: Batch, prepared: None = None) -> Learned:
        """Gradients from imagination that starts in every state of the batch."""
        model, config = self.model, self.config
        imagined = imagine(model, states.detach().flatten(0, 1), config.horizon, self.bf16)  # [H, M, S]
        with self.amp():
            rewards, values = model.reward(imagined), model.value(imagined)  # [H, M], [K, H, M]
            continues = model.continues(imagined[:-1]) if predicts_ends(model) else None  # [H-1, M]
        weight = None if continues is None else arrival(continues, batch.is_terminal.flatten())  # [H-1, M]
        # Returns, like their weights: [H-1, M].
        returns = lambda_return(rewards[:-1], values.mean(0)[1:], config.discount, config.return_lambda, continues)
        policy_loss = actor_loss(returns, weight)
        targets = returns
        if config.head_targets == "own":  # [K, H-1, M]; their mean over heads is `returns`
            targets = own_returns(rewards[:-1], values[:, 1:], config.discount, config.return_lambda, continues)
        value_loss = critic_loss(values[:, :-1], targets, model.critic.mask(batch.index.flatten()), weight)
        actor_grads = torch.autograd.grad(policy_loss, list(model.actor.parameters()), retain_graph=True)
        # The value graph reaches back through the imagined states; asking for the critic's parameters stops there.
        critic_grads = torch.autograd.grad(value_loss, list(model.critic.parameters()))
        with torch.no_grad(), self.amp():
            metrics = {
                "actor_loss": policy_loss.detach(),
                "critic_loss": value_loss.detach() / len(values),
                "value_mean": values.mean(),
                "value_spread": values.std(0, correction=0).mean(),
                "imagined_reward": rewards.mean(),
                "actor_std": model.policy(imagined[-1]).std.mean(),
            }
            if continues is not None:
                metrics["imagined_continue"] = continues.mean()
        return Learned({"actor": actor_grads, "critic": critic_grads}, metrics)

    def commit(self, skipped: Bool[Tensor, ""]) -> None:
        """There is nothing to keep."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""


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
