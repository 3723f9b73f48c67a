"""The convolutions of encoder and decoder as dense products over 2x2 blocks of pixels.

A convolution of stride 2 reads blocks, a transposed one writes them. With a block's pixels side by side as channels
(`[M, h, w, 2 * 2 * C]`, channels last), both are convolutions of stride 1 with a quarter of the taps and four times the
channels, which run at several times the rate of the strided ones on a GPU. Where the output of one layer is already in
the blocks of the next one, no data is rearranged between them. The weights are those of the plain layers, rearranged;
the function is the same.
"""

import functools

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels import fused
from dreamer_mpc.kernels.fused import SAME, Layout, bias_act

UPSAMPLED_SIDE = 4  # pixels a side of a block of `upsample_blocks`


def convolve(
    x: Float[Tensor, "M h w I"],
    weight: Float[Tensor, "O k l I"],
    bias: Float[Tensor, " O"],
    padding: int = 0,
    side: int = 1,
    crop: int | None = None,
) -> Float[Tensor, "M H W N"]:
    """`F.conv2d` and ReLU, channels last; with `side`, into blocks, or with `crop`, out of them."""
    y = _product(x, weight, padding)
    m, height, width, channels = y.shape
    kind = "same" if side == 1 else "to_blocks" if crop is None else "from_blocks"
    layout = SAME if side == 1 else Layout(kind, height, width, side, crop or 1)
    out = bias_act(y.view(1, -1, channels), bias[None], "relu", layout)
    return out.view(m, height, width, channels) if side == 1 else out


def _product(x: Float[Tensor, "M h w I"], weight: Float[Tensor, "O k l I"], padding: int) -> Float[Tensor, "M H W O"]:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), padding=padding)
    return y.permute(0, 2, 3, 1).contiguous()


def image_convolution(image: Float[Tensor, "M H H C"], layer: nn.Conv2d) -> Float[Tensor, "M h h O4"]:
    """`layer` (4x4, stride 2) and ReLU on images of 64x64 as one dense product; blocks of the output.

    The output is 31 pixels wide; its last row and column are left out, because the next layer does not read them.
    """
    image = image.contiguous()
    weight = F.pad(rearrange(layer.weight, "o c k l -> o k (l c)"), (0, 16 - 4 * image.shape[-1])).flatten(1)
    if fused.on_gpu(image):
        return fused.ImageLayer.apply(image, weight.to(product_dtype(image)), layer.bias)
    patches = _patches(image)  # [M, h, h, 2, 2, 4, 16]
    y = F.linear(patches.view(-1, 64), weight)
    return bias_act(y[None], layer.bias[None], "relu").view(*patches.shape[:3], -1)


def _patches(image: Float[Tensor, "M H H C"]) -> Float[Tensor, "M h h 2 2 4 16"]:
    m, height, width, c = image.shape
    row, blocks = width * c, (height - 4) // 4
    shape = (m, blocks, blocks, 2, 2, 4, 4 * c)  # image, block, pixel in it, row of the kernel, the rest of it
    strides = (height * row, 4 * row, 4 * c, 2 * row, 2 * c, row, 1)
    return F.pad(image.as_strided(shape, strides), (0, 16 - 4 * c))


def block_convolution(x: Float[Tensor, "M h2 w2 I4"], layer: nn.Conv2d, to_blocks: bool) -> Float[Tensor, "M h w O"]:
    """`layer` (4x4, stride 2) and ReLU on blocks of its input: 2x2 taps, stride 1. The output may be in blocks too."""
    weight = rearrange(layer.weight, "o i (k p) (l q) -> o k l (p q i)", p=2, q=2)
    return convolve(x, weight, layer.bias, side=2 if to_blocks else 1)


def from_one_pixel(x: Float[Tensor, "M I"], layer: nn.ConvTranspose2d) -> Float[Tensor, "M K K O"]:
    """The transposed convolution `layer` and ReLU on one pixel: a dense layer."""
    side = layer.kernel_size[0]
    y = F.linear(x, rearrange(layer.weight, "i o k l -> (k l o) i")).view(1, -1, layer.out_channels)
    return bias_act(y, layer.bias[None], "relu").view(-1, side, side, layer.out_channels)


def upsample(x: Float[Tensor, "M h w I"], layer: nn.ConvTranspose2d, out_of_blocks: bool) -> Float[Tensor, "M H W O"]:
    """The transposed convolution `layer` (stride 2, no padding) and ReLU; its output in blocks, or out of them.

    Output pixel 2i + p takes x[i - m] times kernel[2m + p]: each of a block's pixels is a convolution with every second
    kernel entry, reversed. An odd kernel is padded, so its blocks have a row and a column too many, which are cropped.
    """
    size = layer.kernel_size[0]
    taps = (size + 1) // 2
    kernel = F.pad(layer.weight, (0, size % 2, 0, size % 2))
    kernel = rearrange(kernel, "i o (m p) (n q) -> (p q o) m n i", p=2, q=2).flip(1, 2)
    blocks = {"side": 2, "crop": 2 * x.shape[1] + size - 2} if out_of_blocks else {}
    return convolve(x, kernel, layer.bias.repeat(4), padding=taps - 1, **blocks)


def upsample_blocks(x: Float[Tensor, "M h2 w2 I4"], layer: nn.ConvTranspose2d) -> Float[Tensor, "M H W O"]:
    """The transposed convolution `layer` (6x6, stride 2, no padding) on blocks of 2x2, through blocks of 4x4."""
    y = upsampled_product(x, layer)
    m, height, width, channels = y.shape
    layout = Layout("from_blocks", height, width, UPSAMPLED_SIDE, UPSAMPLED_SIDE * height)
    return bias_act(y.view(1, -1, channels), layer.bias.repeat(UPSAMPLED_SIDE**2)[None], "none", layout)


def upsampled_product(x: Float[Tensor, "M h2 w2 I4"], layer: nn.ConvTranspose2d) -> Float[Tensor, "M h w O16"]:
    """What `upsample_blocks` adds a bias to, in its blocks of 4x4.

    Row u = 2s + p of an output block takes row v = r - 2 (r = 0, 1 of the block above, 2, 3 of this one) times
    kernel[2m + p] with m = s - v, where that lies in the kernel.
    """
    rows = _kernel_rows(x.device)
    kernel = F.pad(layer.weight, (0, 1, 0, 1)).index_select(2, rows).index_select(3, rows)
    kernel = rearrange(kernel, "i o (u a p) (v b q) -> (u v o) a b (p q i)", u=4, v=4, a=2, b=2)
    return _product(x, kernel, padding=1)


@functools.cache  # computed once, because a captured graph cannot copy it from the host
def _kernel_rows(device: torch.device) -> Tensor:
    """Kernel row of each (output row u, input row r) of `upsample_blocks`; 6 is a row of zeros."""
    taps = [(s - (r - 2), p) for s in (0, 1) for p in (0, 1) for r in range(4)]
    return torch.tensor([2 * m + p if 0 <= m <= 2 else 6 for m, p in taps], device=device)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which autocast computes products; the tensor's own dtype without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
