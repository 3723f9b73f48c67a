"""Images to embeddings."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dreamer_mpc.kernels import fused
from dreamer_mpc.kernels.blocks import block_convolution, image_convolution
from dreamer_mpc.world_model.protocol import ImageForm

BITS = 5


def preprocess(image: UInt8[Tensor, "*b H W C"], dequantize: bool = False) -> Float[Tensor, "*b C H W"]:
    """uint8 pixels to 5 bits in [-0.5, 0.5] (PlaNet, Hafner et al. 2019).

    `dequantize` adds uniform noise of one level, so that the likelihood is that of a density (training); without it
    each level is represented by its centre (acting).
    """
    levels = 2**BITS
    if dequantize:
        noise = torch.rand(image.shape, device=image.device)
        if fused.on_gpu(image):
            fused.kernels.dequantize(image.contiguous(), noise, BITS)
            return noise.movedim(-1, -3)
    else:
        noise = torch.full((), 0.5, device=image.device)
    x = (noise + (image >> 8 - BITS)).div_(levels).sub_(0.5)
    return x.movedim(-1, -3)


def to_image(x: Float[Tensor, "*b C H W"]) -> UInt8[Tensor, "*b H W C"]:
    """Decoded means in [-0.5, 0.5] back to uint8 pixels."""
    return ((x.movedim(-3, -1) + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


class Encoder(nn.Module):
    """Four 4x4 convolutions of stride 2 with ReLU (paper, Table 18): [*, C, H, W] -> [*, E].

    E = 4 * channels[-1] for the paper's images, [3, 64, 64]. With `kernels`, on a GPU, those run in blocks of pixels
    (`blocks.py`); else by the plain layers, which are the reference.
    """

    def __init__(
        self, channels: Sequence[int] = (32, 64, 128, 256), kernels: bool = True, images: ImageForm = ImageForm()
    ):
        super().__init__()
        sizes = [images.shape[-1], *channels]
        blocks = [b for i, o in pairwise(sizes) for b in (nn.Conv2d(i, o, 4, stride=2), nn.ReLU())]
        self.layers = nn.Sequential(*blocks)
        side = images.size
        for _ in channels:
            side = side // 2 - 1  # 64 -> 31 -> 14 -> 6 -> 2 pixels
        self.outputs = side**2 * channels[-1]
        self.kernels = kernels and images == ImageForm()

    def forward(self, image: Float[Tensor, "*b C H W"]) -> Float[Tensor, "*b E"]:
        x = image.reshape(-1, *image.shape[-3:])
        x = self.in_blocks(x) if self.kernels and x.is_cuda else self.layers(x)
        return x.reshape(*image.shape[:-3], self.outputs)

    def in_blocks(self, image: Float[Tensor, "M 3 64 64"]) -> Float[Tensor, "M C 2 2"]:
        """The output of the plain layers, computed in blocks of pixels; on a CPU it is no faster."""
        first, *rest = self.layers[::2]
        x = image_convolution(image.permute(0, 2, 3, 1), first)
        for layer in rest:
            x = block_convolution(x, layer, to_blocks=layer is not rest[-1])
        return x.permute(0, 3, 1, 2)
