"""Lambda-returns in one launch each way on a GPU, where a loop has an operation or more in each step."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import returns_triton as kernels
except ImportError:
    kernels = None

LONGEST = 256  # steps, which a program reads at once


class LambdaReturn(torch.autograd.Function):
    """`agents.returns.lambda_return` of rewards and values [T, *]; `continues` may be None."""

    @staticmethod
    def forward(ctx, r_t, v_tp1, discount, lambda_, continues):
        r_t, v_tp1 = r_t.contiguous(), v_tp1.contiguous()
        continues = None if continues is None else continues.contiguous()
        returns = kernels.forward(r_t, v_tp1, continues, discount, lambda_)
        ctx.save_for_backward(v_tp1, continues, returns)
        ctx.settings = discount, lambda_
        return returns

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        of_r, of_v, of_continues = kernels.backward(g.contiguous(), *ctx.saved_tensors, *ctx.settings)
        return of_r, of_v, None, None, of_continues


def fuses(r_t: Float[Tensor, "T *b"]) -> bool:
    """Whether the kernels take such rewards."""
    fits = kernels is not None and r_t.is_cuda and r_t.dtype == torch.float32
    return fits and 0 < len(r_t) <= LONGEST and r_t.numel() > 0
