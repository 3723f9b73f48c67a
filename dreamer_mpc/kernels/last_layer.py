"""The last layers of DreamerV3's heads on a GPU: products in fp32 (TF32) of few outputs and many rows."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST = 8  # rows of so many numbers, or a multiple, are aligned for tensor cores; others run on slow kernels
MANY = 512  # rows of a product whose terms are rows


class LastLayer(torch.autograd.Function):
    """K linear layers [K, R, O] of x [K, R, I], weight [K, I, O] and bias [K, O].

    The bias is added in the product; `baddbmm` would first write it to every row. The gradient of the weights has as
    many terms as there are rows, for a few blocks of outputs: it is products of parts of the rows side by side.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        out = x.new_empty(*x.shape[:2], weight.shape[2])
        for member in range(len(x)):
            torch.addmm(bias[member], x[member], weight[member], out=out[member])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            dx = torch.bmm(g, weight.mT) if of_x else None
            dweight = _over_rows(x, g) if of_weight else None
        return dx, dweight, g.sum(1) if of_bias else None


def _over_rows(x: Float[Tensor, "K R I"], g: Float[Tensor, "K R O"]) -> Float[Tensor, "K I O"]:
    """The sum over rows of the products of each number of x with each of g."""
    members, rows = x.shape[:2]
    parts = max((n for n in range(1, rows // MANY + 1) if rows % n == 0), default=1)
    x, g = (t.reshape(members * parts, rows // parts, -1) for t in (x, g))
    return torch.bmm(x.mT, g).unflatten(0, (members, parts)).sum(1)


def last_layer(
    x: Float[Tensor, "K R I"], weight: Float[Tensor, "K I O"], bias: Float[Tensor, "K O"], filled: bool
) -> Float[Tensor, "K R W"]:
    """`LastLayer`; `filled`: with outputs of 0 after the others, so that W is O rounded up to a multiple of `LEAST`."""
    missing = -weight.shape[-1] % LEAST if filled else 0
    if missing:
        weight, bias = F.pad(weight, (0, missing)), F.pad(bias, (0, missing))
    return LastLayer.apply(x, weight, bias)
