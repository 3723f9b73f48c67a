"""No planning: the actor alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import ActionDistribution, LatentModel, Plan, choose


@dataclass(frozen=True)
class Policy:
    """The bare policy (Dreamer) as a planner. Its `value` is the critic's mean at the current state."""

    requires: ClassVar[tuple[str, ...]] = ("value", "policy")

    @torch.no_grad()
    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: None = None) -> Plan:
        """The actor's action as a plan of one step; see `Planner.plan`."""
        candidates = self._action(model.policy(state))[:, None, None]  # [B, 1, 1, A]
        plan = choose(model, state, candidates, model.value(state).mean(0)[:, None], model_evaluations=0)
        plan.memory = None
        return plan

    def _action(self, distribution: ActionDistribution) -> Float[Tensor, "B A"]:
        return distribution.mode


@dataclass(frozen=True)
class SampledPolicy(Policy):
    """`Policy` that executes a sample instead of the mode: Dreamer's exploration while collecting.

    It cannot be chosen with `--planner`: an evaluation uses the mode (Hafner et al. 2020, and the paper's base code).
    """

    def _action(self, distribution: ActionDistribution) -> Float[Tensor, "B A"]:
        return distribution.rsample()
