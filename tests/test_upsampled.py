"""Convolutions on blocks of pixels against torch's upsampling and convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dreamer_mpc.kernels.upsampled import blocked_convolution, from_blocks, upsampled_blocks, upsampled_convolution


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 1, 1), (3, 2, 5, 3)])
def test_it_is_the_convolution_of_the_upsampled_image_with_its_gradients(shape):
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 5, 5, padding=2).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (upsampled_convolution(x, layer), layer(F.interpolate(x, scale_factor=2.0))):
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        found.append((y, *torch.autograd.grad((y * weights).sum(), (x, layer.weight, layer.bias))))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (2, 4, 6, 2)])
def test_a_convolution_on_blocks_is_the_convolution_with_its_gradients(shape):
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 5, 5, padding=2).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (from_blocks(blocked_convolution(x, layer)), F.conv2d(x, layer.weight, padding=2)):
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        found.append((y, *torch.autograd.grad((y * weights).sum(), (x, layer.weight))))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_what_fills_up_a_row_of_a_block_is_dropped():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 3, 5, padding=2), torch.randn(2, 4, 3, 5)
    y = upsampled_blocks(x, layer, bias=True, least=8)
    assert y.shape == (2, 16, 3, 5) and not y[:, 6:8].any() and not y[:, 14:].any()
    torch.testing.assert_close(from_blocks(y, 3), upsampled_convolution(x, layer))
