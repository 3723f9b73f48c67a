"""RMS norm, gain and SiLU of DreamerV3's layers, in one pass over memory on a GPU; the same in torch elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import norm_triton as kernels
except ImportError:
    kernels = None


def norm_silu(
    x: Float[Tensor, "*K M N"], gain: Float[Tensor, "*K N"], eps: float, dtype: torch.dtype
) -> Float[Tensor, "*K M N"]:
    """SiLU of the RMS norm of rows times `gain`, computed in the precision of `gain` and given as `dtype`.

    With K members, each has a gain of its own.
    """
    if fuses(x):
        return kernels.norm_silu(x, gain, eps, dtype)
    return F.silu(F.rms_norm(x.to(gain.dtype), gain.shape[-1:], eps=eps) * gain[..., None, :]).to(dtype)


def norm_silu_backward(
    g: Float[Tensor, "*K M N"], x: Float[Tensor, "*K M N"], gain: Float[Tensor, "*K N"], eps: float,
    of_x: bool = True, of_gain: bool = True,
) -> tuple[Float[Tensor, "*K M N"] | None, Float[Tensor, "*K N"] | None]:  # fmt: skip
    """Gradients of `x`, in its precision, and of `gain`, of `g`, that of `norm_silu`; None for what is not wanted."""
    if fuses(x):
        return kernels.norm_silu_backward(g, x, gain, eps, of_x, of_gain)
    x_dtype, x, gain = x.dtype, x.to(gain.dtype), gain[..., None, :]
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    scaled = x * inverse
    s = torch.sigmoid(scaled * gain)
    dn = g * s * (1 + scaled * gain * (1 - s))
    dgain = (dn * scaled).sum(-2) if of_gain else None
    if not of_x:
        return None, dgain
    dn = dn * gain
    return (inverse * (dn - scaled * (dn * scaled).mean(-1, keepdim=True))).to(x_dtype), dgain


class NormSiLU(torch.autograd.Function):
    """`norm_silu` in the precision of x, or as `dtype`, with its gradients.

    On a GPU alone also that of x plus `bias`, shaped like `gain`.
    """

    @staticmethod
    def forward(ctx, x, gain, eps, bias=None, dtype=None):
        ctx.save_for_backward(x, gain, bias)
        ctx.eps = eps
        dtype = dtype or x.dtype
        return norm_silu(x, gain, eps, dtype) if bias is None else kernels.norm_silu(x, gain, eps, dtype, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, gain, bias = ctx.saved_tensors
        if bias is None:
            return *norm_silu_backward(g, x, gain, ctx.eps, *ctx.needs_input_grad[:2]), None, None, None
        of_x = ctx.needs_input_grad[0] or ctx.needs_input_grad[3]  # the gradient of the bias is a sum of that of x
        of_bias = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        dx, dgain, dbias = kernels.norm_silu_backward(g, x, gain, ctx.eps, of_x, of_bias, bias)
        return dx, dgain, None, dbias, None


def fuses(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`."""
    return kernels is not None and x.is_cuda
