"""Actor and critic by the score function (REINFORCE), as DreamerV3 trains them (Hafner et al. 2023)."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.agents.behavior import BehaviorConfig, Learned
from dreamer_mpc.agents.latents import ReturnLatents
from dreamer_mpc.agents.return_scale import ReturnScale
from dreamer_mpc.agents.returns import lambda_return
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.networks.normal_actor import Sampler
from dreamer_mpc.networks.two_hot import TwoHot
from dreamer_mpc.planners.rollout import closed_loop, prepare_loop
from dreamer_mpc.world_model import Batch


class Prepared(NamedTuple):
    """What imagination needs but the states that it starts from."""

    loop: Any  # see `prepare_loop`
    draws: Float[Tensor, "H M A"]  # standard normal, of the policy
    sample: Sampler


class Replayed(NamedTuple):
    """What the value loss on replayed states needs but their returns: one step of M = (T - 1) B trajectories."""

    slow: Float[Tensor, "K 1 M"]  # values by the slow copy
    weight: Float[Tensor, "1 M"]
    mask: Bool[Tensor, "K M"]
    share: Float[Tensor, "K 1 M"]  # of each error in the loss, times its scale: the loss's gradient in it
    last: Bool[Tensor, "t B"]  # whether each frame is its episode's last, t = T - 1
    alive: Float[Tensor, "t B"]


class ReinforceBehavior:
    """Trains actor and critic as DreamerV3 does; see `Behavior`.

    `amp` is autocast for networks; with `bf16` imagined states are rounded for them.
    Values leave out the reward of their own state: the return of s_k begins with the reward of s_{k+1}. The slow copy
    of the value heads is a second target for them, a regulariser; returns bootstrap from the heads themselves.
    """

    lane = "imagination"

    def __init__(
        self, config: BehaviorConfig, model: ReturnLatents, amp: Callable[[], torch.autocast], bf16: bool = False
    ):
        self.config, self.model, self.amp, self.bf16 = config, model, amp, bf16
        self.slow = copy.deepcopy(model.critic).requires_grad_(False)
        self.returns = ReturnScale(config.return_rate).to(self.slow.bins.device)

    def prepare(self, batch: Batch) -> Prepared | None:
        """Noise and weights of imagination, on a GPU; on a CPU None, as the order of draws counts there."""
        rows, horizon = batch.reward.numel(), self.config.horizon
        like = self.slow.bins
        if not like.is_cuda:
            return None
        draws = torch.randn(horizon, rows, self.model.action_dim, device=like.device, dtype=like.dtype)
        return Prepared(prepare_loop(self.model, rows, horizon), draws, self._sampler())

    def learn(self, states: Float[Tensor, "T B S"], batch: Batch, prepared: Prepared | None = None) -> Learned:
        """Gradients from imagination that starts in every state of the batch, and from the batch's own rewards.

        What the world model waits for, the gradient in the states, comes beside the rest.
        """
        model, config = self.model, self.config
        critic, mask = list(model.critic.parameters()), model.critic.mask(batch.index)  # [K, T, B]
        replayed, later = Aside(states.device, "replay"), Aside(states.device, "later")
        with replayed, self.amp():
            before = states[:-1]  # each [K, T-1, B]; the world model waits for no gradient of the critic
            given, seen = model.critic.predict(before, constant=True), model.critic.predict(before.detach())
            replay = self._replay(self._slow_values(before), batch, mask)
        with torch.no_grad(), self.amp():
            imagined, actions = self._imagine(states.detach().flatten(0, 1), prepared)  # [H+1, M, S], [H, M, A]
        later.follow()
        with later, self.amp():  # the way back runs there too, behind what the world model waits for
            predicted = model.critic.predict(imagined)  # [K, H+1, M]
            values = predicted._replace(logits=predicted.logits.detach()).mean  # [K, H+1, M]
            value = values.mean(0)
        with torch.no_grad(), self.amp():
            rewards, continues = model.reward(imagined), model.continues(imagined)  # [H+1, M]
        later.join()
        returns = lambda_return(rewards[1:], value[1:], config.discount, config.return_lambda, continues[1:])  # [H, M]
        replayed.follow()
        with replayed:
            found = self._replay_returns(replay, batch, returns[0].view(batch.reward.shape))
            # From the errors on, without the launches of the loss and of its way back.
            errors = _in_one_step(given).loss(found, replay.slow, config.slow_scale)
            (states_gradient,) = torch.autograd.grad(errors, [states], replay.share)
            # The sum over heads would reach the world model with their number of times the gradient of one.
            states_gradient = states_gradient / len(values)
            ready = replayed.mark()
            replay_loss = self._value_loss(_in_one_step(seen), replay.slow, found, replay.weight, replay.mask)
            replay_grads = torch.autograd.grad(config.replay_scale * replay_loss, critic)
        later.follow()
        with later:
            with self.amp():
                policy = model.policy(imagined[:-1])
            weight = arrival(continues[:-1], config.discount)  # [H, M]
            self._bounds = self.returns.propose(returns)
            advantage = (returns - value[:-1]) / self.returns.scale(self._bounds)
            log_prob, entropy = policy.log_prob(actions), policy.entropy()
            policy_loss = actor_loss(log_prob, entropy, advantage, weight, config.entropy_scale)
            slow = self._slow_values(imagined[:-1])
            value_loss = self._value_loss(_first(predicted), slow, returns, weight, mask.flatten(1))
            value_grads = torch.autograd.grad(value_loss, critic)
            actor_grads = torch.autograd.grad(policy_loss, list(model.actor.parameters()))
            replayed.join()
            metrics = {
                "actor_loss": policy_loss.detach(),
                "critic_loss": value_loss.detach() / len(values),
                "replay_value_loss": replay_loss.detach() / len(values),
                "value_mean": value.mean(),
                "value_spread": values.std(0, correction=0).mean(),
                "imagined_reward": rewards.mean(),
                "imagined_continue": continues.mean(),
                "actor_std": policy.std.mean().detach(),
                "actor_entropy": entropy.mean().detach(),
                "return_scale": self.returns.scale(self._bounds),
            }
            critic_grads = tuple(torch._foreach_add(value_grads, replay_grads))
        later.join()
        return Learned({"actor": actor_grads, "critic": critic_grads}, metrics, states_gradient, ready)

    def commit(self, skipped: Bool[Tensor, ""]) -> None:
        """Move the slow copy towards the value heads and keep the quantiles of returns, unless `skipped`."""
        self.returns.commit(self._bounds, skipped)
        slow, heads = list(self.slow.parameters()), list(self.model.critic.parameters())
        steps = torch._foreach_sub([p.detach() for p in heads], slow)
        torch._foreach_mul_(steps, self.config.slow_rate * (1 - skipped.to(steps[0].dtype)))
        torch._foreach_add_(slow, steps)

    def state_dict(self) -> dict[str, Any]:
        """The slow copy and the quantiles of returns."""
        return {"slow": self.slow.state_dict(), "returns": self.returns.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; without it the slow copy begins as a copy of the value heads."""
        self.slow.load_state_dict(state.get("slow", self.model.critic.state_dict()))
        if "returns" in state:
            self.returns.load_state_dict(state["returns"])

    def _imagine(
        self, start: Float[Tensor, "M S"], prepared: Prepared | None
    ) -> tuple[Float[Tensor, "h M S"], Float[Tensor, "H M A"]]:
        """States s_0 .. s_H, h = H + 1, under samples of the policy, and these samples before their clipping."""
        samples, horizon = [], self.config.horizon
        loop, draws, sample = prepared or (None, [None] * horizon, self._sampler())
        precision = torch.bfloat16 if self.bf16 else start.dtype  # rounded once for all heads
        path = start.new_empty(horizon + 1, *start.shape, dtype=precision)

        def act(state: Float[Tensor, "M S"]) -> Float[Tensor, "M A"]:
            samples.append(sample(state, draws[len(samples)]))
            return samples[-1]

        closed_loop(self.model, start, horizon, act, prepared=loop, path=path)
        return path, torch.stack(samples)

    def _sampler(self) -> Sampler:
        return self.model.actor.sampler(self.bf16)

    def _slow_values(self, states: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        with torch.no_grad(), self.amp():
            return self.slow(states)

    def _replay(self, slow: Float[Tensor, "K t B"], batch: Batch, mask: Bool[Tensor, "K T B"]) -> Replayed:
        """An episode's last frame counts nothing where another episode's first follows it."""
        last = batch.is_first[1:]  # [T-1, B], whether each frame is its episode's last
        alive = ~(batch.is_terminal[1:] | last)
        weight, kept = (~last).to(slow.dtype).view(1, -1), mask[:, :-1].flatten(1)
        count = kept.sum(dim=1).clamp_min(1).to(slow.dtype)
        each = torch.full_like(count, self.config.replay_scale) / count  # [K]
        share = each[:, None, None] * kept[:, None] * weight
        return Replayed(slow.flatten(1)[:, None], weight, kept, share, last, alive.to(slow.dtype))

    def _replay_returns(self, replay: Replayed, batch: Batch, bootstrap: Float[Tensor, "T B"]) -> Float[Tensor, "1 M"]:
        """Returns of replayed states, which bootstrap from their imagined returns, `bootstrap`.

        The return of an episode's last frame is its bootstrap, so that the returns before it end there.
        """
        rewards = torch.where(replay.last, bootstrap[:-1], batch.reward[1:])
        settings = (self.config.discount, self.config.return_lambda)
        return lambda_return(rewards, bootstrap[1:], *settings, replay.alive).view(1, -1)

    def _value_loss(
        self,
        predicted: TwoHot,  # [K, T, M]
        slow: Float[Tensor, "K T M"],
        returns: Float[Tensor, "T M"],
        weight: Float[Tensor, "T M"],
        mask: Bool[Tensor, "K M"],
    ) -> Float[Tensor, ""]:
        """Cross-entropies of each value head to the returns and to its slow copy, over the trajectories of its mask.

        Summed over heads, so that each learns as fast as a single critic would.
        """
        losses = predicted.loss(returns, slow, self.config.slow_scale)  # [K, T, M]
        losses = (weight * losses).mean(dim=1)  # [K, M]
        return ((losses * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).sum()


def actor_loss(
    log_prob: Float[Tensor, "H M"],
    entropy: Float[Tensor, "H M"],
    advantage: Float[Tensor, "H M"],
    weight: Float[Tensor, "H M"],
    entropy_scale: float,
) -> Float[Tensor, ""]:
    """The score function with a bonus for entropy (DreamerV3, Eq. 11); advantages are constants."""
    return -(weight * (log_prob * advantage.detach() + entropy_scale * entropy)).mean()


def arrival(continues: Float[Tensor, "H M"], discount: float) -> Float[Tensor, "H M"]:
    """Discounted probability that each of s_0 .. s_{H-1} is one that an episode acts in: discount^k c_0 c_1 .. c_k.

    It includes the predicted continuation of the state itself, the root's too, so that nothing is learned about actions
    after an episode's end.
    """
    return torch.cumprod(torch.cat([continues[:1], discount * continues[1:]]), dim=0)


def _in_one_step(predicted: TwoHot) -> TwoHot:
    """Of t steps of B trajectories, as one step of t B."""
    return predicted._replace(logits=predicted.logits.flatten(1, 2)[:, None])


def _first(predicted: TwoHot) -> TwoHot:
    """Without the last of the steps."""
    return predicted._replace(logits=predicted.logits[:, :-1])
