"""MPPI: model predictive path integral control, as TD-MPC2 runs it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentDynamics, Memory, Plan, make_plan, without_broken
from dreamer_mpc.planners.rollout import joined, policy_rollout, rollout
from dreamer_mpc.planners.sampling import refit, sample_actions, select_elites, softmax_weights
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.util.checks import check_range, check_ranges


@dataclass(frozen=True)
class MPPI(Shooting):
    """MPPI (Williams et al. 2015) as in TD-MPC2 (Hansen et al. 2024, arXiv:2310.16828): samples weighted by exp(J).

    The samples of every iteration include policy rollouts. The executed sequence is drawn from the last elites by
    their weights; the final mean initialises the next call.
    """

    horizon: int = 3
    """Steps of a plan, H (TD-MPC2: 3)."""
    candidates: int = 512
    """Sequences per iteration, N, policy rollouts included (TD-MPC2: 512)."""
    iterations: int = 6
    """Number of refits of the Gaussian, I (TD-MPC2: 6)."""
    elites: int = 64
    """Best sequences that the Gaussian is fitted to (TD-MPC2: 64)."""
    policy_candidates: int = 24
    """Policy rollouts among the candidates (TD-MPC2: 24)."""
    temperature: float = 0.5
    """Factor of J in the elites' weights, softmax(temperature * J): 0 gives equal weights (TD-MPC2: 0.5)."""
    min_std: float = 0.05
    """Smallest standard deviation of the Gaussian (TD-MPC2: 0.05)."""
    max_std: float = 2.0
    """Largest and initial standard deviation of the Gaussian (TD-MPC2: 2)."""
    reuse: float = 1.0
    """Weight of the previous mean, shifted by one step, in the initial mean: momentum over time steps (TD-MPC2: 1)."""

    def __post_init__(self):
        super().__post_init__()
        check_range("elites", self.elites, 1, self.candidates)
        check_range("policy_candidates", self.policy_candidates, 0, self.candidates)
        check_ranges(self, temperature=(0, None), min_std=(0, None), max_std=(self.min_std, None))

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`."""
        objective, noise = self.objective_function(), self._noise(model, state)
        proposals = self._policy_rollouts(model, state, noise)  # [B, P, H, A]
        previous, weight = self._previous(model, state, memory, repeat_last=False)
        mean = (weight * previous)[:, None]  # [B, 1, H, A]
        std = torch.full_like(mean, self.max_std)
        for _ in range(self.iterations):
            samples = sample_actions(mean, std, self.candidates - self.policy_candidates)
            actions = torch.cat([proposals, samples], dim=1)
            values = objective(model, rollout(model, state, actions, noise))
            actions, values = without_broken(actions, values)
            elite_actions, elite_values = select_elites(actions, values, self.elites)
            weights = softmax_weights(elite_values, self.temperature)  # [B, E]
            mean, std = refit(elite_actions, weights)
            std = std.clamp(self.min_std, self.max_std)
        # Draw one elite by its weight with the Gumbel-max trick; unlike torch.multinomial it does not synchronise.
        drawn = (weights.log() - torch.empty_like(weights).exponential_().log()).argmax(1)  # [B]
        rows = torch.arange(len(state), device=state.device)
        chosen, value = elite_actions[rows, drawn], elite_values[rows, drawn]
        return make_plan(model, state, chosen, value, actions, values, self.model_evaluations, remembered=mean[:, 0])

    @property
    def model_evaluations(self) -> int:
        """Model evaluations of a plan (`step` for one candidate): N * I * H, and H - 1 for each policy rollout."""
        return self.candidates * self.iterations * self.horizon + self.policy_candidates * (self.horizon - 1)

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        return (*super().requires, "policy") if self.policy_candidates else super().requires

    def _policy_rollouts(
        self, model: LatentDynamics, state: Float[Tensor, "B S"], noise: Float[Tensor, "B N H Z"] | None
    ) -> Float[Tensor, "B P H A"]:
        """Actions sampled by the policy along P of its own rollouts."""
        if not self.policy_candidates:
            return state.new_zeros(len(state), 0, self.horizon, model.action_dim)
        state = state[:, None].expand(-1, self.policy_candidates, -1)  # [B, P, S]
        if self.horizon == 1:
            return model.policy(state).rsample()[..., None, :].clamp(-1, 1)
        noise = None if noise is None else noise[:, : self.policy_candidates, :-1]
        leaves, states = policy_rollout(model, state, self.horizon - 1, noise=noise)
        last = model.policy(states[..., -1, :]).rsample().clamp(-1, 1)  # the iterations evaluate the state it leads to
        return torch.cat([joined(leaves), last[..., None, :]], dim=-2)
