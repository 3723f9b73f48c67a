"""Building blocks shared by the parts of the agent."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """`layers` hidden layers with ELU, then a linear one: [*, inputs] -> [*, outputs]."""
    sizes = [inputs] + [hidden] * layers
    blocks = [block for i, o in pairwise(sizes) for block in (nn.Linear(i, o), nn.ELU())]
    return nn.Sequential(*blocks, nn.Linear(sizes[-1], outputs))


class EnsembleLinear(nn.Module):
    """K linear layers in one batched product, each initialised like its own `nn.Linear`."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "K M I"]) -> Float[Tensor, "K M O"]:
        return torch.baddbmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))
