"""What follows a convolution of DreamerV3, max-pooling, bias, RMS norm over channels and SiLU, in one pass on a GPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import pooled_norm_triton as kernels
except ImportError:
    kernels = None


class PooledNorm(torch.autograd.Function):
    """[M, H, W, C] without its bias to [M, H / pool, W / pool, C]. Of equal numbers in a window the first counts."""

    @staticmethod
    def forward(ctx, x, bias, gain, eps, pool):
        x = x.contiguous()
        ctx.save_for_backward(x, bias, gain)
        ctx.settings = eps, pool
        return kernels.forward(x, bias, gain, eps, pool)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return *kernels.backward(g.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None


def pooled_norm(
    x: Float[Tensor, "M C H W"], bias: Float[Tensor, " C"], norm: nn.RMSNorm, pool: int
) -> Float[Tensor, "M C h w"]:
    """The maximum of windows of `pool` pixels a side plus `bias`, its RMS norm over the channels of a pixel, and SiLU.

    The norm is computed in the precision of its gain.
    """
    sides = all(side % pool == 0 for side in x.shape[-2:])
    if kernels is not None and x.is_cuda and sides:
        y = PooledNorm.apply(x.movedim(1, -1), bias, norm.weight, norm.eps, pool)
        return y.movedim(-1, 1)
    x = F.max_pool2d(x, pool) if pool > 1 else x
    x = x + bias.to(x.dtype)[:, None, None]
    normed = norm(x.movedim(1, -1).to(norm.weight.dtype)).movedim(-1, 1)
    return F.silu(normed.to(x.dtype))
