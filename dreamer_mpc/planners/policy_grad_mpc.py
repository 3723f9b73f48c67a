"""Policy+Grad-MPC: gradient ascent from policy rollouts."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.ascent import Ascent
from dreamer_mpc.planners.protocol import LatentDynamics


@dataclass(frozen=True)
class PolicyGradMPC(Ascent):
    """Policy+Grad-MPC (S V et al. 2023, arXiv:2312.17227): policy rollouts and ascent; no reuse, no penalty.

    Its sizes are those of Dream-MPC, so that the two differ only in reuse and penalty.
    """

    horizon: int = 15
    """Steps of a plan, H (Dream-MPC's)."""
    candidates: int = 5
    """Action sequences refined in parallel, N (Dream-MPC's)."""
    iterations: int = 1
    """Steps of gradient ascent, I (Dream-MPC's); 0 only selects the best of the policy's rollouts."""
    reuse: float = 0.0
    """Weight of the previous plan, shifted by one step, in the candidates (0: without it)."""
    uncertainty: float = 0.0
    """Weight of the spread of the value heads in J (0: without it)."""

    proposes_policy: ClassVar[bool] = True

    def propose(self, model: LatentDynamics, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        """A sample of the policy."""
        return model.policy(state).rsample()

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        return tuple(dict.fromkeys([*super().requires, "policy"]))
