"""The policy as plain tensors and numbers, for the fast implementations of the cell."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MODE_ITERATIONS = 8


class PolicyWeights(NamedTuple):
    """An actor's layers from the first hidden one to the last, and its constants: see `Actor.weights`."""

    weights: tuple[Float[Tensor, "O I"], ...]
    biases: tuple[Float[Tensor, " O"], ...]
    raw_init_std: float
    min_std: float
    mean_scale: float

    @property
    def units(self) -> int:
        """Width of the hidden layers."""
        return len(self.biases[0])

    @property
    def actions(self) -> int:
        """Size of an action."""
        return len(self.biases[-1]) // 2


def tanh_normal_mode(mean: Float[Tensor, "*b A"], std: Float[Tensor, "*b A"]) -> Float[Tensor, "*b A"]:
    """The x at which the density of tanh(x), x ~ N(mean, std^2), is highest.

    In x before the tanh, log p = -(x - mean)^2 / (2 std^2) + 2 log cosh x + const; its maximum on the mean's side
    solves x = mean + 2 std^2 tanh x, found by Newton's steps from the outside, where they are monotone. With a wide
    Gaussian the density piles up at the bounds, so the median tanh(mean) would be another action.
    """
    shift = 2 * std.square()
    base, x = 1 - shift, mean + torch.where(mean < 0, -shift, shift)
    for _ in range(MODE_ITERATIONS):
        t = torch.tanh(x)
        slope = torch.addcmul(base, shift, t * t).clamp_min(1e-6)
        x = torch.addcdiv(x, torch.addcmul(x - mean, shift, t, value=-1), slope, value=-1)
    return torch.tanh(x)
