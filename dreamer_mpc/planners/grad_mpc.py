"""Grad-MPC: gradient ascent from random sequences."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.ascent import Ascent
from dreamer_mpc.planners.protocol import LatentDynamics


@dataclass(frozen=True)
class GradMPC(Ascent):
    """Grad-MPC (S V et al. 2023, arXiv:2312.17227): random N(0, 1) sequences and ascent, at the budget of PlaNet's CEM.

    J is Dream-MPC's without the penalty, so that the two differ in how the ascent is initialised; with `objective`
    `rewards`, J is the discounted sum of predicted rewards, which also works with a world model without a critic.
    """

    horizon: int = 12
    """Steps of a plan, H (paper: 12)."""
    candidates: int = 1000
    """Action sequences refined in parallel, N (paper: 1000)."""
    iterations: int = 10
    """Steps of gradient ascent, I (paper: 10); 0 only selects the best of the random sequences."""

    def propose(self, model: LatentDynamics, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        """Standard normal draws, clamped to [-1, 1]."""
        return torch.randn(*state.shape[:-1], model.action_dim, dtype=state.dtype, device=state.device).clamp(-1, 1)
