"""Latent states to images, with DreamerV3's convolutions."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from dreamer_mpc.kernels.image_error import fuses, image_error
from dreamer_mpc.kernels.upsampled import LEAST, upsampled_blocks, upsampled_convolution
from dreamer_mpc.networks.block_linear import BlockLinear
from dreamer_mpc.networks.norm_mlp import NORM_EPS, NormLayer, norm_linear, norm_silu
from dreamer_mpc.world_model.norm_encoder import NormConvolution, convolution
from dreamer_mpc.world_model.protocol import ImageForm

SIDE, DOUBLINGS = 4, 4  # pixels a side of the first map of an image of 64, and how often a map doubles up to the image


class NormDecoder(nn.Module):
    """A first map of 4x4 pixels, then 5x5 convolutions, each after an upsampling: [*, S] -> [*, C, H, W] in [0, 1].

    The first map has `dense` numbers, dense / 16 channels: a block-linear layer of `deter`, whose blocks give a part of
    the channels each, plus a perceptron of `stoch` with one hidden layer of `width` units (DreamerV3's default
    decoder for images). Larger images have a larger first map with as many channels; where it leads to more pixels
    than the image has (84 pixels a side), the borders are cut off.
    """

    def __init__(
        self,
        deter: int,
        stoch: int,
        width: int,
        blocks: int,
        dense: int,
        channels: Sequence[int],
        images: ImageForm = ImageForm(),
    ):
        super().__init__()
        self.deter, self.stoch, self.blocks, self.images = deter, stoch, blocks, images
        self.side = -(-images.size // 2**DOUBLINGS)
        self.border = (self.side * 2**DOUBLINGS - images.size) // 2
        depth = dense // SIDE**2
        dense = depth * self.side**2
        self.from_deter = BlockLinear(blocks, deter // blocks, dense // blocks)
        self.from_stoch = nn.Sequential(NormLayer(stoch, width), norm_linear(width, dense))
        self.norm = nn.RMSNorm(depth, eps=NORM_EPS)
        self.layers = nn.ModuleList(NormConvolution(i, o, up=True) for i, o in pairwise([depth, *channels]))
        self.last = convolution(channels[-1], images.shape[-1])

    def forward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b C H W"]:
        x = upsampled_convolution(self._last_map(state), self.last)
        if self.border:
            x = x[..., self.border : -self.border, self.border : -self.border]
        return x.to(self.norm.weight.dtype).sigmoid().view(*state.shape[:-1], *x.shape[1:])

    def error(
        self, state: Float[Tensor, "*b S"], image: Float[Tensor, "*b C H W"]
    ) -> Float[Tensor, "*b"]:
        """The squared error of the images of states, summed over a frame."""
        if not fuses(state) or self.images != ImageForm():
            return (self(state) - image).square().sum(dim=(-3, -2, -1))
        y = upsampled_blocks(self._last_map(state), self.last, least=LEAST)
        return image_error(y, self.last.bias, image.flatten(0, -4)).view(state.shape[:-1])

    def _last_map(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "M C h w"]:
        x = self._first_map(state.reshape(-1, state.shape[-1]))
        for layer in self.layers:
            x = layer(x)
        return x

    def _first_map(self, state: Float[Tensor, "M S"]) -> Float[Tensor, "M C h w"]:
        deter, stoch = state.split([self.deter, self.stoch], dim=-1)
        x = self.from_deter(deter.unflatten(-1, (self.blocks, -1)))  # [M, G, 16 * C / G]
        x = x.unflatten(-1, (self.side**2, -1)).transpose(1, 2).flatten(2)  # [M, 16, C]
        x = x + self.from_stoch(stoch).view_as(x)
        x = norm_silu(self.norm, x)
        return x.transpose(1, 2).unflatten(-1, (self.side, self.side))  # a view: pixels stay the outer dimension
