"""No planning: the actor alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentModel, Plan, choose
from dreamer_mpc.util.checks import check_kinds


@dataclass(frozen=True)
class Policy:
    """The bare policy (Dreamer) as a planner. Its `value` is the critic's mean at the current state."""

    sample: bool = False
    """Execute a sample of the actor, as danijar/dreamerv3 does in evaluations, in place of its mode (Hafner et al.
    2020, the paper's base code). While collecting, --train.policy-action decides."""

    requires: ClassVar[tuple[str, ...]] = ("value", "policy")

    def __post_init__(self):
        check_kinds(self)

    @torch.no_grad()
    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: None = None) -> Plan:
        """The actor's action as a plan of one step; see `Planner.plan`."""
        policy = model.policy(state)
        action = policy.rsample() if self.sample else policy.mode  # [B, A]
        value = model.value(state).mean(0)[:, None]  # [B, 1]
        plan = choose(model, state, action[:, None, None], value, model_evaluations=0)
        plan.memory = None
        return plan
