"""Expectations and cross-entropies of distributions over bins, in one pass over the logits on a GPU."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import two_hot_triton as kernels
except ImportError:
    kernels = None


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy [K, R] of logits [K, R, W] to targets [K, R] over `bins`, see `TwoHot.loss`.

    Plus `weight` times that to `second`, if given. Targets are constants.
    """

    @staticmethod
    def forward(ctx, logits, target, second, bins, weight):
        out, logs = kernels.loss(logits, target, second, bins, weight)
        ctx.save_for_backward(logits, target, second, bins, logs)
        ctx.weight = weight
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return kernels.loss_backward(g.contiguous(), *ctx.saved_tensors, ctx.weight), *[None] * 4


def cross_entropy(
    logits: Float[Tensor, "*b W"], target: Float[Tensor, "*t"], second: Float[Tensor, "*s"] | None,
    bins: Float[Tensor, " N"], weight: float,
) -> Float[Tensor, "*c"]:  # fmt: skip
    """`CrossEntropy` of any shapes that can be broadcast. What is behind the first N of W logits is ignored."""
    targets = [target] if second is None else [target, second]
    shape = torch.broadcast_shapes(logits.shape[:-1], *(t.shape for t in targets))
    rows = members(logits.expand(*shape, logits.shape[-1]))
    target, *others = (t.detach().expand(shape).reshape(rows.shape[:2]).contiguous() for t in targets)
    return CrossEntropy.apply(rows, target, *(others or [None]), bins, weight).view(shape)


def expectation(logits: Float[Tensor, "*b W"], values: Float[Tensor, " N"]) -> Float[Tensor, "*b"]:
    """The mean of `values`, which are antisymmetric, under softmax(logits); exactly 0 for symmetric logits.

    What is behind the first N of W logits is ignored. Without gradient.
    """
    return kernels.expectation(members(logits.detach()), values).view(logits.shape[:-1])


def members(x: Float[Tensor, "*b N"]) -> Float[Tensor, "K R N"]:
    """Rows in K groups, each contiguous: a view where the first of several dimensions alone is apart."""
    x = x.flatten(1, -2) if x.dim() > 2 else x.reshape(1, -1, x.shape[-1])
    return x if x[0].is_contiguous() else x.contiguous()


def fuses(x: Tensor) -> bool:
    """Whether the kernels take `x`."""
    return kernels is not None and x.is_cuda and x.dtype == torch.float32 and x.numel() > 0
