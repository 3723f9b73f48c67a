"""The interface of planners: what they need from a world model, and what they return."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.util.errors import UserError


@runtime_checkable
class ActionDistribution(Protocol):
    """A distribution over actions [*, A] in [-1, 1]."""

    @property
    def mode(self) -> Float[Tensor, "*b A"]: ...

    def rsample(self) -> Float[Tensor, "*b A"]: ...


@runtime_checkable
class LatentDynamics(Protocol):
    """A latent world model alone: dynamics and reward. That is enough for CEM and Grad-MPC if J is a sum of rewards.

    A model whose `step` is random may also offer `noise(state) -> [*, Z]`, standard normal draws, and take them as
    `step(state, action, noise)`; zeros then mean the prior's mean or, for a categorical prior, its mode. Planners use
    that for `latent_noise` other than `fresh` and for several `draws`. A model that computes whole rollouts faster than
    a loop over `step` inherits from `planners.rollout.FusedRollouts`; one whose episodes may end, from `Terminating`.
    """

    action_dim: int

    def step(self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b S"]:
        """One prior step, differentiable in both arguments."""

    def reward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Reward received on arriving in `state`."""


@runtime_checkable
class LatentModel(LatentDynamics, Protocol):
    """A latent world model with an actor and a critic; any object with these members can be used, for any S."""

    def value(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "K *b"]:
        """K value heads, each including `reward(state)`."""

    def policy(self, state: Float[Tensor, "*b S"]) -> ActionDistribution:
        """The actor's distribution over actions."""


class Terminating(ABC):
    """A latent model that says where episodes end; a `continues` without inheriting from here is never called."""

    @property
    def terminates(self) -> bool:
        """Whether episodes end at all; if not, `continues` is never called."""
        return True

    @abstractmethod
    def continues(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Probability that the episode goes on after `state`, in [0, 1], differentiable."""


def predicts_ends(model: LatentDynamics) -> bool:
    """Whether the continuation that `model` predicts counts; otherwise every episode is taken to go on."""
    return isinstance(model, Terminating) and model.terminates


class Memory(NamedTuple):
    """The previous plan, handed from one call of `plan` to the next."""

    actions: Float[Tensor, "B *N H A"]  # N: one plan per candidate, where each continues its own
    valid: Bool[Tensor, " B"]  # False where there is no previous plan: an episode's start, or a fallback

    def reset(self, done: Bool[Tensor, " B"]) -> "Memory":
        """Forget the rows where `done` is True."""
        return self._replace(valid=self.valid & ~done)


@dataclass
class Plan:
    """The decision of a planner, for B environments at once."""

    action: Float[Tensor, "B A"]  # what to execute, in [-1, 1]
    actions: Float[Tensor, "B H A"]  # the chosen sequence
    value: Float[Tensor, " B"]  # its objective J (CEM: the mean J of the elites)
    candidates: Float[Tensor, "B N H A"]  # all candidates, after refinement
    candidate_values: Float[Tensor, "B N"]  # J of each; -inf where the model returned a value that is not finite
    memory: Any  # passed to the next call: None, or a named tuple of tensors [B, ...] with `reset`, as `Memory` is
    model_evaluations: int  # `step` calls per environment, counted per candidate
    fallback: Bool[Tensor, " B"]  # rows where no candidate had a finite value and the policy's mode is executed


@runtime_checkable
class Planner(Protocol):
    """Chooses actions by imagining in a latent model; it holds settings and no state.

    The planners of `PLANNERS` also say in `requires` which of `LatentModel`'s `value` and `policy` they use, so that a
    world model without critic or actor is refused with an error message.
    """

    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: Any = None) -> Plan:
        """Plan for B environments. `memory` is None at an episode's start, else the last plan's."""


class PlanError(UserError, ValueError):
    """A plan that does not fit: a mistake in a planner, in one line that names it."""


def fitting(planner: Planner, plan: Any, state: Float[Tensor, "B S"], action_dim: int) -> Plan:
    """`plan`, if what an agent reads of it has the types and shapes of `Plan`; else PlanError.

    Numbers are not looked at, as on a GPU that would synchronise: see `bounded`.
    """
    name, rows = type(planner).__name__, len(state)
    if not isinstance(plan, Plan):
        raise PlanError(f"{name}.plan must return a Plan of dreamer_mpc.planners, got {type(plan).__name__}")
    for part, sizes, letters in (("action", (rows, action_dim), "[B, A]"), ("value", (rows,), "[B]")):
        given = getattr(plan, part)
        if not isinstance(given, Tensor):
            raise PlanError(f"{name}.plan must give the {part} as a torch tensor {letters}, got {_called(given)}")
        expected, got = _form(state, sizes), _form(given, given.shape)
        if got != expected:
            raise PlanError(f"{name}.plan must give the {part} {letters} as {expected}, got {got}")
    if not (plan.memory is None or _is_memory(plan.memory, rows)):
        raise PlanError(
            f"{name}.plan must give as memory None or a named tuple of tensors [B, ...], of B = {rows} rows, with a "
            f"method reset(done), such as dreamer_mpc.planners.Memory, got {_called(plan.memory)}"
        )
    count = plan.model_evaluations
    if not isinstance(count, Integral):
        raise PlanError(f"{name}.plan must give model_evaluations as a whole number, got {_called(count)}")
    return plan


def bounded(planner: Planner, action: Float[np.ndarray, "B A"]) -> Float[np.ndarray, "B A"]:
    """`action` of a plan, on the host, if its numbers are in [-1, 1]; else PlanError."""
    most = float(np.abs(action).max())
    if not most <= 1 + 1e-4:
        raise PlanError(f"{type(planner).__name__}.plan must give actions in [-1, 1], got {most:.3g}")
    return action


def _form(x: Tensor, sizes: tuple[int, ...]) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(sizes)} on {x.device}"


def _called(x: Any) -> str:
    """The type of a value, with its shape where it has one."""
    return f"{type(x).__name__} {list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def _is_memory(memory: Any, rows: int) -> bool:
    parts = memory if isinstance(memory, tuple) and callable(getattr(memory, "reset", None)) else (None,)
    return all(isinstance(part, Tensor) and part.shape[:1] == (rows,) for part in parts)


def reset_memory(memory: Any, done: Bool[Tensor, " B"]) -> Any:
    """Forget the rows of `memory` where an episode ended; planners without memory pass None through."""
    return None if memory is None else memory.reset(done)


def without_broken(
    candidates: Float[Tensor, "B N H A"], values: Float[Tensor, "B N"]
) -> tuple[Float[Tensor, "B N H A"], Float[Tensor, "B N"]]:
    """Candidates as finite actions in [-1, 1]; the value -inf where a candidate or its value is not finite."""
    finite = values.isfinite() & candidates.isfinite().all(dim=(-1, -2))  # [B, N]
    return candidates.nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1), torch.where(finite, values, -torch.inf)


def choose(
    model: LatentDynamics,
    state: Float[Tensor, "B S"],
    candidates: Float[Tensor, "B N H A"],
    values: Float[Tensor, "B N"],
    model_evaluations: int,
) -> Plan:
    """The plan whose sequence is the best candidate; the policy's mode where no candidate is finite."""
    candidates, values = without_broken(candidates, values)
    best = values.argmax(dim=1)  # [B]
    rows = torch.arange(len(state), device=state.device)
    return make_plan(model, state, candidates[rows, best], values[rows, best], candidates, values, model_evaluations)


def make_plan(
    model: LatentDynamics,
    state: Float[Tensor, "B S"],
    actions: Float[Tensor, "B H A"],
    value: Float[Tensor, " B"],
    candidates: Float[Tensor, "B N H A"],
    values: Float[Tensor, "B N"],
    model_evaluations: int,
    remembered: Float[Tensor, "B H A"] | None = None,
) -> Plan:
    """The plan that executes `actions`, of value `value`; the policy's mode in rows where no candidate is finite.

    Candidates and values come from `without_broken`. `remembered` is stored for the next call, by default `actions`.
    """
    fallback = ~values.isfinite().any(dim=1)  # [B]
    if fallback.is_cuda or fallback.any():  # on a GPU, `any()` in a condition would synchronise
        mode = policy_mode(model, state)[:, None].nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1)
        actions = torch.where(fallback[:, None, None], mode, actions)
    return Plan(
        action=actions[:, 0],
        actions=actions,
        value=value,
        candidates=candidates,
        candidate_values=values,
        memory=Memory(actions if remembered is None else remembered, ~fallback),
        model_evaluations=model_evaluations,
        fallback=fallback,
    )


def policy_mode(model: LatentDynamics, state: Float[Tensor, "B S"]) -> Float[Tensor, "B A"]:
    """The mode of the model's policy; for a model without policy (PlaNet) zero, the middle of the range."""
    if not hasattr(model, "policy"):
        return state.new_zeros(len(state), model.action_dim)
    return model.policy(state).mode
