"""Latent states to images."""

from collections.abc import Sequence
from itertools import pairwise

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """Dense layer, then transposed convolutions 5-5-6-6 of stride 2 with ReLU (paper, Table 18).

    [*, S] -> [*, 3, 64, 64], the mean of a unit-variance Gaussian.
    """

    def __init__(self, state: int, hidden: int = 1024, channels: Sequence[int] = (128, 64, 32)):
        super().__init__()
        self.dense = nn.Linear(state, hidden)
        sizes = [hidden, *channels, 3]
        layers = zip(pairwise(sizes), (5, 5, 6, 6), strict=True)
        self.layers = nn.ModuleList(nn.ConvTranspose2d(i, o, k, stride=2) for (i, o), k in layers)

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b 3 64 64"]:
        x = self.dense(state.reshape(-1, state.shape[-1]))
        first, *middle, last = self.layers
        x = F.relu(from_one_pixel(x, first))
        for layer in middle:
            x = F.relu(upsample(x, layer))
        x = upsample(x, last)
        return x.view(*state.shape[:-1], *x.shape[1:])


def from_one_pixel(x: Float[Tensor, "M I"], layer: nn.ConvTranspose2d) -> Float[Tensor, "M O K K"]:
    """`layer` applied to a 1x1 image: a dense layer with the same weights, which is what it costs."""
    side = layer.kernel_size[0]
    bias = layer.bias.repeat_interleave(side * side)
    return F.linear(x, layer.weight.flatten(1).t(), bias).unflatten(1, (layer.out_channels, side, side))


def upsample(x: Float[Tensor, "M I h w"], layer: nn.ConvTranspose2d) -> Float[Tensor, "M O H W"]:
    """`layer` (stride 2, no padding) as a plain convolution and a pixel shuffle with the same weights.

    Output pixel 2i + p takes x[i - m] times kernel[2m + p], so each of the 2x2 phases is a convolution with every
    second kernel entry, reversed. cuDNN runs this at several times the rate of its strided transposed convolution.
    """
    size = layer.kernel_size[0]
    taps = (size + 1) // 2
    kernel = F.pad(layer.weight, (0, size % 2, 0, size % 2))  # [I, O, 2 taps, 2 taps]
    kernel = rearrange(kernel, "i o (m p) (n q) -> (o p q) i m n", p=2, q=2).flip(2, 3)  # [O * 4, I, taps, taps]
    y = F.conv2d(x, kernel, layer.bias.repeat_interleave(4), padding=taps - 1)
    y = F.pixel_shuffle(y, 2)
    odd = size % 2  # the padded kernel row would add one output row
    return y[..., : y.shape[-2] - odd, : y.shape[-1] - odd]
