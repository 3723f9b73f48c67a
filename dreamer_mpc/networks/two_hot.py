"""Numbers predicted as a distribution over bins (DreamerV3, Hafner et al. 2023)."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.kernels import two_hot

Readout = Literal["real", "symlog"]


def symlog(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def symexp_bins(count: int = 255, limit: float = 20.0) -> Float[Tensor, " N"]:
    """`symexp` of `count` equidistant numbers in [-limit, limit]; mirror images are exactly each other's negatives."""
    half = symexp(torch.linspace(-limit, limit, count, dtype=torch.float64)[: count // 2])
    return torch.cat([half, half.new_zeros(count % 2), -half.flip(0)]).to(torch.get_default_dtype())


class TwoHot(NamedTuple):
    """A categorical distribution over `bins` [N], given by `logits` [*, N]: rewards and values of DreamerV3.

    Rows of logits may be longer, as those of `last_layer` are: what is behind the first N is ignored, and its gradient
    is 0. `bins` ascend and are symmetric around 0, see `symexp_bins`. `readout` is how the mean is read:

    real: the expectation of the bins, which is what `loss` fits to the expectation of the targets. The outermost bins
    stand at 4.9e8 and the derivative of the mean by the logit of bin b is p_b (b - mean), so a probability of 1e-9 far
    from the mean can outweigh all others in the gradient.
    symlog: `symexp` of the expectation of `symlog` of the bins, in which no bin weighs more than 20. `loss` does not
    change, so where targets vary this is nearer to 0 than their mean, as a geometric mean is; for a single target x
    between two of the 255 bins it is short by up to 0.0031 (|x| + 1).
    """

    logits: Tensor
    bins: Tensor
    readout: Readout = "real"

    @property
    def mean(self) -> Float[Tensor, "*b"]:
        """The number that `readout` reads; exactly 0 where the probabilities are symmetric."""
        if two_hot.fuses(self.logits) and not (torch.is_grad_enabled() and self.logits.requires_grad):
            if self.readout == "symlog":
                return symexp(two_hot.expectation(self.logits, symlog(self.bins)))
            return two_hot.expectation(self.logits, self.bins)
        pairs = len(self.bins) // 2
        upper = self.bins[-pairs:]
        probs = self._of_bins.softmax(-1)
        surplus = probs[..., -pairs:] - probs[..., :pairs].flip(-1)  # of each bin over its mirror image
        if self.readout == "symlog":
            return symexp((surplus * symlog(upper)).sum(-1))
        return (surplus * upper).sum(-1)

    @property
    def mode(self) -> Float[Tensor, "*b"]:
        """The most probable bin."""
        return self.bins[self._of_bins.argmax(-1)]

    def loss(
        self, target: Float[Tensor, "*t"], second: Float[Tensor, "*s"] | None = None, weight: float = 0.0
    ) -> Float[Tensor, "*c"]:
        """Cross-entropy to `target` (broadcast, a constant), whose mass is split between the two bins around it.

        The nearer bin gets more, such that the expectation is `target`; beyond the ends all mass is in the last bin.
        NaN where `target` is not finite. With a `second` target, plus `weight` times the cross-entropy to it.
        """
        if two_hot.fuses(self.logits):
            return two_hot.cross_entropy(self.logits, target, second, self.bins, weight)
        loss = self._loss(target)
        return loss if second is None else loss + weight * self._loss(second)

    def _loss(self, target: Float[Tensor, "*t"]) -> Float[Tensor, "*c"]:
        (below, share), logits = self._split(target.detach()), self._of_bins
        shape = torch.broadcast_shapes(logits.shape[:-1], target.shape)
        places = torch.stack([below, below + 1], -1).expand(*shape, 2)
        around = logits.expand(*shape, len(self.bins)).gather(-1, places)
        return logits.logsumexp(-1) - around[..., 0].lerp(around[..., 1], share)

    @property
    def _of_bins(self) -> Float[Tensor, "*b N"]:
        """The logits without what fills up their rows."""
        return self.logits if self.logits.shape[-1] == len(self.bins) else self.logits[..., : len(self.bins)]

    def _split(self, target: Float[Tensor, "*t"]) -> tuple[Tensor, Float[Tensor, "*t"]]:
        """The bin at or below each target, and the share of its mass that the bin above it gets."""
        inside = target.clamp(self.bins[0], self.bins[-1])
        below = torch.bucketize(inside.contiguous(), self.bins, right=True).sub(1).clamp(0, len(self.bins) - 2)
        low, high = self.bins[below], self.bins[below + 1]
        return below, (inside - low) / (high - low) + 0 * target  # NaN for an infinite target too
