"""What follows the last product of a decoder in training, in one pass over memory on a GPU.

Bias, for DreamerV3 a sigmoid, and the squared distance to the image, summed over a frame.
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
    """[M] of a product without its bias in blocks of side x side [M, h, w, N], bias [O], images [M, H, W, O]."""

    @staticmethod
    def forward(ctx, y, bias, target, side, sigmoid):
        y, ctx.settings = y.contiguous(), (side, sigmoid)
        ctx.save_for_backward(y, bias, target)
        return kernels.forward(y, bias, target, *ctx.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *kernels.backward(g.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None, None


def image_error(
    y: Float[Tensor, "M N h w"],
    bias: Float[Tensor, " O"],
    target: Float[Tensor, "M O H W"],
    side: int = 2,
    sigmoid: bool = True,
) -> Float[Tensor, " M"]:
    """The squared error of y + bias, or of its sigmoid, summed over each image, of a product y in blocks."""
    if fuses(y):
        return ImageError.apply(y.movedim(1, -1), bias, target.movedim(1, -1).contiguous(), side, sigmoid)
    y = from_blocks(y, len(bias), side).to(target.dtype) + bias[:, None, None]
    return ((y.sigmoid() if sigmoid else y) - target).square().sum(dim=(-3, -2, -1))


def fuses(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda
