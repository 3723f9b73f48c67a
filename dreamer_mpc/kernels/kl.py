"""The KL divergence of diagonal Gaussians in one pass over memory each way on a GPU; see `world_model.rssm`."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import kl_triton as kernels
except ImportError:
    kernels = None


def fuses(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda and x.dtype == torch.float32


class GaussianKL(torch.autograd.Function):
    """KL(p || q) [*] of means and standard deviations [*, Z]: apply(p.mean, p.std, q.mean, q.std)."""

    @staticmethod
    def forward(ctx, *given):
        rows = [x.detach().reshape(-1, x.shape[-1]) for x in given]  # views, where means are parts of wider rows
        rows = [x if x.stride(1) == 1 else x.contiguous() for x in rows]
        ctx.save_for_backward(*rows)
        ctx.shape = given[0].shape
        return kernels.forward(*rows).view(ctx.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        grads = kernels.backward(g.reshape(-1), *ctx.saved_tensors)
        return tuple(grad.view(ctx.shape) for grad in grads)
