"""Pixels as the first convolution on blocks wants them (`upsampled.blocked_weight`), in one pass on a GPU."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreamer_mpc.kernels.upsampled import LEAST, to_blocks

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import pixels_triton as kernels
except ImportError:
    kernels = None


def centred(image: UInt8[Tensor, "*b H W C"], dtype: torch.dtype) -> Float[Tensor, "*b H W C"]:
    """Pixels in [-0.5, 0.5]."""
    return image.to(dtype) / 255 - 0.5


def centred_blocks(image: UInt8[Tensor, "M H W C"], dtype: torch.dtype) -> Float[Tensor, "M R2 h w"]:
    """`centred` pixels in blocks of 2x2 as channels, see `to_blocks`, for products of numbers of type `dtype`."""
    if not fuses(image):
        return to_blocks(centred(image, torch.float32).movedim(-1, 1)).to(dtype)
    row = 2 * image.shape[-1] + -2 * image.shape[-1] % LEAST
    return kernels.centred_blocks(image.contiguous(), row, dtype).flatten(-2).movedim(-1, 1)


def fuses(image: Tensor) -> bool:
    """Whether the kernel can run on the device of `image`."""
    return kernels is not None and image.is_cuda
