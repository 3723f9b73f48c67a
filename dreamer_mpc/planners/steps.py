"""What an ascent is made of: J under several draws with its gradient, and steps up it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dreamer_mpc.planners.rollout import joined


class Evaluated(NamedTuple):
    """Action sequences, X for each of N candidates, and what M draws of the model's noise say of them."""

    actions: Float[Tensor, "B N X H A"]  # where the policy takes the rest: the mean over draws of what it takes
    values: Float[Tensor, "B N X M"]  # J under each draw
    grad: Float[Tensor, "B N X h A"] | None  # of J's mean over draws, in the actions that are ascended

    def pick(self, index: Int64[Tensor, "B N"]) -> "Evaluated":
        """Of the X sequences of each candidate, the one that `index` names."""
        return Evaluated(*(None if x is None else torch.take_along_dim(x, _like(index, x), dim=2) for x in self))

    def join(self, other: "Evaluated") -> "Evaluated":
        """The sequences of both; the gradient only if both have one."""
        pairs = zip(self, other, strict=True)
        return Evaluated(*(None if a is None or b is None else torch.cat([a, b], dim=2) for a, b in pairs))


def _like(index: Int64[Tensor, "B N"], x: Float[Tensor, "B N X *s"]) -> Int64[Tensor, "B N 1 *ones"]:
    return index.view(*index.shape, 1, *[1] * (x.dim() - 3))


def gradient(values: Float[Tensor, "B N"], leaves: tuple[Tensor, ...]) -> Float[Tensor, "B N H A"]:
    """d values / d actions, and nothing left on any parameter; 0 where the model ignores the actions."""
    if not values.requires_grad:
        return torch.zeros_like(joined(leaves))
    return joined(torch.autograd.grad(values.sum(), leaves, materialize_grads=True))


def norm_of(grad: Float[Tensor, "*b H A"]) -> Float[Tensor, "*b 1 1"]:
    """Euclidean norm of each sequence."""
    return grad.flatten(-2).norm(dim=-1)[..., None, None]


def scaled(grad: Float[Tensor, "*b H A"], norm: Float[Tensor, "*b 1 1"] | float) -> Float[Tensor, "*b H A"]:
    """`grad` with another norm; 0 stays 0."""
    return grad * (norm / norm_of(grad).clamp_min(torch.finfo(grad.dtype).tiny))


def clipped(grad: Float[Tensor, "*b H A"], most: float, norm: Float[Tensor, "*c 1 1"]) -> Float[Tensor, "*b H A"]:
    """`grad` shortened by what brings `norm`, its own or that of several together, down to `most`."""
    return grad * (most / norm.clamp_min(torch.finfo(grad.dtype).tiny)).clamp(max=1)


def ascend(
    actions: Float[Tensor, "B N 1 h A"], direction: Float[Tensor, "B N 1 h A"], lengths: tuple[float, ...]
) -> Float[Tensor, "B N X h A"]:
    """Where steps of several lengths lead; a candidate whose direction is not finite stays where it is."""
    moves = torch.where(norm_of(direction).isfinite(), direction, 0.0)
    return torch.cat([actions + length * moves for length in lengths], dim=2)
