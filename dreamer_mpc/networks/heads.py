"""Output distributions of networks, each with a mean, a mode and a loss."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Prediction(Protocol):
    """A distribution over numbers [*], predicted by a head."""

    @property
    def mean(self) -> Float[Tensor, "*b"]: ...

    @property
    def mode(self) -> Float[Tensor, "*b"]: ...

    def loss(self, target: Float[Tensor, "*t"]) -> Float[Tensor, "*b"]:
        """Negative log-likelihood of `target` (broadcast), up to constants."""


class UnitNormal(NamedTuple):
    """A Gaussian of variance 1 around `mean` [*]: rewards and values of Dreamer (Hafner et al. 2020, Eq. 8 and 10)."""

    mean: Tensor

    @property
    def mode(self) -> Float[Tensor, "*b"]:
        """Where the density is highest: the mean."""
        return self.mean

    def loss(self, target: Float[Tensor, "*t"]) -> Float[Tensor, "*b"]:
        """Half the squared distance of the mean to `target`."""
        return 0.5 * (self.mean - target).square()


class Bernoulli(NamedTuple):
    """A coin per number, given by `logits` [*]: whether an episode continues after a step."""

    logits: Tensor

    @property
    def mean(self) -> Float[Tensor, "*b"]:
        """The probability of 1."""
        return self.logits.sigmoid()

    @property
    def mode(self) -> Float[Tensor, "*b"]:
        """The likelier of 0 and 1; 0 if both are as likely."""
        return (self.logits > 0).to(self.logits.dtype)

    def loss(self, target: Float[Tensor, "*t"]) -> Float[Tensor, "*c"]:
        """Cross-entropy to `target`, the probability of 1, in [0, 1]."""
        return -target * F.logsigmoid(self.logits) - (1 - target) * F.logsigmoid(-self.logits)
