"""DreamerV3's 5x5 convolutions on blocks of 2x2 pixels, side by side as channels: 3x3 products with more channels.

An upsampled image: each pixel of the image becomes 2x2 equal ones. Neighbours in a 5x5 window are often one pixel of
it, so that each of the four sees a 3x3 window of the image, with sums of the 5x5 weights: 36 products in place of 100.

Any other image: a block of the output sees 3x3 blocks, 144 products for each channel in place of 100. That pays where
tensor cores get too few channels else: an image has 3 of the 8 that they multiply at once; and where cuDNN has no good
kernel, see `prefers_blocks`. Rows of two pixels of an image, 6 numbers, are filled up with zeros to 8.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.blocks import product_dtype

# Which of the 5 rows (columns) of a window fall on the row above, the same and the row below, for each of the 2 pixels.
ROWS = [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]
LEAST = 8  # channels that tensor cores multiply at once
EVEN = 64  # of which a layer's channels are a multiple where it needs no blocks


@functools.cache  # a CUDA graph may read it, but cannot copy it from the host
def _rows(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 3 5"]:
    return torch.tensor(ROWS, device=device, dtype=dtype)


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


def prefers_blocks(layer: nn.Conv2d, side: int) -> bool:
    """Whether a GPU is faster with `blocked_weight` for `layer`, of maps of `side` pixels a side.

    For DreamerV3's second layer, 32 to 48 channels, cuDNN takes kernels for older GPUs on an H200, forward and for both
    gradients, at less than two thirds of the rate of its layer of 64 to 64. Blocks have 4 times as many channels: 128
    to 192, multiples of 64.
    """
    fits = layer.kernel_size == (5, 5) and layer.stride == (1, 1) and side % 2 == 0
    return fits and (layer.in_channels % EVEN > 0 or layer.out_channels % EVEN > 0)


def blocked_weight(x: Float[Tensor, "M I4 h w"], layer: nn.Conv2d) -> Float[Tensor, "O4 I4 3 3"]:
    """The weight of `layer` (5x5, padding 2) for a convolution with padding 1 from blocks to blocks.

    `x` is what it multiplies, in blocks that are filled up or not.
    """
    # Row k of a window is row 2 a + r of the 3x3 blocks, 6 rows, for pixel p = 2 a + r - k of a block.
    weight = F.pad(layer.weight, (1, 1, 1, 1)).unfold(2, 6, 1).unfold(3, 6, 1).flip(2, 3)  # [O, I, p, q, 6, 6]
    weight = weight.unflatten(5, (3, 2)).unflatten(4, (3, 2))  # [O, I, p, q, a, r, b, s]
    weight = weight.permute(2, 3, 0, 4, 6, 5, 7, 1).flatten(6).flatten(0, 2)  # [4 O, a, b, r, 2 I]
    missing = x.shape[1] // 2 - weight.shape[-1]
    weight = (F.pad(weight, (0, missing)) if missing else weight).flatten(3)
    return weight.movedim(-1, 1)


def to_blocks(x: Float[Tensor, "M I H W"]) -> Float[Tensor, "M I4 h w"]:
    """Blocks of 2x2 pixels as channels, both rows filled up with zeros to a multiple of `LEAST`; H and W are even."""
    (images, channels, height, width), x = x.shape, x.to(product_dtype(x)).movedim(1, -1)
    x = x.reshape(images, height // 2, 2, width // 2, 2 * channels).transpose(2, 3)  # [M, h, w, 2, 2 I]
    missing = -x.shape[-1] % LEAST
    return (F.pad(x, (0, missing)) if missing else x).flatten(-2).movedim(-1, 1)


def from_blocks(y: Float[Tensor, "M O4 h w"], channels: int | None = None, side: int = 2) -> Float[Tensor, "M O H W"]:
    """Pixels in their places, of blocks of `side` rows of `side` pixels, each `channels` wide; filling is dropped."""
    y = y.movedim(1, -1).unflatten(-1, (side, -1))  # [M, h, w, side, side O]
    y = y if channels is None else y[..., : side * channels]
    y = y.unflatten(-1, (side, -1))
    return y.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3).movedim(-1, 1)
