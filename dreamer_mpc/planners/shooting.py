"""Shared by all planners over action sequences: sizes, objective, the model's noise, the previous plan."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.objective import Objective, ObjectiveKind
from dreamer_mpc.planners.protocol import LatentDynamics, Memory
from dreamer_mpc.planners.rollout import LatentNoise, draw_noise
from dreamer_mpc.util.checks import check_kinds, check_ranges


@dataclass(frozen=True)
class Shooting:
    """Settings of a planner that evaluates N sequences of H actions, I times, by rollouts."""

    horizon: int = 15
    """Steps of a plan, H."""
    candidates: int = 5
    """Action sequences evaluated in parallel, N."""
    iterations: int = 1
    """Number of iterations that evaluate and improve the candidates, I."""
    discount: float = 0.99
    """Discount per agent step."""
    objective: ObjectiveKind = "return"
    """J: discounted rewards plus a terminal value (return), Dreamer's lambda-return, or rewards alone."""
    return_lambda: float = 0.95
    """Lambda of the lambda-return; read only with that objective."""
    uncertainty: float = 0.0
    """Weight of the spread of the value heads in J, lambda_u; 0 switches the penalty off."""
    scale_penalty: bool = False
    """Multiply the spread by the mean value, as the released code of Dream-MPC does."""
    reuse: float = 0.0
    """Weight of the previous plan, shifted by one step, in this plan; 0: it is not used."""
    latent_noise: LatentNoise = "fresh"
    """Noise of the prior: drawn at each rollout, fixed across a call's rollouts, or the prior's mean."""

    fewest_iterations: ClassVar[int] = 1

    def __post_init__(self):
        check_kinds(self)
        check_ranges(
            self, horizon=(1, None), candidates=(1, None), iterations=(self.fewest_iterations, None),
            discount=(0, 1), return_lambda=(0, 1), uncertainty=(None, None), reuse=(0, 1),
        )  # fmt: skip

    def objective_function(self) -> Objective:
        """J as the settings define it."""
        return Objective(self.discount, self.uncertainty, self.objective, self.return_lambda, self.scale_penalty)

    @property
    def requires(self) -> tuple[str, ...]:
        """Which of the model's `value` and `policy` are used."""
        return ("value",) if self.objective_function().needs_value else ()

    def _expand(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B N ..."]:
        return x[:, None].expand(-1, self.candidates, *x.shape[1:])

    def _noise(self, model: LatentDynamics, state: Float[Tensor, "B S"]) -> Float[Tensor, "B N H Z"] | None:
        return draw_noise(model, self._expand(state), self.horizon, self.latent_noise)

    def _previous(
        self,
        model: LatentDynamics,
        state: Float[Tensor, "B S"],
        memory: Memory | None,
        repeat_last: bool,
        each: bool = False,
    ) -> tuple[Float[Tensor, "B *N H A"], Float[Tensor, "B 1 1"]]:
        """The previous plan shifted by one step, its new last action repeated or zero, and its weight: `reuse` or 0.

        `each`: one previous plan per candidate.
        """
        sizes = (self.candidates, self.horizon) if each else (self.horizon,)
        shape = (len(state), *sizes, model.action_dim)
        if memory is None:
            return state.new_zeros(shape), state.new_zeros(len(state), 1, 1)
        if memory.actions.shape != shape:
            raise ValueError(f"memory has actions {list(memory.actions.shape)}, this call needs {list(shape)}")
        last = memory.actions[..., -1:, :] if repeat_last else torch.zeros_like(memory.actions[..., -1:, :])
        shifted = torch.cat([memory.actions[..., 1:, :], last], dim=-2)
        shifted = torch.where(memory.valid.view(-1, *[1] * (len(shape) - 1)), shifted, 0.0)
        return shifted, self.reuse * memory.valid[:, None, None].to(state.dtype)
