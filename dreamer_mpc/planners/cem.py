"""CEM: the cross-entropy method, PlaNet's planner."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.objective import ObjectiveKind
from dreamer_mpc.planners.protocol import LatentDynamics, Memory, Plan, make_plan, without_broken
from dreamer_mpc.planners.rollout import rollout
from dreamer_mpc.planners.sampling import refit, sample_actions, select_elites, softmax_weights
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.util.checks import check_range


@dataclass(frozen=True)
class CEM(Shooting):
    """Cross-entropy method (PlaNet, Hafner et al. 2019, Algorithm 2): refit a Gaussian to its best samples.

    The Gaussian starts at N(0, 1); the first action of the final mean is executed. `Plan.value` is the mean J of the
    elites that this mean was fitted to: evaluating J of the mean itself would cost H more model evaluations.
    """

    horizon: int = 12
    """Steps of a plan, H (PlaNet: 12)."""
    candidates: int = 1000
    """Sequences sampled in an iteration, N (PlaNet: 1000)."""
    iterations: int = 10
    """Number of refits of the Gaussian, I (PlaNet: 10)."""
    elites: int = 100
    """Best samples that the Gaussian is fitted to (PlaNet: 100)."""
    discount: float = 1.0
    """Discount per agent step (PlaNet: none)."""
    objective: ObjectiveKind = "rewards"
    """J: the sum of rewards (PlaNet); return and lambda-return add a terminal value, which needs a critic."""
    reuse: float = 0.0
    """Weight of the previous mean, shifted by one step, in the initial mean (PlaNet: 0, each call starts from zero)."""

    def __post_init__(self):
        super().__post_init__()
        check_range("elites", self.elites, 1, self.candidates)

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`."""
        objective, noise = self.objective_function(), self._noise(model, state)
        previous, weight = self._previous(model, state, memory, repeat_last=False)
        mean = (weight * previous)[:, None]  # [B, 1, H, A]
        std = torch.ones_like(mean)
        for _ in range(self.iterations):
            actions = sample_actions(mean, std, self.candidates)
            values = objective(model, rollout(model, state, actions, noise))
            actions, values = without_broken(actions, values)
            elite_actions, elite_values = select_elites(actions, values, self.elites)
            weights = softmax_weights(elite_values, temperature=0.0)  # equal weights for all finite values
            mean, std = refit(elite_actions, weights)
        value = torch.where(weights > 0, weights * elite_values, 0.0).sum(1)
        return make_plan(model, state, mean[:, 0], value, actions, values, self.model_evaluations)

    @property
    def model_evaluations(self) -> int:
        """Model evaluations of a plan (`step` for one candidate): N * I * H."""
        return self.candidates * self.iterations * self.horizon
