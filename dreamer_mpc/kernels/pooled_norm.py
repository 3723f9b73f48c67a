"""What follows a convolution of DreamerV3, max-pooling, bias, RMS norm over channels and SiLU, in one pass on a GPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.deferred import Deferred, leave, placeholders
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.kernels.upsampled import from_blocks, to_blocks

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import pooled_norm_triton as kernels
except ImportError:
    kernels = None


class PooledNorm(torch.autograd.Function):
    """[M, H, W, C] without its bias to [M, h, w, C], h = H / pool. Of equal numbers in a window the first counts.

    With `blocks`, x is [M, H / 2, W / 2, 4 C]; with `into_blocks`, the result is [M, h / 2, w / 2, 4 C]. With a `box`,
    bias and gain are as `Deferred` gives them.
    """

    @staticmethod
    def forward(ctx, x, bias, gain, eps, pool, blocks, into_blocks=False, box=None):
        x, ctx.box = x.contiguous(), box
        ctx.save_for_backward(x, bias, gain)
        ctx.settings = eps, pool, blocks, into_blocks
        return kernels.forward(x, bias, gain, *ctx.settings)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, *weights = ctx.saved_tensors
        of_x, parts = kernels.backward(g.contiguous(), x, *weights, *ctx.settings)
        if ctx.box is None:
            return of_x, *parts.sum(0), *[None] * 5
        leave(ctx.box, _total, parts)
        return of_x, *placeholders(tuple(weights)), *[None] * 5


def _total(parts: Float[Tensor, "P 2 C"]) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    return parts.sum(0).unbind()


def pooled_norm(
    x: Float[Tensor, "M C H W"], bias: Float[Tensor, " O"], norm: nn.RMSNorm, pool: int, blocks: bool = False,
    into_blocks: bool = False, aside: Aside | None = None,
) -> Float[Tensor, "M N h w"]:  # fmt: skip
    """The maximum of windows of `pool` pixels a side plus `bias`, its RMS norm over the channels of a pixel, and SiLU.

    The norm is computed in the precision of its gain. With `blocks`, x has 2x2 pixels side by side as channels, see
    `upsampled.from_blocks`; with `into_blocks`, so has the result. On a GPU, gradients of bias and gain are added up in
    `aside`, if given.
    """
    sides = all(side * (1 + blocks) % pool == 0 for side in x.shape[-2:])
    if fuses(x) and sides:
        weights, box = (bias, norm.weight), None
        if aside is not None:
            box = []
            with aside:
                weights = Deferred.apply(box, *weights)
        y = PooledNorm.apply(x.movedim(1, -1), *weights, norm.eps, pool, blocks, into_blocks, box)
        return y.movedim(-1, 1)
    x = from_blocks(x) if blocks else x
    x = F.max_pool2d(x, pool) if pool > 1 else x
    x = x + bias.to(x.dtype)[:, None, None]
    normed = norm(x.movedim(1, -1).to(norm.weight.dtype)).movedim(-1, 1)
    y = F.silu(normed.to(x.dtype))
    return to_blocks(y) if into_blocks else y


def fuses(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda
