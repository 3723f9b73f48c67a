"""World model, actor and critic as planners and imagination see them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.kernels.block_walk import Prepared
from dreamer_mpc.kernels.cell import Acting, joined_states
from dreamer_mpc.networks import Actor, Critic, TanhNormal
from dreamer_mpc.networks.normal_actor import BoundedNormal, NormalActor
from dreamer_mpc.networks.value_ensemble import TwoHotCritic
from dreamer_mpc.planners.protocol import Terminating
from dreamer_mpc.planners.rollout import FusedClosedLoops, FusedPolicyRollouts, FusedRollouts, Proposals
from dreamer_mpc.world_model import WorldModelProtocol


class LatentWorld(nn.Module, Terminating):
    """The world model alone (PlaNet) behind the interface of planners (`LatentDynamics`)."""

    def __init__(self, world_model: WorldModelProtocol, action_dim: int):
        super().__init__()
        self.world_model, self.action_dim = world_model, action_dim
        self.noise_dim = world_model.noise_dim  # Z, of one step's draws

    def step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """One sample of the prior."""
        return self.world_model.step(state, action, noise)

    def noise(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b Z"]:
        """Standard normal draws for `step`."""
        return self.world_model.noise(state)

    def reward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Reward received on arriving in `state`."""
        return self.world_model.reward(state)

    @property
    def terminates(self) -> bool:
        """Whether the world model predicts where episodes end."""
        return self.world_model.continuation

    def continues(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Probability that the episode goes on after `state`."""
        return self.world_model.continues(state)


class Latents(LatentWorld):
    """World model, actor and critic behind the interface of planners (`LatentModel`)."""

    def __init__(self, world_model: WorldModelProtocol, actor: nn.Module, critic: nn.Module, action_dim: int):
        super().__init__(world_model, action_dim)
        self.actor, self.critic = actor, critic

    def value(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        """Value heads, each including `reward(state)`."""
        return self.critic(state)

    def policy(self, state: Float[Tensor, "*b S"]) -> TanhNormal | BoundedNormal:
        """The actor."""
        return self.actor(state)


class ReturnLatents(Latents):
    """`Latents` with a critic that predicts the return after a state, without the reward of the state itself (v3)."""

    def __init__(
        self, world_model: WorldModelProtocol, actor: nn.Module, critic: nn.Module, action_dim: int, discount: float
    ):
        super().__init__(world_model, actor, critic, action_dim)
        self.discount = discount

    def value(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        """Values as planners count them: the reward of the state, and its return if the episode goes on."""
        after = self.critic(state)  # [K, *b]
        if self.terminates:
            after = self.continues(state) * after
        return self.reward(state) + self.discount * after


class UnrolledWorld(LatentWorld, FusedRollouts):
    """`LatentWorld` that also rolls out whole sequences in one call, in place of a loop over `step`."""

    def walk(
        self,
        state: Float[Tensor, "*b S"],
        actions: Float[Tensor, "*b H A"],
        noise: Float[Tensor, "*b H Z"] | None = None,
    ) -> Float[Tensor, "*b H S"]:
        """`step` for each action in turn; differentiable in the actions."""
        rssm, batch = self.world_model.rssm, actions.shape[:-2]
        rows, action = state.reshape(-1, rssm.state_dim), _time_first(actions)
        noise = _draw(len(action), rows, rssm.stoch) if noise is None else _time_first(noise)
        wanted = torch.is_grad_enabled() and (state.requires_grad or actions.requires_grad)
        _, trace = rssm.unroll(rows, action, noise, save=wanted)
        states = rssm.differentiable_states(rows, action, noise, trace) if wanted else trace.states
        return states.transpose(0, 1).unflatten(0, batch)


class UnrolledLatents(Latents, UnrolledWorld, FusedPolicyRollouts):
    """`Latents` that also rolls out whole sequences in one call, with the policy in the loop."""

    def walk_policy(
        self,
        state: Float[Tensor, "*b S"],
        horizon: int,
        previous: Float[Tensor, "*b H A"] | None = None,
        weight: Float[Tensor, "*b H"] | None = None,
        noise: Float[Tensor, "*b H Z"] | None = None,
        mode: bool = False,
    ) -> Proposals:
        """The policy's samples or mode, blended with `previous` by `weight`, and the states that they lead to."""
        rssm, batch = self.world_model.rssm, state.shape[:-1]
        rows = state.reshape(-1, rssm.state_dim)
        noise = _draw(horizon, rows, rssm.stoch) if noise is None else _time_first(noise)
        acting = Acting(self.actor.weights(), None if mode else _draw(horizon, rows, self.action_dim))
        if previous is not None:
            acting = acting._replace(previous=_time_first(previous), weight=_time_first(weight[..., None])[..., 0])
        taken, trace = rssm.unroll(rows, acting, noise, save=torch.is_grad_enabled())
        actions = taken.transpose(0, 1).unflatten(0, batch)
        states = trace.states
        if torch.is_grad_enabled():
            actions = actions.detach().requires_grad_()
            states = rssm.differentiable_states(rows, _time_first(actions), noise, trace)
        return Proposals((actions,), states.transpose(0, 1).unflatten(0, batch))

    def walk_imagination(
        self, start: Float[Tensor, "M S"], horizon: int, rounded: bool = False
    ) -> Float[Tensor, "H M P"]:
        """States under the policy's samples, with the actor's gradient; see `planners.rollout.imagine`."""
        rssm = self.world_model.rssm
        noise = _draw(horizon, start, rssm.stoch)
        acting = Acting(self.actor.weights(), _draw(horizon, start, self.action_dim))
        _, trace = rssm.unroll(start, acting, noise, save=True)
        # Compute the same actions again, in one call for all steps: the policy reads detached states.
        before = joined_states(trace.deter[:-1], trace.stoch[:-1], rounded=rssm.bf16)
        with torch.autocast(start.device.type, dtype=torch.bfloat16, enabled=rssm.bf16):
            distribution = self.actor(before)
        action = torch.tanh(distribution.mean + distribution.std * acting.noise)
        return rssm.differentiable_states(start, action, noise, trace, rounded)


class UnrolledReturnLatents(ReturnLatents, UnrolledWorld):
    """`ReturnLatents` that also rolls out given actions in one call."""


class WalkedWorld(LatentWorld, FusedClosedLoops):
    """`LatentWorld` with a categorical world model, whose rollouts have a backward pass of their own."""

    def walk(
        self,
        state: Float[Tensor, "*b S"],
        actions: Float[Tensor, "*b H A"],
        noise: Float[Tensor, "*b H Z"] | None = None,
    ) -> Float[Tensor, "*b H S"]:
        """`step` for each action in turn; differentiable in state and actions."""
        rssm, rows, action = self.world_model.rssm, state.reshape(-1, state.shape[-1]), _time_first(actions)
        noise = _draw(len(action), rows, self.noise_dim) if noise is None else _time_first(noise)
        wanted = torch.is_grad_enabled() and (state.requires_grad or actions.requires_grad)
        _, walked = rssm.walk(rows, lambda k, _: action[k], noise, save=wanted)
        states = rssm.differentiable_states(rows, action, walked) if wanted else walked.states
        return states.transpose(0, 1).unflatten(0, actions.shape[:-2])

    def prepare_closed(self, rows: int, horizon: int) -> Prepared | None:
        """Noise and weights of `walk_closed` on a GPU; on a CPU None, as the order of draws counts there."""
        like = self.world_model.initial(1)
        if not like.is_cuda:
            return None
        return self.world_model.rssm.prepared(_draw(horizon, like.expand(rows, -1), self.noise_dim))

    def walk_closed(
        self,
        state: Float[Tensor, "*b S"],
        horizon: int,
        act: Callable[[int, Float[Tensor, "*b S"]], Float[Tensor, "*b A"]],
        noise: Float[Tensor, "*b H Z"] | None = None,
        prepared: Prepared | None = None,
        path: Float[Tensor, "h *b S"] | None = None,
    ) -> Proposals:
        """`step` with the rule `act` in the loop; differentiable in the actions."""
        rssm, batch, rows = self.world_model.rssm, state.shape[:-1], state.detach().reshape(-1, state.shape[-1])
        if prepared is None:
            noise = _draw(horizon, rows, self.noise_dim) if noise is None else _time_first(noise)

        def of_rows(k: int, now: Float[Tensor, "M S"]) -> Float[Tensor, "M A"]:
            return act(k, now.view(*batch, -1)).reshape(len(now), -1)

        wanted = torch.is_grad_enabled()
        path = None if path is None else path.view(len(path), -1, path.shape[-1])
        taken, walked = rssm.walk(rows, of_rows, prepared or noise, wanted, path)
        actions, states = taken.transpose(0, 1).unflatten(0, batch), walked.states
        if wanted:
            actions = actions.detach().requires_grad_()
            states = rssm.differentiable_states(rows, _time_first(actions), walked)
        return Proposals((actions,), states.transpose(0, 1).unflatten(0, batch))


class WalkedLatents(Latents, WalkedWorld):
    """`Latents` with these rollouts."""


class WalkedReturnLatents(ReturnLatents, WalkedWorld):
    """`ReturnLatents` with these rollouts."""


# The classes of each kind of rollouts: without behavior, with that of Dreamer, with that of DreamerV3.
STEPWISE = (LatentWorld, Latents, ReturnLatents)
UNROLLED = (UnrolledWorld, UnrolledLatents, UnrolledReturnLatents)
WALKED = (WalkedWorld, WalkedLatents, WalkedReturnLatents)


def make_latents(
    config: BehaviorConfig | None, world_model: WorldModelProtocol, action_dim: int, kernels: bool
) -> LatentWorld:
    """World model, actor and critic of the kind that `config` names; without it the world model alone.

    With `kernels`, rollouts are those of the world model's own fast form; else a loop over `step`, the reference.
    """
    fast = {"gaussian": UNROLLED, "categorical": WALKED}[world_model.kind]
    alone, with_values, with_returns = fast if kernels else STEPWISE
    if config is None:
        return alone(world_model, action_dim)
    size, (actor_layers, critic_layers) = world_model.state_dim, (config.actor_layers, config.value_layers)
    if config.kind == "v3":
        actor = NormalActor(size, action_dim, actor_layers, config.actor_hidden)
        critic = TwoHotCritic(size, config.value_heads, critic_layers, config.value_hidden, config.bootstrap)
        return with_returns(world_model, actor, critic, action_dim, config.discount)
    actor = Actor(size, action_dim, actor_layers, config.actor_hidden, init_std=config.actor_init_std)
    critic = Critic(size, config.value_heads, critic_layers, config.value_hidden, config.bootstrap)
    return with_values(world_model, actor, critic, action_dim)


def _time_first(x: Float[Tensor, "*b H X"]) -> Float[Tensor, "H M X"]:
    return x.flatten(0, -3).transpose(0, 1).contiguous()


def _draw(steps: int, rows: Float[Tensor, "M S"], size: int) -> Float[Tensor, "T M X"]:
    return torch.randn(steps, len(rows), size, dtype=rows.dtype, device=rows.device)
