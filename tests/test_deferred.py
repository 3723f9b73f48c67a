"""Layers whose weights' gradients are computed elsewhere, against the same under autograd."""

import pytest
import torch
from torch.nn import functional as F

from dreamer_mpc.kernels.deferred import Convolution, Deferred, Linear, Once


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("stride, padding", [((1, 1), (1, 1)), ((2, 2), (2, 1)), ((1, 2), (0, 0))])
def test_a_convolution_has_the_gradients_of_torch(stride, padding, differentiable):
    """Also behind what was computed from the weight, and where only the weight has a gradient."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=differentiable)
    weight, found = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True), []
    for deferred in (True, False):
        given, box = weight.flip(2) * 2, []
        if deferred:
            y = Convolution.apply(x, *Deferred.apply(box, given), box, stride, padding)
        else:
            y = F.conv2d(x, given, None, stride, padding)
        g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append((y, *torch.autograd.grad(y, [weight, x][: 1 + differentiable], g)))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("differentiable", [True, False])
def test_a_linear_layer_has_the_gradients_of_torch(differentiable):
    torch.manual_seed(1)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=differentiable)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 5), (4,)))
    found = []
    for deferred in (True, False):
        layer, box = (weight.exp(), bias), []
        y = Linear.apply(x, *Deferred.apply(box, *layer), box) if deferred else F.linear(x, *layer)
        g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append((y, *torch.autograd.grad(y, [weight, bias, x][: 2 + differentiable], g)))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


def test_calls_share_what_is_made_of_weights_once():
    """Each leaves gradients of its own, whose sum goes back through what was made."""
    torch.manual_seed(2)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 5), (4,)))
    made, once, outputs = [], Once(), []

    def layer():
        made.append((weight.exp(), bias * 2))
        return made[-1]

    for part in x.split(2):
        box = []
        outputs.append(Linear.apply(part, *Deferred.apply(box, *once("layer", layer)), box))
    y, expected = torch.cat(outputs), F.linear(x, weight.exp(), bias * 2)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    found = torch.autograd.grad(y, [weight, bias, x], g)
    assert len(made) == 1
    for own, plain in zip(found, torch.autograd.grad(expected, [weight, bias, x], g), strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-12)
