"""Convolutions on blocks of pixels against torch's upsampling and convolution."""

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from dreamer_mpc.kernels.upsampled import (
    blocked_weight,
    from_blocks,
    prefers_blocks,
    to_blocks,
    upsampled_blocks,
    upsampled_convolution,
)


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


def side_by_side(x):
    """Blocks of 2x2 pixels without zeros that fill up their rows."""
    return rearrange(x, "m c (h p) (w q) -> m (p q c) h w", p=2, q=2)


@pytest.mark.parametrize("blocks", [to_blocks, side_by_side])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (2, 4, 6, 2)])
def test_a_convolution_on_blocks_is_the_convolution_with_its_gradients(shape, blocks):
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 5, 5, padding=2).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    in_blocks = blocks(x)
    own = from_blocks(F.conv2d(in_blocks, blocked_weight(in_blocks, layer), padding=1))
    for y in (own, F.conv2d(x, layer.weight, padding=2)):
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        found.append((y, *torch.autograd.grad((y * weights).sum(), (x, layer.weight))))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_blocks_are_pixels_side_by_side():
    x = torch.randn(2, 4, 6, 2)
    assert torch.equal(to_blocks(x), side_by_side(x)) and torch.equal(from_blocks(to_blocks(x)), x)
    filled = to_blocks(x[:, :3])
    assert filled.shape == (2, 16, 3, 1) and torch.equal(from_blocks(filled, 3), x[:, :3])


@pytest.mark.parametrize(
    "inputs, outputs, side, stride, kernel, expected",
    [(3, 32, 64, 1, 5, True), (32, 48, 32, 1, 5, True), (48, 64, 16, 1, 5, True), (64, 64, 8, 1, 5, False),
     (64, 128, 8, 1, 5, False), (48, 64, 21, 1, 5, False), (48, 64, 16, 2, 5, False), (48, 64, 16, 1, 3, False)],
)  # fmt: skip
def test_layers_whose_channels_are_no_multiples_of_64_prefer_blocks(inputs, outputs, side, stride, kernel, expected):
    assert prefers_blocks(nn.Conv2d(inputs, outputs, kernel, stride), side) == expected


def test_what_fills_up_a_row_of_a_block_is_dropped():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 3, 5, padding=2), torch.randn(2, 4, 3, 5)
    y = upsampled_blocks(x, layer, bias=True, least=8)
    assert y.shape == (2, 16, 3, 5) and not y[:, 6:8].any() and not y[:, 14:].any()
    torch.testing.assert_close(from_blocks(y, 3), upsampled_convolution(x, layer))
