"""The scale of returns, by which DreamerV3 divides advantages."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class ReturnScale(nn.Module):
    """Moving averages of the 5 % and the 95 % quantile of returns; the scale is their distance, but at least 1.

    The averages begin at 0 and are not debiased, as in DreamerV3: at rate 0.01 the scale takes hundreds of updates to
    reach the range of the returns. One update:

        bounds = returns.propose(values)         # this batch included
        advantage = (...) / returns.scale(bounds)
        returns.commit(bounds, skipped)          # kept, unless the update is skipped
    """

    bounds: Float[Tensor, "2"]
    places: Float[Tensor, "2"]

    def __init__(self, rate: float = 0.01, least: float = 1.0):
        super().__init__()
        self.rate, self.least = rate, least
        self.register_buffer("bounds", torch.zeros(2))
        self.register_buffer("places", torch.tensor([0.05, 0.95]), persistent=False)

    @torch.no_grad()
    def propose(self, returns: Float[Tensor, "*b"]) -> Float[Tensor, "2"]:
        """The moving averages after `returns`, without keeping them. NaN if any return is NaN."""
        quantiles = torch.quantile(returns.flatten().to(self.places.dtype), self.places)  # interpolated
        return self.bounds.lerp(quantiles, self.rate)

    def scale(self, bounds: Float[Tensor, "2"]) -> Float[Tensor, ""]:
        """What to divide by."""
        return (bounds[1] - bounds[0]).clamp(min=self.least)

    @torch.no_grad()
    def commit(self, bounds: Float[Tensor, "2"], skipped: Bool[Tensor, ""]) -> None:
        """Keep proposed averages unless `skipped`, in place and without waiting for the device."""
        self.bounds.copy_(torch.where(skipped, self.bounds, bounds))
