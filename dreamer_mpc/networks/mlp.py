"""Building blocks shared by the parts of the agent."""

import contextlib
import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.fused import bias_act, bias_act_dot, on_gpu


class MLP(nn.Sequential):
    """`layers` hidden layers with ELU, then a linear layer that autocast keeps in fp32: [*, inputs] -> [*, outputs]."""

    def __init__(self, inputs: int, hidden: int, layers: int, outputs: int):
        sizes = [inputs] + [hidden] * layers
        blocks = [block for i, o in pairwise(sizes) for block in (nn.Linear(i, o), nn.ELU())]
        super().__init__(*blocks, nn.Linear(sizes[-1], outputs))

    @property
    def linear(self) -> list[nn.Linear]:
        """The linear layers."""
        return list(self)[::2]

    def forward(self, x: Float[Tensor, "*b I"]) -> Float[Tensor, "*b O"]:
        *hidden, last = self.linear
        shape, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        for layer in hidden:
            if layer is hidden[-1] and last.out_features == 1 and fuses(x):
                y = F.linear(x, widened(layer.weight, x))[None]
                return bias_act_dot(y, layer.bias[None], "elu", last.weight, last.bias).view(*shape, 1)
            x = hidden_layer(x, layer.weight, layer.bias)
        with full_precision(x):
            return last(x.to(last.weight.dtype)).view(*shape, last.out_features)


def hidden_layer(x: Float[Tensor, "M I"], weight: Tensor, bias: Tensor) -> Float[Tensor, "M O"]:
    """A linear layer and ELU."""
    if not fuses(x):
        return F.elu_(F.linear(x, weight, bias))  # its gradient is computed from its result, without exp
    y = F.linear(x, widened(weight, x))
    return bias_act(y.view(1, -1, len(weight)), bias[None], "elu").view(y.shape)


def widened(weight: Float[Tensor, "O I"], x: Float[Tensor, "M P"]) -> Float[Tensor, "O P"]:
    """`weight` with zeros for the numbers that fill up inputs (`kernels.cell.joined_states`)."""
    missing = x.shape[-1] - weight.shape[-1]
    return F.pad(weight, (0, missing)) if missing else weight


def fuses(x: Tensor) -> bool:
    """Whether one kernel applies bias and ELU after a product: with bf16."""
    return torch.is_autocast_enabled(x.device.type) and on_gpu(x)


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Disable autocast, so that the output of a head is not rounded to bf16."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


class EnsembleLinear(nn.Module):
    """K linear layers in one batched product, each initialised like its own `nn.Linear`."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "K M I"]) -> Float[Tensor, "K M O"]:
        """The linear layers alone."""
        return torch.baddbmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))

    def hidden(self, x: Float[Tensor, "K M I"]) -> Float[Tensor, "K M O"]:
        """The linear layers and ELU."""
        if not fuses(x):
            return F.elu_(self(x))
        return bias_act(torch.bmm(x, self.weight), self.bias.flatten(1), "elu")

    def hidden_dot(self, x: Float[Tensor, "K M I"], last: "EnsembleLinear") -> Float[Tensor, "K M 1"]:
        """The linear layers and ELU, and on them `last` of one output, whose products stay in fp32."""
        y, (weight, offset) = torch.bmm(x, self.weight), (last.weight.flatten(1), last.bias.flatten())
        return bias_act_dot(y, self.bias.flatten(1), "elu", weight, offset)[..., None]

    def shared(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "K M O"]:
        """All linear layers on the same input, and ELU, in one product."""
        members, inputs, outputs = self.weight.shape
        weight = self.weight.transpose(0, 1).reshape(inputs, members * outputs)
        if fuses(x):
            y = F.linear(x, widened(weight.t(), x)).unflatten(1, (members, outputs)).transpose(0, 1)
            return bias_act(y, self.bias.flatten(1), "elu")
        return hidden_layer(x, weight.t(), self.bias.flatten()).view(-1, members, outputs).transpose(0, 1)
