"""Pixels as the first convolution on blocks wants them (`upsampled.blocked_convolution`), in one pass on a GPU."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import pixels_triton as kernels
except ImportError:
    kernels = None


def centred(image: UInt8[Tensor, "*b H W C"], dtype: torch.dtype) -> Float[Tensor, "*b H W C"]:
    """Pixels in [-0.5, 0.5]."""
    return image.to(dtype) / 255 - 0.5


def centred_blocks(image: UInt8[Tensor, "M H W C"], row: int, dtype: torch.dtype) -> Float[Tensor, "M h w 2 R"]:
    """`centred` pixels in blocks of 2x2, their rows of 2 C numbers filled up with zeros to R = `row`."""
    if fuses(image):
        return kernels.centred_blocks(image.contiguous(), row, dtype)
    return in_blocks(centred(image, torch.float32), row, dtype)


def in_blocks(x: Float[Tensor, "M H W C"], row: int, dtype: torch.dtype) -> Float[Tensor, "M h w 2 R"]:
    """Blocks of 2x2 pixels, their rows of 2 C numbers filled up with zeros to R = `row`."""
    images, height, width, channels = x.shape
    x = x.to(dtype).reshape(images, height // 2, 2, width // 2, 2 * channels).transpose(2, 3)
    return F.pad(x, (0, row - 2 * channels))


def fuses(image: Tensor) -> bool:
    """Whether the kernel can run on the device of `image`."""
    return kernels is not None and image.is_cuda
