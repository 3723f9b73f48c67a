"""Images to embeddings."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

BITS = 5


def preprocess(image: UInt8[Tensor, "*b H W C"], dequantize: bool = False) -> Float[Tensor, "*b C H W"]:
    """uint8 pixels to 5 bits in [-0.5, 0.5] (PlaNet, Hafner et al. 2019).

    `dequantize` adds uniform noise of one level, so that the Gaussian likelihood sees a density (training); without it
    a level stands at its centre (acting).
    """
    levels = 2**BITS
    x = torch.div(image, 256 // levels, rounding_mode="floor").float() / levels - 0.5
    x = x + (torch.rand_like(x) if dequantize else 0.5) / levels
    return x.movedim(-1, -3)


def to_image(x: Float[Tensor, "*b C H W"]) -> UInt8[Tensor, "*b H W C"]:
    """Decoded means in [-0.5, 0.5] back to uint8 pixels."""
    return ((x.movedim(-3, -1) + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


class Encoder(nn.Module):
    """Four 4x4 convolutions of stride 2 with ReLU (paper, Table 18): [*, 3, 64, 64] -> [*, 4 * channels[-1]]."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256)):
        super().__init__()
        sizes = [3, *channels]
        blocks = [b for i, o in pairwise(sizes) for b in (nn.Conv2d(i, o, 4, stride=2), nn.ReLU())]
        self.layers = nn.Sequential(*blocks)
        self.outputs = 4 * channels[-1]  # 64 -> 31 -> 14 -> 6 -> 2 pixels a side

    def forward(self, image: Float[Tensor, "*b 3 64 64"]) -> Float[Tensor, "*b E"]:
        x = self.layers(image.reshape(-1, *image.shape[-3:]))
        return x.reshape(*image.shape[:-3], self.outputs)
