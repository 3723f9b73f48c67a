"""Latent states to images."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.blocks import from_one_pixel, upsample, upsample_blocks


class Decoder(nn.Module):
    """Dense layer, then transposed convolutions 5-5-6-6 of stride 2 with ReLU (paper, Table 18).

    [*, S] -> [*, 3, 64, 64], the mean of a unit-variance Gaussian. With `kernels`, in blocks of pixels (`blocks.py`);
    without, by the plain layers, which are the reference.
    """

    def __init__(
        self, state: int, hidden: int = 1024, channels: Sequence[int] = (128, 64, 32), kernels: bool = True
    ):
        super().__init__()
        self.dense = nn.Linear(state, hidden)
        sizes = [hidden, *channels, 3]
        layers = zip(pairwise(sizes), (5, 5, 6, 6), strict=True)
        self.layers = nn.ModuleList(nn.ConvTranspose2d(i, o, k, stride=2) for (i, o), k in layers)
        self.kernels = kernels

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b 3 64 64"]:
        x = self.dense(state.reshape(-1, state.shape[-1]))
        x = self._in_blocks(x) if self.kernels else self._plain(x)
        return x.view(*state.shape[:-1], *x.shape[1:])

    def _plain(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M 3 64 64"]:
        *layers, last = self.layers
        x = x[:, :, None, None]
        for layer in layers:
            x = F.relu(layer(x))
        return last(x)

    def _in_blocks(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M 3 64 64"]:
        first, second, third, last = self.layers
        x = upsample(from_one_pixel(x, first), second, out_of_blocks=True)  # 5 pixels a side, then 13
        x = upsample(x, third, out_of_blocks=False)  # blocks of 30x30 pixels
        return upsample_blocks(x, last).permute(0, 3, 1, 2)
