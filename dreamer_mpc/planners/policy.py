"""No planning: the actor's mode."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentModel, Plan, choose


@dataclass(frozen=True)
class Policy:
    """The bare policy behind the planner protocol (Dreamer). Its `value` is the critic's mean at the state itself."""

    requires: ClassVar[tuple[str, ...]] = ("value", "policy")

    @torch.no_grad()
    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: None = None) -> Plan:
        """The mode of the actor as a plan of one step; see `Planner.plan`."""
        candidates = model.policy(state).mode[:, None, None]  # [B, 1, 1, A]
        plan = choose(model, state, candidates, model.value(state).mean(0)[:, None], model_evaluations=0)
        plan.memory = None
        return plan
