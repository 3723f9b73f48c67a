"""What follows the last product of DreamerV3's decoder in training, in one pass over memory on a GPU.

Bias, sigmoid, and the squared distance to the image, summed over a frame.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamer_mpc.kernels.upsampled import from_blocks

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import image_error_triton as kernels
except ImportError:
    kernels = None


class ImageError(torch.autograd.Function):
    """[M] of a product in blocks without its bias [M, h, w, N] (`upsampled_blocks`), bias [O], images [M, H, W, O]."""

    @staticmethod
    def forward(ctx, y, bias, target):
        y = y.contiguous()
        ctx.save_for_backward(y, bias, target)
        return kernels.forward(y, bias, target)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *kernels.backward(g.contiguous(), *ctx.saved_tensors), None


def image_error(
    y: Float[Tensor, "M N h w"], bias: Float[Tensor, " O"], target: Float[Tensor, "M O H W"]
) -> Float[Tensor, " M"]:
    """The squared error of sigmoid(y + bias), summed over each image, of a product in blocks, y."""
    if fuses(y):
        return ImageError.apply(y.movedim(1, -1), bias, target.movedim(1, -1).contiguous())
    y = from_blocks(y, len(bias)).to(target.dtype) + bias[:, None, None]
    return (y.sigmoid() - target).square().sum(dim=(-3, -2, -1))


def fuses(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda
