"""Gradients in two parts, before and behind what a network inferred, against those in one."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from dreamer_mpc.agents.cut import Cut


class Inferred(NamedTuple):
    target: torch.Tensor
    states: torch.Tensor
    others: tuple[torch.Tensor, ...]


class Network(nn.Module):
    """Parameters before the cut, behind it and on both sides."""

    def __init__(self):
        super().__init__()
        self.encoder, self.both, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.double()

    def infer(self, x):
        states = self.both(torch.tanh(self.encoder(x)))
        return Inferred(x, states, (states.square(), x.sum()))

    def loss(self, inferred):
        y = self.head(torch.tanh(self.both(inferred.states))) * inferred.others[0].sum() + inferred.others[1]
        return (y - inferred.target).square().mean()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def test_gradients_in_two_parts_are_those_in_one(network):
    x = torch.randn(5, 3, dtype=torch.float64)
    parameters, extra = list(network.parameters()), torch.randn(5, 4, dtype=torch.float64)
    inferred = network.infer(x)
    expected = torch.autograd.grad([network.loss(inferred), inferred.states], parameters, [None, extra])
    inferred = network.infer(x)
    cut = Cut(inferred, network)
    cut.back(network.loss(cut.copy))
    for found, of in zip(cut.through(inferred.states, extra), expected, strict=True):
        torch.testing.assert_close(found, of, rtol=1e-12, atol=1e-12)


def test_without_another_gradient_it_is_that_of_the_loss(network):
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.autograd.grad(network.loss(network.infer(x)), list(network.parameters()))
    inferred = network.infer(x)
    cut = Cut(inferred, network)
    cut.back(network.loss(cut.copy))
    for found, of in zip(cut.through(inferred.states, None), expected, strict=True):
        torch.testing.assert_close(found, of, rtol=1e-12, atol=1e-12)


def test_a_parameter_that_nothing_uses_is_named(network):
    network.spare = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    inferred = network.infer(torch.randn(5, 3, dtype=torch.float64))
    cut = Cut(inferred, network)
    cut.back(network.loss(cut.copy))
    with pytest.raises(ValueError, match="the loss does not depend on the parameter spare"):
        cut.through(inferred.states, None)
