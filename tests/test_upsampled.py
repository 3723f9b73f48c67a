"""The convolution of an upsampled image against torch's upsampling and convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dreamer_mpc.kernels.upsampled import upsampled_convolution


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
