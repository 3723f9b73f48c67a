"""Networks and output distributions of DreamerV3."""

import math
from functools import partial

import pytest
import torch

from dreamer_mpc.networks.norm_mlp import NormEnsemble, NormMLP

MAKES = {"one": NormMLP, "ensemble": partial(NormEnsemble, members=2)}
each_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain_layer(x, weight, bias, gain):
    """Linear, RMSNorm and SiLU of one row, number by number; weight [O][I]."""
    y = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight, bias)]
    size = math.sqrt(sum(v * v for v in y) / len(y) + 1e-4)
    normed = [v / size * g for v, g in zip(y, gain)]
    return [v / (1 + math.exp(-v)) for v in normed]


def disturb(network):
    """Move every parameter off its initial value, so that no gain is 1 and no bias 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


# perceptrons


def test_an_mlp_is_the_plain_loop():
    network = disturb(NormMLP(3, 5, 2, 4).double())
    x = torch.randn(2, 3, dtype=torch.float64)
    for row, found in zip(x, network(x)):
        y = row.tolist()
        for layer in network.hidden:
            y = plain_layer(y, layer.linear.weight.tolist(), layer.linear.bias.tolist(), layer.norm.weight.tolist())
        expected = network.last.weight @ torch.tensor(y, dtype=torch.float64) + network.last.bias
        torch.testing.assert_close(found, expected)


def test_an_ensemble_is_its_members():
    ensemble = disturb(NormEnsemble(3, 5, 2, 4, members=3).double())
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    outputs = ensemble(x)
    assert outputs.shape == (3, 2, 6, 4)
    for k in range(3):
        member = NormMLP(3, 5, 2, 4).double()
        with torch.no_grad():
            for own, layer in zip(member.hidden, ensemble.hidden):
                own.linear.weight.copy_(layer.weight[k].t())
                own.linear.bias.copy_(layer.bias[k, 0])
                own.norm.weight.copy_(layer.gain[k, 0])
            member.last.weight.copy_(ensemble.last.weight[k].t())
            member.last.bias.copy_(ensemble.last.bias[k, 0])
        torch.testing.assert_close(outputs[k], member(x))


@each_make
def test_initial_weights_have_the_variance_of_the_fan_in(make):
    """The truncation is at 2 * 1.1368 / sqrt(inputs), and the standard deviation is 1 / sqrt(inputs) all the same."""
    network = make(400, 300, 2, 200)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif name.endswith("weight") and parameter.ndim > 1:
            std = 1 / math.sqrt(400 if "hidden.0" in name else 300)
            assert parameter.std().item() == pytest.approx(std, rel=0.01)
            assert 2.2 * std < parameter.abs().max() <= 2.2737 * std


@each_make
def test_the_scale_is_that_of_the_last_layer(make):
    torch.manual_seed(1)
    full = make(3, 8, 2, 4, scale=1.0)
    torch.manual_seed(1)
    tenth = make(3, 8, 2, 4, scale=0.1)
    x = torch.randn(5, 3)
    torch.testing.assert_close(tenth(x), 0.1 * full(x))
    assert not make(3, 8, 2, 4, scale=0.0)(x).any()


@each_make
def test_autocast_keeps_the_last_layer_in_full(make):
    network, x = make(16, 32, 2, 4), torch.randn(64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(x)
    assert rounded.dtype == torch.float32 and rounded.unique().numel() > 200, "bf16 has 8 bits"
    torch.testing.assert_close(rounded, network(x), rtol=0, atol=0.05)
