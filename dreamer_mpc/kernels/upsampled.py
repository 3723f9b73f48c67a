"""DreamerV3's 5x5 convolutions on blocks of 2x2 pixels, side by side as channels: 3x3 products with more channels.

An upsampled image: each pixel of the image becomes 2x2 equal ones. Neighbours in a 5x5 window are often one pixel of
it, so that each of the four sees a 3x3 window of the image, with sums of the 5x5 weights: 36 products in place of 100.

An image with 3 channels: tensor cores need 8, and rows of two pixels have 6. A block of the output sees 3x3 blocks.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.blocks import product_dtype

# Which of the 5 rows (columns) of a window fall on the row above, the same and the row below, for each of the 2 pixels.
ROWS = [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]
# The same for row r of the block above, the same and the block below: [pixel, block, r, row of the window].
BLOCK_ROWS = [[[[int(k == 2 * a + r - p) for k in range(5)] for r in (0, 1)] for a in range(3)] for p in (0, 1)]
LEAST = 8  # channels that tensor cores multiply at once


@functools.cache  # a CUDA graph may read it, but cannot copy it from the host
def _rows(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 3 5"]:
    return torch.tensor(ROWS, device=device, dtype=dtype)


@functools.cache
def _block_rows(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 3 2 5"]:
    return torch.tensor(BLOCK_ROWS, device=device, dtype=dtype)


def upsampled_convolution(
    x: Float[Tensor, "M I h w"], layer: nn.Conv2d, bias: bool = True
) -> Float[Tensor, "M O h2 w2"]:
    """`layer` (5x5, padding 2), or its product alone without `bias`, of x after nearest-neighbour upsampling by 2.

    The same numbers up to rounding.
    """
    return from_blocks(upsampled_blocks(x, layer, bias, LEAST if x.is_cuda else 1), layer.out_channels)


def upsampled_blocks(
    x: Float[Tensor, "M I h w"], layer: nn.Conv2d, bias: bool = False, least: int = 1
) -> Float[Tensor, "M O4 h w"]:
    """`upsampled_convolution` in blocks; each row of a block is filled up with zeros to a multiple of `least`."""
    rows = _rows(layer.weight.device, layer.weight.dtype)
    weight = torch.einsum("pak,qbl,oikl->pqoiab", rows, rows, layer.weight).flatten(1, 2)  # [2, 2 O, I, 3, 3]
    offset = layer.bias.repeat(2) if bias else None
    missing = -weight.shape[1] % least
    if missing:
        weight = F.pad(weight, (0, 0) * 3 + (0, missing))
        offset = F.pad(offset, (0, missing)) if bias else None
    return F.conv2d(x, weight.flatten(0, 1), offset.repeat(2) if bias else None, padding=1)


def blocked_convolution(x: Float[Tensor, "M I H W"], layer: nn.Conv2d) -> Float[Tensor, "M O4 h w"]:
    """The product of `layer` (5x5, padding 2) without its bias, in blocks; H and W are even."""
    rows = _block_rows(layer.weight.device, layer.weight.dtype)
    weight = torch.einsum("park,qbsl,oikl->pqorsiab", rows, rows, layer.weight)
    weight = weight.flatten(4, 5).flatten(0, 2)  # [4 O, 2, 2 I, 3, 3]
    missing = (0, -weight.shape[2] % LEAST)
    weight = F.pad(weight, (0, 0, 0, 0, *missing)).flatten(1, 2)
    (images, channels, height, width), x = x.shape, x.to(product_dtype(x)).movedim(1, -1)
    x = x.reshape(images, height // 2, 2, width // 2, 2 * channels).transpose(2, 3)  # [M, h, w, 2, 2 I]
    return F.conv2d(F.pad(x, missing).flatten(-2).movedim(-1, 1), weight, padding=1)


def from_blocks(y: Float[Tensor, "M O4 h w"], channels: int | None = None, side: int = 2) -> Float[Tensor, "M O H W"]:
    """Pixels in their places, of blocks of `side` rows of `side` pixels, each `channels` wide; filling is dropped."""
    y = y.movedim(1, -1).unflatten(-1, (side, -1))  # [M, h, w, side, side O]
    y = y if channels is None else y[..., : side * channels]
    y = y.unflatten(-1, (side, -1))
    return y.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3).movedim(-1, 1)
