"""All rollouts of a latent model: along given actions, or with a policy in the loop; step by step or in one call.

Planners, imagination and pictures use the functions here. A model with `step` alone is rolled out in a loop; one that
inherits from `FusedRollouts` uses its own methods. Methods that merely have the same names are never called.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentDynamics, LatentModel

LatentNoise = Literal["fresh", "fixed", "mean"]


@runtime_checkable
class OffersNoise(Protocol):
    """A model whose stochastic steps accept their random draws: `step(state, action, noise)`."""

    def noise(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b Z"]:
        """Standard normal draws for one step; zeros give the prior's mean."""


class Proposals(NamedTuple):
    """The actions of a rollout and the states s_1 .. s_H that they led to, differentiable in the actions."""

    leaves: tuple[Float[Tensor, "*b h A"], ...]  # H steps in total: one per leaf, or all in one leaf
    states: Float[Tensor, "*b H S"]


class FusedRollouts(ABC):
    """A model that computes whole rollouts faster than a loop over `step`, with the same results."""

    @abstractmethod
    def walk(
        self, state: Float[Tensor, "*b S"], actions: Float[Tensor, "*b H A"], noise: Float[Tensor, "*b H Z"] | None
    ) -> Float[Tensor, "*b H S"]:
        """See `rollout`."""


class FusedClosedLoops(FusedRollouts):
    """The same for a model whose rollouts may ask any rule for their actions."""

    @abstractmethod
    def prepare_closed(self, rows: int, horizon: int) -> Any:
        """See `prepare_loop`."""

    @abstractmethod
    def walk_closed(
        self,
        state: Float[Tensor, "*b S"],
        horizon: int,
        act: Callable[[int, Float[Tensor, "*b S"]], Float[Tensor, "*b A"]],
        noise: Float[Tensor, "*b H Z"] | None,
        prepared: Any,
        path: Float[Tensor, "h *b S"] | None,
    ) -> Proposals:
        """States under the actions that `act(k, state)` gives for step k, clamped, differentiable in the actions.

        `prepared`, `path`: see `closed_loop`.
        """


class FusedPolicyRollouts(FusedRollouts):
    """The same for a model with a policy in the loop."""

    @abstractmethod
    def walk_policy(
        self,
        state: Float[Tensor, "*b S"],
        horizon: int,
        previous: Float[Tensor, "*b H A"] | None,
        weight: Float[Tensor, "*b H"] | None,
        noise: Float[Tensor, "*b H Z"] | None,
        mode: bool,
    ) -> Proposals:
        """See `policy_rollout`."""

    @abstractmethod
    def walk_imagination(self, start: Float[Tensor, "M S"], horizon: int, rounded: bool) -> Float[Tensor, "H M P"]:
        """See `imagine`."""


def rollout(
    model: LatentDynamics,
    state: Float[Tensor, "B S"],
    actions: Float[Tensor, "B N H A"],
    noise: Float[Tensor, "B N H Z"] | None = None,
) -> Float[Tensor, "B N H S"]:
    """The states s_1 .. s_H that `actions` lead to from `state`, s_0; without `noise` each step draws its own."""
    state = state[:, None].expand(-1, actions.shape[1], -1)  # [B, N, S]
    if isinstance(model, FusedRollouts):
        return model.walk(state, actions, noise)
    states = []
    for k, action in enumerate(actions.unbind(-2)):
        state = latent_step(model, state, action, _at(noise, k))
        states.append(state)
    return torch.stack(states, dim=-2)


def policy_rollout(
    model: LatentDynamics,
    state: Float[Tensor, "*b S"],
    horizon: int,
    previous: Float[Tensor, "*b H A"] | None = None,
    weight: Float[Tensor, "*b H"] | None = None,
    noise: Float[Tensor, "*b H Z"] | None = None,
    mode: bool = False,
) -> Proposals:
    """The policy's samples, or its `mode`, blended with `previous` by `weight`, in the states that they lead to.

    With weight 1 the previous action is used unchanged. The model needs `step` and `policy`.
    """
    if isinstance(model, FusedPolicyRollouts):
        return model.walk_policy(state, horizon, previous, weight, noise, mode)

    def act(state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b A"]:
        policy = model.policy(state)
        return policy.mode if mode else policy.rsample()

    return closed_loop(model, state, horizon, act, previous, weight, noise)


def closed_loop(
    model: LatentDynamics,
    state: Float[Tensor, "*b S"],
    horizon: int,
    act: Callable[[Float[Tensor, "*b S"]], Float[Tensor, "*b A"]],
    previous: Float[Tensor, "*b H A"] | None = None,
    weight: Float[Tensor, "*b H"] | None = None,
    noise: Float[Tensor, "*b H Z"] | None = None,
    prepared: Any = None,
    path: Float[Tensor, "h *b S"] | None = None,
) -> Proposals:
    """Like `policy_rollout`, but with actions from any rule `act`, clamped to [-1, 1].

    `prepared` is what `prepare_loop` gave for the sizes of this call. Without gradients, `path` is memory for s_0 ..
    s_H, contiguous: when the rule is asked for action k, states up to s_k are there, and it sees them in the precision
    of `path`.
    """

    @torch.no_grad()
    def blended(k: int, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b A"]:
        action = act(state)
        if previous is not None:
            share = weight[..., k, None]
            action = share * previous[..., k, :] + (1 - share) * action
        return action

    if isinstance(model, FusedClosedLoops):
        return model.walk_closed(state, horizon, blended, noise, prepared, path)
    leaves, states = [], []
    if path is not None:
        path[0] = state
    for k in range(horizon):
        leaf = blended(k, state.detach() if path is None else path[k]).clamp(-1, 1)[..., None, :]
        leaves.append(leaf.requires_grad_(torch.is_grad_enabled()))
        state = latent_step(model, state, leaf[..., 0, :], _at(noise, k))
        states.append(state)
        if path is not None:
            path[k + 1] = state
            states[k] = path[k + 1]
    return Proposals(tuple(leaves), torch.stack(states, dim=-2))


def prepare_loop(model: LatentDynamics, rows: int, horizon: int) -> Any:
    """Noise and weights of a `closed_loop` over `horizon` steps from `rows` states, before these are known.

    None where the loop draws and reads them itself: on a CPU, and for a model without loops of its own.
    """
    return model.prepare_closed(rows, horizon) if isinstance(model, FusedClosedLoops) else None


def imagine(
    model: LatentModel, start: Float[Tensor, "M S"], horizon: int, rounded: bool = False
) -> Float[Tensor, "H M P"]:
    """States s_1 .. s_H under the policy's samples, differentiable in the actor's weights (Dreamer, section 3).

    The policy reads detached states: its gradient flows through the actions, not through its inputs. With `rounded`
    the states are in bf16 for products, P >= S numbers filled up with zeros where that makes products faster.
    """
    if isinstance(model, FusedPolicyRollouts):
        return model.walk_imagination(start, horizon, rounded)
    state, states = start, []
    for _ in range(horizon):
        action = model.policy(state.detach()).rsample()
        state = model.step(state, action)
        states.append(state.bfloat16() if rounded else state)
    return torch.stack(states)


def joined(leaves: tuple[Float[Tensor, "*b h A"], ...]) -> Float[Tensor, "*b H A"]:
    """The actions of `Proposals`, or their gradients, as one tensor."""
    return leaves[0] if len(leaves) == 1 else torch.cat(leaves, dim=-2)


def latent_step(
    model: LatentDynamics, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Tensor | None
) -> Float[Tensor, "*b S"]:
    """One prior step; `noise` is passed only if given, so a model without noise needs no such parameter."""
    return model.step(state, action) if noise is None else model.step(state, action, noise)


def draw_noise(
    model: LatentDynamics, state: Float[Tensor, "*b S"], horizon: int, kind: LatentNoise, setting: str = ""
) -> Float[Tensor, "*b H Z"] | None:
    """The noise of the model's steps: None (each step draws anew), draws to be reused, or zeros (the mean).

    ValueError, naming the `setting` that asks for it, if the model cannot take given draws.
    """
    if kind == "fresh":
        return None
    if not isinstance(model, OffersNoise):
        raise ValueError(
            f"{setting or f'latent_noise={kind!r}'} needs a model with noise(state) and step(state, action, noise); "
            f"{type(model).__name__} has no noise method: use latent_noise='fresh'{' and draws=1' if setting else ''}"
        )
    draws = model.noise(state[..., None, :].expand(*state.shape[:-1], horizon, -1))
    return draws if kind == "fixed" else torch.zeros_like(draws)


def _at(noise: Float[Tensor, "*b H Z"] | None, k: int) -> Float[Tensor, "*b Z"] | None:
    return None if noise is None else noise[..., k, :]
