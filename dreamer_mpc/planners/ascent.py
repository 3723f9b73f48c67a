"""Gradient ascent on action sequences through the world model: what the three gradient planners are."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.objective import Objective
from dreamer_mpc.planners.protocol import LatentDynamics, Memory, Plan, choose
from dreamer_mpc.planners.rollout import Proposals, closed_loop, joined, rollout
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.util.checks import check_ranges


@dataclass(frozen=True)
class Ascent(Shooting):
    """Propose N sequences, climb J's gradient I times, execute the best; `propose` is left to the planner."""

    step_size: float = 0.1
    """Length of a step along the clipped gradient of J, alpha."""
    grad_clip: float = 10.0
    """Largest norm of a candidate's gradient over its H x A entries (ours)."""
    penalty_gradient: bool = True
    """Let the ascent see the penalty; the released code of Dream-MPC cuts its gradient."""
    choose_by: Literal["before", "after"] = "before"
    """J that picks the executed candidate: before the last step, or after it for one more rollout."""
    mode_candidate: bool = False
    """Roll the policy's mode out as the first of the candidates."""

    fewest_iterations: ClassVar[int] = 0  # without ascent, the best of the proposals is executed

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, step_size=(0, None), grad_clip=(0, None))

    def propose(self, model: LatentDynamics, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        """Actions that the candidates take in the states they have reached, before any ascent."""
        raise NotImplementedError

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`.

        The first rollout proposes and evaluates at once: actions are proposed in the states that the blended actions
        lead to, and J's gradient is taken through those same steps.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("plan under torch.no_grad(): torch.inference_mode() leaves the ascent no gradients")
        objective, noise = self.objective_function(), self._noise(model, state)
        previous, weight = self._previous(model, state, memory, repeat_last=True)
        for i in range(max(self.iterations, 1)):
            with torch.set_grad_enabled(self.iterations > 0):
                if i == 0:
                    leaves, states = self._rollout_proposals(model, state, previous, weight, noise)
                else:
                    leaves = (actions.requires_grad_(),)
                    states = rollout(model, state, actions, noise)
                values = objective(model, states)
                grad = gradient(values, leaves)
            actions = ascend(joined(leaves).detach(), grad, self.step_size, self.grad_clip)
        if self.choose_by == "after" and self.iterations > 0:
            values = objective(model, rollout(model, state, actions, noise))
        return choose(model, state, actions, values.detach(), self.model_evaluations)

    @property
    def model_evaluations(self) -> int:
        """`step` calls of a plan, one candidate each: N * max(I, 1) * H, and N * H more to choose after the ascent."""
        again = self.choose_by == "after" and self.iterations > 0
        return self.candidates * (max(self.iterations, 1) + again) * self.horizon

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        return (*super().requires, "policy") if self.mode_candidate else super().requires

    def objective_function(self) -> Objective:
        """J as the settings define it."""
        return replace(super().objective_function(), penalty_gradient=self.penalty_gradient)

    def _rollout_proposals(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        previous: Float[Tensor, "B H A"],
        weight: Float[Tensor, "B 1 1"],
        noise: Float[Tensor, "B N H Z"] | None,
    ) -> Proposals:
        """Proposals, each blended with the previous plan's action, and the states they lead to."""
        blend = () if self.reuse == 0 else (self._expand(previous), self._expand(weight)[..., 0, 0])
        return self._walk(model, self._expand(state), *blend, noise=noise)

    def _walk(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B N S"],
        previous: Float[Tensor, "B N H A"] | None = None,
        weight: Float[Tensor, "B N"] | None = None,
        noise: Float[Tensor, "B N H Z"] | None = None,
    ) -> Proposals:
        """`propose` in the loop; the policy's mode is the first candidate where that is asked for."""

        def act(state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
            action = self.propose(model, state)
            if not self.mode_candidate:
                return action
            return torch.cat([model.policy(state[:, :1]).mode, action[:, 1:]], dim=1)

        return closed_loop(model, state, self.horizon, act, previous, weight, noise)


def gradient(values: Float[Tensor, "B N"], leaves: tuple[Tensor, ...]) -> Float[Tensor, "B N H A"]:
    """d values / d actions, and nothing left on any parameter; 0 where the model ignores the actions."""
    if not values.requires_grad:
        return torch.zeros_like(joined(leaves))
    return joined(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))


def ascend(
    actions: Float[Tensor, "B N H A"], grad: Float[Tensor, "B N H A"], step_size: float, grad_clip: float
) -> Float[Tensor, "B N H A"]:
    """One step up the gradient, whose norm is clipped per candidate; actions stay in [-1, 1].

    A candidate whose gradient is not finite stays where it is.
    """
    norm = grad.flatten(2).norm(dim=-1)[:, :, None, None]  # [B, N, 1, 1]
    scale = (grad_clip / norm.clamp_min(torch.finfo(grad.dtype).tiny)).clamp(max=1)
    step = torch.where(norm.isfinite(), step_size * scale * grad, 0.0)
    return (actions + step).clamp(-1, 1)
