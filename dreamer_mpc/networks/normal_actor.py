"""The policy network of DreamerV3."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.norm import fuses
from dreamer_mpc.networks.norm_mlp import NORM_EPS, NormMLP

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import normal_head_triton as kernels
    from dreamer_mpc.kernels import row_layers_triton as row_layers
except ImportError:
    kernels = None

# Of a state [*b, S] and standard normal noise [*b, A] or None, a sample [*b, A] before its clipping.
Sampler = Callable[[Tensor, Tensor | None], Tensor]


class BoundedNormal(NamedTuple):
    """A diagonal Gaussian with `mean` [*, A] in [-1, 1] and `std` [*, A]: actions are its samples, clipped to [-1, 1].

    `sample`, `log_prob` and `entropy` are those of the Gaussian before the clipping, as the score function needs them;
    `mode` and `rsample` are actions to execute, all in [-1, 1].
    """

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Float[Tensor, "*b A"]:
        """Where the Gaussian's density is highest: its mean."""
        return self.mean

    def sample(self, noise: Float[Tensor, "*b A"] | None = None) -> Float[Tensor, "*b A"]:
        """A sample before the clipping, without gradient: what `log_prob` takes. It may lie outside [-1, 1].

        `noise` is standard normal, drawn here if None.
        """
        with torch.no_grad():
            return self._draw(noise)

    def rsample(self) -> Float[Tensor, "*b A"]:
        """A reparameterised sample in [-1, 1]; its gradient is 0 where it was clipped."""
        return self._draw().clamp(-1, 1)

    def around(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b A"]:
        """A sample with this spread around another `action` in place of the mean, in [-1, 1]."""
        return (action + self.std * torch.randn_like(self.std)).clamp(-1, 1)

    def log_prob(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b"]:
        """Log-density of actions before the clipping, summed over A; finite everywhere."""
        normal = -0.5 * ((action - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return normal.sum(-1)

    def entropy(self) -> Float[Tensor, "*b"]:
        """Differential entropy before the clipping, summed over A."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def _draw(self, noise: Float[Tensor, "*b A"] | None = None) -> Float[Tensor, "*b A"]:
        noise = torch.randn_like(self.mean) if noise is None else noise
        if noise.is_cuda:
            return torch.addcmul(self.mean, self.std, noise)  # one kernel; it rounds once
        return self.mean + self.std * noise


class NormalActor(nn.Module):
    """Policy of DreamerV3: mean tanh(m), std min_std + (max_std - min_std) sigmoid(s + 2), m and s from one network.

    The last layer's initial weights are scaled by 0.01: at first the mean is near 0 and, by default, the std near 0.89.
    On a GPU, without gradients, one kernel computes the last layer, mean and std.
    """

    def __init__(
        self,
        state: int,
        action_dim: int,
        layers: int = 3,
        hidden: int = 256,
        min_std: float = 0.1,
        max_std: float = 1.0,
        scale: float = 0.01,
    ):
        super().__init__()
        self.layers = NormMLP(state, hidden, layers, 2 * action_dim, scale)
        self.min_std, self.max_std = min_std, max_std

    def forward(self, state: Float[Tensor, "*b S"]) -> BoundedNormal:
        if fuses(state) and not torch.is_grad_enabled():
            hidden, last = self.layers.hidden(state), self.layers.last
            return BoundedNormal(*kernels.normal_head(hidden, last.weight, last.bias, self.min_std, self.max_std))
        mean, std = self.layers(state).chunk(2, dim=-1)
        return BoundedNormal(mean.tanh(), self.min_std + (self.max_std - self.min_std) * (std + 2).sigmoid())

    @torch.no_grad()
    def sampler(self, bf16: bool) -> Sampler:
        """What gives `self(state).sample(noise)` in one state after the other, with the weights of now.

        On a GPU one kernel computes what follows the first product, where it fits. `bf16`: products of bf16 numbers;
        the caller's autocast says the same.
        """
        last = self.layers.last
        if not fuses(last.weight):
            return lambda state, noise: self(state).sample(noise)
        layers, actions = self.layers.hidden, last.out_features // 2
        first, *middle = (layer.linear.weight.to(torch.bfloat16 if bf16 else last.weight.dtype) for layer in layers)
        middle = torch.stack(middle) if middle else first[:0]
        biases = torch.stack([layer.linear.bias for layer in layers])
        gains = torch.stack([layer.norm.weight for layer in layers])

        @torch.no_grad()
        def sample(state: Float[Tensor, "*b S"], noise: Float[Tensor, "*b A"] | None) -> Float[Tensor, "*b A"]:
            pre = F.linear(state.reshape(-1, state.shape[-1]).to(first.dtype), first)
            if not row_layers.fits_policy(pre, actions):
                return self(state).sample(noise)
            drawn = last.weight.new_empty(*state.shape[:-1], actions).normal_() if noise is None else noise
            given = (pre, middle, biases, gains, last.weight, last.bias, drawn.view(-1, actions))
            return row_layers.policy(*given, self.min_std, self.max_std, NORM_EPS).view(drawn.shape)

        return sample
