"""Images to embeddings, with DreamerV3's convolutions."""

from collections.abc import Sequence
from itertools import pairwise, zip_longest

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.blocks import product_dtype
from dreamer_mpc.kernels.deferred import Convolution, Deferred, Once
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.kernels.pixels import centred, centred_blocks
from dreamer_mpc.kernels.pooled_norm import fuses, pooled_norm
from dreamer_mpc.kernels.upsampled import blocked_weight, prefers_blocks, upsampled_blocks
from dreamer_mpc.networks.norm_mlp import NORM_EPS, init_weight
from dreamer_mpc.world_model.config import Downsampling
from dreamer_mpc.world_model.protocol import ImageForm

KERNEL = 5


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 5x5 convolution with DreamerV3's initial values; of stride 1 it keeps the size, of stride 2 it halves it."""
    layer = nn.Conv2d(inputs, outputs, KERNEL, stride, padding=KERNEL // 2)
    init_weight(layer.weight, inputs * KERNEL**2)
    nn.init.zeros_(layer.bias)
    return layer


class NormConvolution(nn.Module):
    """Convolution, max-pooling of windows of `pool` pixels a side, RMSNorm over the channels of a pixel, SiLU.

    With `up` the convolution sees the image at twice its size.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, pool: int = 1, up: bool = False):
        super().__init__()
        self.convolution = convolution(inputs, outputs, stride)
        self.norm = nn.RMSNorm(outputs, eps=NORM_EPS)
        self.pool, self.up = pool, up

    def forward(
        self,
        x: Float[Tensor, "M I H W"],
        blocks: bool = False,
        into_blocks: bool = False,
        aside: Aside | None = None,
        once: Once | None = None,
    ) -> Float[Tensor, "M O h w"]:
        """With `blocks`, x has 2x2 pixels side by side as channels; with `into_blocks`, so has the result.

        `blocks` needs `aside`: a GPU does there what concerns weights alone, their rearrangement, `once` for several
        calls, and their gradients.
        """
        layer = self.convolution
        if self.up:
            x = upsampled_blocks(x, layer)
        elif aside is not None:
            settings = ((1, 1), (1, 1)) if blocks else (layer.stride, layer.padding)
            box = []
            with aside:
                (weight,) = Deferred.apply(box, (once or Once())(self, lambda: self._weight(x, blocks)))
            aside.mark().join(weight)
            x = Convolution.apply(x, weight, box, *settings)
        else:
            x = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
        return pooled_norm(x, layer.bias, self.norm, self.pool, self.up or blocks, into_blocks, aside)

    def _weight(self, x: Float[Tensor, "M I H W"], blocks: bool) -> Float[Tensor, "..."]:
        """Of the product with x, in its precision."""
        return (blocked_weight(x, self.convolution) if blocks else self.convolution.weight).to(x.dtype)


class NormEncoder(nn.Module):
    """Four 5x5 convolutions, each halving the map, with RMSNorm and SiLU (DreamerV3), of centred pixels.

    [*, H, W, C] -> [*, E], E = 16 * channels[-1] for images of 64 pixels a side. "max-pool" is DreamerV3's default,
    "strided" its option of stride 2; there, windows are centred at even pixels (padding 2 on both sides), in its code
    at odd ones (padding 1 and 2).
    """

    def __init__(
        self, channels: Sequence[int], downsampling: Downsampling = "max-pool", images: ImageForm = ImageForm()
    ):
        super().__init__()
        halving = {"stride": 2} if downsampling == "strided" else {"pool": 2}
        sizes = [images.shape[-1], *channels]
        self.layers = nn.Sequential(*(NormConvolution(i, o, **halving) for i, o in pairwise(sizes)))
        side = images.size
        for _ in channels:
            side = (side + (downsampling == "strided")) // 2  # 64 -> 32 -> 16 -> 8 -> 4 pixels
        self.outputs = side**2 * channels[-1]

    def forward(self, image: UInt8[Tensor, "*b H W C"], once: Once | None = None) -> Float[Tensor, "*b E"]:
        """`once` is for several calls with the same weights."""
        x, side, weight = image.reshape(-1, *image.shape[-3:]), image.shape[-2], self.layers[0].convolution.weight
        blocks = fuses(x) and self._blocks(side, self.layers[0])
        aside = Aside(x.device, "encoder") if fuses(x) else None
        dtype = product_dtype(weight) if fuses(x) else weight.dtype
        x = centred_blocks(x, dtype) if blocks else centred(x, weight.dtype).movedim(-1, 1).to(dtype)
        for layer, after in zip_longest(self.layers, self.layers[1:]):
            side //= 2
            into = fuses(x) and after is not None and self._blocks(side, after)
            x, blocks = layer(x, blocks, into, aside, once), into
        return x.reshape(*image.shape[:-3], self.outputs)

    @staticmethod
    def _blocks(side: int, layer: NormConvolution) -> bool:
        """Whether a layer sees its map, of `side` pixels a side, in blocks of 2x2 pixels."""
        return layer.pool == 2 and prefers_blocks(layer.convolution, side)
