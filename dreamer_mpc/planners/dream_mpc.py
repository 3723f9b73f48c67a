"""Dream-MPC: a few policy rollouts, refined by gradient ascent through the world model."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.checks import check_choices, check_ranges
from dreamer_mpc.planners.objective import LatentNoise, Objective, draw_noise, latent_step, rollout
from dreamer_mpc.planners.protocol import LatentModel, Memory, Plan, choose


@dataclass(frozen=True)
class DreamMPC:
    """Dream-MPC (Spieler & Behnke, ICML 2026, arXiv:2605.04568): policy rollouts, ascent, penalty, reuse."""

    horizon: int = 15
    """Steps of a plan, H (paper: 15)."""
    candidates: int = 5
    """Action sequences refined in parallel, N (paper: 5)."""
    iterations: int = 1
    """Steps of gradient ascent, I (paper: 1); 0 only chooses among the policy's rollouts."""
    step_size: float = 0.1
    """Length of a step along the clipped gradient of J, alpha (paper: 0.1)."""
    grad_clip: float = 10.0
    """Largest norm of a candidate's gradient over its H x A entries (ours)."""
    reuse: float = 0.1
    """Weight of the previous plan, shifted by one step, in the candidates, rho (paper: 0.1)."""
    discount: float = 0.99
    """Discount per agent step (paper: 0.99)."""
    uncertainty: float = 0.1
    """Weight of the spread of the value heads in J, lambda_u (ours); 0 switches the penalty off."""
    scale_penalty: bool = False
    """Multiply the spread by the mean value, as the authors' released code does."""
    penalty_gradient: bool = True
    """Let the ascent see the penalty; the authors' released code cuts its gradient."""
    objective: Literal["return", "lambda-return"] = "return"
    """J: discounted rewards with a terminal value, or the lambda-return (Dreamer, Eq. 6)."""
    return_lambda: float = 0.95
    """Lambda of the lambda-return; read only with that objective."""
    choose_by: Literal["before", "after"] = "before"
    """J that picks the executed candidate: before the last step, or after it for one more rollout."""
    latent_noise: LatentNoise = "fresh"
    """Noise of the prior: drawn at each rollout, fixed across a call's rollouts, or the prior's mean."""
    mode_candidate: bool = False
    """Roll the policy's mode out as the first of the candidates."""

    def __post_init__(self):
        check_choices(self)
        check_ranges(
            self, horizon=(1, None), candidates=(1, None), iterations=(0, None), step_size=(0, None),
            grad_clip=(0, None), reuse=(0, 1), discount=(0, 1), uncertainty=(None, None), return_lambda=(0, 1),
        )  # fmt: skip

    @torch.no_grad()
    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """Plan for B environments; see `Planner.plan`.

        The first rollout proposes and evaluates at once: the policy acts in the states that the blended actions
        lead to, and J's gradient is taken through those same steps.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("plan under torch.no_grad(): torch.inference_mode() leaves the ascent no gradients")
        objective = self.objective_function()
        noise = draw_noise(model, self._expand(state), self.horizon, self.latent_noise)
        previous, weight = self._previous(model, state, memory)
        for i in range(max(self.iterations, 1)):
            with torch.set_grad_enabled(self.iterations > 0):
                if i == 0:
                    steps, states = self._propose(model, state, previous, weight, noise)
                else:
                    steps = [action.detach().requires_grad_() for action in actions.unbind(2)]
                    states = rollout(model, state, torch.stack(steps, dim=2), noise)
                values = objective(model, states)
                grad = gradient(values, steps)
            actions = ascend(torch.stack(steps, dim=2).detach(), grad, self.step_size, self.grad_clip)
        if self.choose_by == "after" and self.iterations > 0:
            values = objective(model, rollout(model, state, actions, noise))
        return choose(model, state, actions, values.detach(), self.model_evaluations)

    @property
    def model_evaluations(self) -> int:
        """`step` calls of a plan, one candidate each: N * max(I, 1) * H, and N * H more to choose after the ascent."""
        again = self.choose_by == "after" and self.iterations > 0
        return self.candidates * (max(self.iterations, 1) + again) * self.horizon

    def objective_function(self) -> Objective:
        """J as the settings define it."""
        return Objective(
            self.discount,
            self.uncertainty,
            self.objective,
            self.return_lambda,
            self.scale_penalty,
            self.penalty_gradient,
        )

    def _expand(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B N S"]:
        return state[:, None].expand(-1, self.candidates, -1)

    def _previous(
        self, model: LatentModel, state: Float[Tensor, "B S"], memory: Memory | None
    ) -> tuple[Float[Tensor, "B H A"], Float[Tensor, "B 1 1"]]:
        """The previous plan shifted by one step, its last action repeated, and its weight in the blend."""
        shape = (len(state), self.horizon, model.action_dim)
        if memory is None:
            return state.new_zeros(shape), state.new_zeros(len(state), 1, 1)
        if memory.actions.shape != shape:
            raise ValueError(f"memory has actions {list(memory.actions.shape)}, this call needs {list(shape)}")
        shifted = torch.cat([memory.actions[:, 1:], memory.actions[:, -1:]], dim=1)
        shifted = torch.where(memory.valid[:, None, None], shifted, 0.0)
        return shifted, self.reuse * memory.valid[:, None, None].to(state.dtype)

    def _propose(
        self,
        model: LatentModel,
        state: Float[Tensor, "B S"],
        previous: Float[Tensor, "B H A"],
        weight: Float[Tensor, "B 1 1"],
        noise: list[Tensor | None],
    ) -> tuple[list[Float[Tensor, "B N A"]], Float[Tensor, "B N H S"]]:
        """Roll the policy out, each action blended with the previous plan's: H leaves, and the states they lead to."""
        current = self._expand(state)
        steps, states = [], []
        for k in range(self.horizon):
            with torch.no_grad():
                action = self._sample(model, current.detach())  # [B, N, A]
                action = (weight * previous[:, k, None] + (1 - weight) * action).clamp(-1, 1)
            steps.append(action.requires_grad_(torch.is_grad_enabled()))
            current = latent_step(model, current, action, noise[k])
            states.append(current)
        return steps, torch.stack(states, dim=2)

    def _sample(self, model: LatentModel, state: Float[Tensor, "B N S"]) -> Float[Tensor, "B N A"]:
        distribution = model.policy(state)
        action = distribution.rsample()
        if not self.mode_candidate:
            return action
        return torch.cat([distribution.mode[:, :1], action[:, 1:]], dim=1)


def gradient(values: Float[Tensor, "B N"], steps: list[Float[Tensor, "B N A"]]) -> Float[Tensor, "B N H A"]:
    """d values / d steps, and nothing left on any parameter; 0 where the model ignores the actions."""
    if not values.requires_grad:
        return torch.zeros_like(torch.stack(steps, dim=2))
    return torch.stack(torch.autograd.grad(values.sum(), steps, materialize_grads=True), dim=2)


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
