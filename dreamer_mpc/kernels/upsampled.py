"""A 5x5 convolution of an image of twice the size, computed on the image itself: 36 products in place of 100 a pixel.

Each pixel of the image becomes 2x2 equal ones. Neighbours in a 5x5 window are then often one pixel of the image, so
that each of the four sees a 3x3 window of it, with sums of the 5x5 weights.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Which of the 5 rows (columns) of a window fall on the row above, the same and the row below, for each of the 2 pixels.
ROWS = [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]


@functools.cache  # a CUDA graph may read it, but cannot copy it from the host
def _rows(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 3 5"]:
    return torch.tensor(ROWS, device=device, dtype=dtype)


def upsampled_convolution(
    x: Float[Tensor, "M I h w"], layer: nn.Conv2d, bias: bool = True
) -> Float[Tensor, "M O h2 w2"]:
    """`layer` (5x5, padding 2), or its product alone without `bias`, of x after nearest-neighbour upsampling by 2.

    The same numbers up to rounding.
    """
    rows = _rows(layer.weight.device, layer.weight.dtype)
    weight = torch.einsum("pak,qbl,oikl->pqoiab", rows, rows, layer.weight).flatten(0, 2)  # [4 O, I, 3, 3]
    y = F.conv2d(x, weight, layer.bias.repeat(4) if bias else None, padding=1)  # [M, 4 O, h, w]
    y = y.movedim(1, -1).unflatten(-1, (2, 2, -1))  # [M, h, w, 2, 2, O]
    return y.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3).movedim(-1, 1)
