"""Planners behind one protocol; they use only the interface of a latent model."""

from dataclasses import fields
from typing import Any

from dreamer_mpc.planners.ascent import Ascent
from dreamer_mpc.planners.cem import CEM
from dreamer_mpc.planners.dream_mpc import DreamMPC
from dreamer_mpc.planners.grad_mpc import GradMPC
from dreamer_mpc.planners.mppi import MPPI
from dreamer_mpc.planners.policy import Policy
from dreamer_mpc.planners.policy_grad_mpc import PolicyGradMPC
from dreamer_mpc.planners.protocol import LatentDynamics, LatentModel, Memory, Plan, Planner, reset_memory

PLANNERS: dict[str, type] = {
    "policy": Policy,
    "dream-mpc": DreamMPC,
    "policy-grad-mpc": PolicyGradMPC,
    "grad-mpc": GradMPC,
    "cem": CEM,
    "mppi": MPPI,
}

__all__ = [
    "CEM", "MPPI", "PLANNERS", "Ascent", "DreamMPC", "GradMPC", "LatentDynamics", "LatentModel", "Memory", "Plan",
    "Planner", "Policy", "PolicyGradMPC", "make_planner", "reset_memory",
]  # fmt: skip


def make_planner(name: str, **settings: Any) -> Planner:
    """Build the planner `name` of `PLANNERS`; ValueError on an unknown name, setting or value.

    Several values may be a list, which becomes a tuple: settings are compared and hashed.
    """
    if name not in list(PLANNERS):  # whatever `name` is
        raise ValueError(f"unknown planner {name!r}: known are {', '.join(PLANNERS)}")
    known = [field.name for field in fields(PLANNERS[name])]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}: known are {', '.join(known) or 'none'}")
    return PLANNERS[name](**{key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()})
