"""Multilayer perceptrons of DreamerV3: linear, RMSNorm, SiLU."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.last_layer import last_layer
from dreamer_mpc.kernels.norm import NormSiLU, fuses
from dreamer_mpc.networks.mlp import EnsembleLinear, full_precision

NORM_EPS = 1e-4
TRUNCATION = 1.1368  # a normal cut at two standard deviations times this has variance 1


@torch.no_grad()
def init_weight(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Fill with a normal of standard deviation 1 / sqrt(fan_in), cut at twice the normal's own, times `scale`."""
    std = TRUNCATION / math.sqrt(fan_in)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std).mul_(scale)


def norm_linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A linear layer with DreamerV3's initial values: weights by `init_weight`, biases 0."""
    linear = nn.Linear(inputs, outputs)
    init_weight(linear.weight, inputs, scale)
    nn.init.zeros_(linear.bias)
    return linear


def norm_silu(norm: nn.RMSNorm, x: Float[Tensor, "*b X"]) -> Float[Tensor, "*b X"]:
    """SiLU of the norm of `x`, computed in the precision of its gain: bf16 would be too coarse for the mean square."""
    if fuses(x):
        return NormSiLU.apply(x.reshape(-1, x.shape[-1]), norm.weight, norm.eps).view(x.shape)
    return F.silu(norm(x.to(norm.weight.dtype)).to(x.dtype))


class NormLayer(nn.Module):
    """Linear, RMSNorm with gain and without offset, SiLU: [*, inputs] -> [*, outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = norm_linear(inputs, outputs)
        self.norm = nn.RMSNorm(outputs, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "*b I"], dtype: torch.dtype | None = None) -> Float[Tensor, "*b O"]:
        """With `dtype`, a GPU gives the result in it, without rounding it in between."""
        linear, norm = self.linear, self.norm
        if not fuses(x):
            return norm_silu(norm, linear(x))
        y = F.linear(x, linear.weight)
        return NormSiLU.apply(y.view(-1, y.shape[-1]), norm.weight, norm.eps, linear.bias, dtype).view(y.shape)


class NormMLP(nn.Module):
    """`layers` times linear, RMSNorm and SiLU, then a linear layer that autocast keeps in fp32.

    [*, inputs] -> [*, outputs]. `scale` multiplies the initial weights of the last layer; with 0 the output is 0.
    `of_bins`: the outputs are logits of bins for `TwoHot`, whose mirror images are to learn alike, see `LastLayer`. On
    a GPU, numbers may follow them, which readers must ignore.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, outputs: int, scale: float = 1.0, of_bins: bool = False):
        super().__init__()
        sizes = [inputs] + [hidden] * layers
        self.hidden = nn.Sequential(*(NormLayer(i, o) for i, o in pairwise(sizes)))
        self.last = norm_linear(sizes[-1], outputs, scale)
        self.of_bins = of_bins

    def forward(self, x: Float[Tensor, "*b I"]) -> Float[Tensor, "*b O"]:
        last = self.last
        for layer in self.hidden:
            x = layer(x, last.weight.dtype if layer is self.hidden[-1] else None)
        with full_precision(x):
            x = x.to(last.weight.dtype)
            fused = fuses(x)
            if not (fused or self.of_bins):
                return last(x)
            rows = x.reshape(1, -1, x.shape[-1])
            y = last_layer(rows, last.weight.t()[None], last.bias[None], self.of_bins and fused)
            return y.view(*x.shape[:-1], y.shape[-1])


class NormEnsembleLayer(EnsembleLinear):
    """K linear layers in one batched product; RMSNorm, each with its own gain; SiLU."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__(members, inputs, outputs)
        _init_ensemble(self)
        self.gain = nn.Parameter(torch.ones(members, 1, outputs))

    def hidden(self, x: Float[Tensor, "K M I"], dtype: torch.dtype | None = None) -> Float[Tensor, "K M O"]:
        """All three on inputs of each member. With `dtype`, a GPU gives the result in it, without rounding before."""
        if fuses(x):
            return self._fused(torch.bmm(x, self.weight.to(x.dtype)), dtype)
        return self._activate(self(x), self.gain)

    def shared(self, x: Float[Tensor, "M I"], dtype: torch.dtype | None = None) -> Float[Tensor, "K M O"]:
        """All three on one input of all members, in one product; `dtype` as for `hidden`."""
        members, inputs, outputs = self.weight.shape
        weight = self.weight.transpose(0, 1).reshape(inputs, members * outputs)
        if fuses(x):
            return self._fused(F.linear(x, weight.t()).view(-1, members, outputs).transpose(0, 1), dtype)
        x = F.linear(x, weight.t(), self.bias.flatten()).view(-1, members, outputs)
        return self._activate(x, self.gain.transpose(0, 1)).transpose(0, 1)  # after the norm, which would copy

    def _fused(self, x: Float[Tensor, "K M O"], dtype: torch.dtype | None) -> Float[Tensor, "K M O"]:
        """Bias, RMSNorm and SiLU in one kernel."""
        return NormSiLU.apply(x, self.gain[:, 0], NORM_EPS, self.bias[:, 0], dtype)

    @staticmethod
    def _activate(x: Float[Tensor, "*b O"], gain: Float[Tensor, "*#b O"]) -> Float[Tensor, "*b O"]:
        """RMSNorm and SiLU of the last dimension."""
        return F.silu((F.rms_norm(x.to(gain.dtype), x.shape[-1:], eps=NORM_EPS) * gain).to(x.dtype))


class NormEnsemble(nn.Module):
    """K independent `NormMLP` on one input in batched products: [*, inputs] -> [K, *, outputs]; `layers` at least 1."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        layers: int,
        outputs: int,
        members: int,
        scale: float = 1.0,
        of_bins: bool = False,
    ):
        super().__init__()
        sizes = [inputs] + [hidden] * layers
        self.hidden = nn.ModuleList(NormEnsembleLayer(members, i, o) for i, o in pairwise(sizes))
        self.last = EnsembleLinear(members, hidden, outputs)
        _init_ensemble(self.last, scale)
        self.of_bins = of_bins

    def forward(self, x: Float[Tensor, "*b I"]) -> Float[Tensor, "K *b O"]:
        last, shape, x = self.last, x.shape[:-1], x.reshape(-1, x.shape[-1])
        for i, layer in enumerate(self.hidden):
            dtype = last.weight.dtype if i == len(self.hidden) - 1 else None
            x = layer.hidden(x, dtype) if i else layer.shared(x, dtype)
        with full_precision(x):
            x = x.to(last.weight.dtype)
            fused = fuses(x)
            if fused or self.of_bins:
                y = last_layer(x, last.weight, last.bias[:, 0], self.of_bins and fused)
            else:
                y = last(x)
        return y.view(-1, *shape, y.shape[-1])


def _init_ensemble(linear: EnsembleLinear, scale: float = 1.0) -> None:
    """DreamerV3's initial values for all members."""
    init_weight(linear.weight, linear.weight.shape[1], scale)
    nn.init.zeros_(linear.bias)
