"""The objective shared by all planners: a score of the states of a rollout."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.planners.protocol import LatentDynamics, predicts_ends
from dreamer_mpc.util.returns import lambda_weights, survival

ObjectiveKind = Literal["return", "lambda-return", "rewards"]


def ensemble_std(values: Float[Tensor, "K *b"], correction: int = 0) -> Float[Tensor, "*b"]:
    """Standard deviation over value heads (paper, Eq. 6); its gradient is 0, not NaN, where all heads agree."""
    return values.var(dim=0, correction=min(correction, len(values) - 1)).clamp_min(1e-16).sqrt()


@dataclass(frozen=True)
class Objective:
    """J of the states s_1 .. s_H of an imagined trajectory (paper, Eq. 5 and 6, with Dreamer's value convention).

        J = sum_{k=1}^{H-1} discount^{k-1} p_k [r(s_k) - c u(s_k)]  +  discount^{H-1} p_H [v(s_H) - c u(s_H)]

    p_k is the probability that s_k is reached: 1, unless the model is `Terminating`; then it is the product of its
    `continues` in s_1 .. s_{k-1}. s_0, from which is planned, counts as alive: p_1 = 1. A reward is paid on arriving in
    a state that ends the episode, too, and v(s_H) weighs by itself what comes after s_H, so neither p_k nor p_H has
    the continuation of its own state. J is differentiable through `continues`.

    v and u are mean and standard deviation of the value heads, c the `uncertainty` coefficient. `value(s)` already
    includes `reward(s)`, so the reward of s_H is not added again. `scale_penalty` multiplies u by v and
    `penalty_gradient=False` cuts its gradient: both follow the authors' released code, as do
    `released_penalty` (u unbiased, its sum not discounted, that of s_H counted twice) and `two_heads` (v is the mean
    of two heads, drawn anew at each call). With `kind="lambda-return"`, J is the lambda-return of s_1 over the same
    penalised rewards and values; with `kind="rewards"` (PlaNet) it is the discounted sum of all H penalised rewards,
    and the model needs no value heads unless there is a penalty.
    """

    discount: float = 0.99
    uncertainty: float = 0.0
    kind: ObjectiveKind = "return"
    lambda_: float = 0.95
    scale_penalty: bool = False
    penalty_gradient: bool = True
    released_penalty: bool = False
    two_heads: bool = False

    def __call__(self, model: LatentDynamics, states: Float[Tensor, "B N H S"]) -> Float[Tensor, "B N"]:
        gains = model.reward(states)  # [B, N, H]
        continues = None  # [B, N, H-1]
        if predicts_ends(model) and states.shape[2] > 1:
            continues = model.continues(states[:, :, :-1])
        if not self.needs_value:
            return self._sum(gains, None, continues)
        every_state = self.uncertainty != 0 or self.kind == "lambda-return"
        values = model.value(states if every_state else states[:, :, -1:])  # [K, B, N, H or 1]
        value = self._mean(values)
        if self.uncertainty == 0:
            return self._sum(gains, value, continues)
        penalty = self.uncertainty * self._spread(values)  # [B, N, H]
        if self.released_penalty:
            penalty = penalty if continues is None else _reached(continues) * penalty
            return self._sum(gains, value, continues) - penalty.sum(2) - penalty[:, :, -1]
        return self._sum(gains - penalty, value - penalty, continues)

    def _sum(
        self,
        gains: Float[Tensor, "B N H"],
        value: Float[Tensor, "B N _"] | None,
        continues: Float[Tensor, "B N h"] | None,  # of s_1 .. s_{H-1}
    ) -> Float[Tensor, "B N"]:
        """J of rewards and values after the penalty is subtracted."""
        if continues is not None:
            reached = _reached(continues)  # [B, N, H]
            gains, value = reached * gains, None if value is None else reached[:, :, -value.shape[2] :] * value
        if value is not None:
            if self.kind == "lambda-return" and gains.shape[2] > 1:
                steps = gains.shape[2] - 1
                of_r, of_v = lambda_weights(steps, self.discount, self.lambda_, gains.device, gains.dtype)
                return (of_r * gains[:, :, :-1]).sum(2) + (of_v * value[:, :, 1:]).sum(2)
            if self.kind != "rewards":
                gains = torch.cat([gains[:, :, :-1], value[:, :, -1:]], dim=2)
        weights = self.discount ** torch.arange(gains.shape[2], device=gains.device, dtype=gains.dtype)
        return (weights * gains).sum(2)

    @property
    def needs_value(self) -> bool:
        """Whether J reads the model's value heads."""
        return self.kind != "rewards" or self.uncertainty != 0

    def _mean(self, values: Float[Tensor, "K B N H"]) -> Float[Tensor, "B N H"]:
        if self.two_heads and len(values) > 2:  # argsort of random numbers, unlike randperm, does not synchronise
            values = values[torch.rand(len(values), device=values.device).argsort()[:2]]
        return values.mean(0)

    def _spread(self, values: Float[Tensor, "K B N H"]) -> Float[Tensor, "B N H"]:
        spread = ensemble_std(values, correction=int(self.released_penalty))
        if self.scale_penalty:
            spread = spread * values.mean(0)
        return spread if self.penalty_gradient else spread.detach()


def _reached(continues: Float[Tensor, "B N h"]) -> Float[Tensor, "B N h+1"]:
    """Probabilities p_1 .. p_H that states are reached, of the continuations in s_1 .. s_{H-1}."""
    return survival(continues.movedim(2, 0)).movedim(0, 2)
