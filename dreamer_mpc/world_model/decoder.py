"""Latent states to images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.blocks import UPSAMPLED_SIDE, from_one_pixel, upsample, upsample_blocks, upsampled_product
from dreamer_mpc.kernels.image_error import fuses, image_error
from dreamer_mpc.world_model.protocol import ImageForm

# Pixels a side of the first map, and sizes of the four kernels, that lead to an image's pixels a side.
KERNELS = {64: (1, (5, 5, 6, 6)), 84: (2, (5, 6, 6, 6)), 96: (3, (5, 5, 6, 6)), 128: (5, (5, 5, 6, 6))}


class SquaredError(torch.autograd.Function):
    """The squared distance of images [*, C, H, W] of any precision to fp32 targets, halved: [*]. One pass each way."""

    @staticmethod
    def forward(ctx, image, target):
        error = image - target
        ctx.save_for_backward(error)
        ctx.dtype = image.dtype
        return 0.5 * torch.linalg.vector_norm(error.flatten(-3), dim=-1).square()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (error,) = ctx.saved_tensors
        return torch.mul(error, g[..., None, None, None], out=torch.empty_like(error, dtype=ctx.dtype)), None


class Decoder(nn.Module):
    """Dense layer, then transposed convolutions 5-5-6-6 of stride 2 with ReLU (paper, Table 18).

    [*, S] -> [*, C, H, W], the mean of a unit-variance Gaussian. The `hidden` numbers of the dense layer are one pixel
    for the paper's images, of 64 pixels a side, and a larger map with fewer channels for larger ones. With `kernels`,
    the paper's images are computed in blocks of pixels (`blocks.py`); else by the plain layers, the reference.
    """

    def __init__(
        self,
        state: int,
        hidden: int = 1024,
        channels: Sequence[int] = (128, 64, 32),
        kernels: bool = True,
        images: ImageForm = ImageForm(),
    ):
        super().__init__()
        self.side, sides = KERNELS[images.size]
        first = max(hidden // self.side**2, 1)
        self.dense = nn.Linear(state, first * self.side**2)
        sizes = [first, *channels, images.shape[-1]]
        layers = zip(pairwise(sizes), sides, strict=True)
        self.layers = nn.ModuleList(nn.ConvTranspose2d(i, o, k, stride=2) for (i, o), k in layers)
        self.kernels = kernels and images == ImageForm()

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b C H W"]:
        x = self.dense(state.reshape(-1, state.shape[-1]))
        x = self._in_blocks(x) if self.kernels else self._plain(x)
        return x.view(*state.shape[:-1], *x.shape[1:])

    def _plain(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M C H W"]:
        *layers, last = self.layers
        x = x.view(len(x), -1, self.side, self.side)
        for layer in layers:
            x = F.relu(layer(x))
        return last(x)

    def error(self, state: Float[Tensor, "*b S"], image: Float[Tensor, "*b C H W"]) -> Float[Tensor, "*b"]:
        """Half the squared distance of the images of states to `image`, summed over a frame."""
        if not (self.kernels and fuses(state)):
            return SquaredError.apply(self(state), image)
        y = upsampled_product(self._last_map(self.dense(state.reshape(-1, state.shape[-1]))), self.layers[-1])
        y, bias = y.permute(0, 3, 1, 2), self.layers[-1].bias
        error = image_error(y, bias, image.flatten(0, -4), UPSAMPLED_SIDE, sigmoid=False)
        return 0.5 * error.view(state.shape[:-1])

    def _in_blocks(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M 3 64 64"]:
        return upsample_blocks(self._last_map(x), self.layers[-1]).permute(0, 3, 1, 2)

    def _last_map(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M 15 15 I4"]:
        """The input of the last layer: blocks of 30x30 pixels."""
        first, second, third, _ = self.layers
        x = upsample(from_one_pixel(x, first), second, out_of_blocks=True)  # 5 pixels a side, then 13
        return upsample(x, third, out_of_blocks=False)
