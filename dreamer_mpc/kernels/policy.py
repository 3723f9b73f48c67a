"""The policy as the cell's fast forms see it: numbers, no module."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


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
