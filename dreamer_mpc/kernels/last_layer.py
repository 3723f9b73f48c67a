"""The last layers of DreamerV3's heads on a GPU: products in fp32 (TF32) of few outputs and many rows."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST = 8  # rows of so many numbers, or a multiple, are aligned for tensor cores; others run on slow kernels
MANY = 512  # rows of a product whose terms are rows


class LastLayer(torch.autograd.Function):
    """K linear layers [K, R, O] of x [K, R, I], weight [K, I, O] and bias [K, O].

    With `order` [W] the outputs are [K, R, W], of the columns that it names; weights get the gradients of what is at
    `place` [O] alone. See `Pairs`.
    The bias is added in the product; `baddbmm` would first write it to every row. The gradient of the weights has as
    many terms as there are rows, for a few blocks of outputs: it is products of parts of the rows side by side.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, order, place):
        if order is not None:
            weight, bias = weight.index_select(2, order), bias.index_select(1, order)
        ctx.save_for_backward(x, weight, place)
        out = x.new_empty(*x.shape[:2], weight.shape[2])
        for member in range(len(x)):
            torch.addmm(bias[member], x[member], weight[member], out=out[member])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x, weight, place), (of_x, of_weight, of_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            dx = torch.bmm(g, weight.mT) if of_x else None
            dweight = _over_rows(x, g) if of_weight else None
        dbias = g.sum(1) if of_bias else None
        if place is not None:
            dweight = None if dweight is None else dweight.index_select(2, place)
            dbias = None if dbias is None else dbias.index_select(1, place)
        return dx, dweight, dbias, None, None


def _over_rows(x: Float[Tensor, "K R I"], g: Float[Tensor, "K R O"]) -> Float[Tensor, "K I O"]:
    """The sum over rows of the products of each number of x with each of g."""
    members, rows = x.shape[:2]
    parts = max((n for n in range(1, rows // MANY + 1) if rows % n == 0), default=1)
    x, g = (t.reshape(members * parts, rows // parts, -1) for t in (x, g))
    return torch.bmm(x.mT, g).unflatten(0, (members, parts)).sum(1)


class Pairs(nn.Module):
    """An order in which each output has its mirror image beside it: the first and the last, the second and ...

    Outputs of bins that were never a target have equal gradients, and equal weights as long as products sum their terms
    in the same order. That order can change from one block of columns to another: far apart, mirror images differed in
    the last digits, and with bins at 4.9e8 these digits were most of what a young head of DreamerV3 read.
    What follows, up to a multiple of `LEAST` and at least one, repeats the first output.
    """

    order: Int64[Tensor, " W"]  # the output in each place
    place: Int64[Tensor, " O"]  # of each output

    def __init__(self, outputs: int):
        super().__init__()
        places = torch.arange(outputs)
        order = torch.where(places % 2 == 0, places // 2, outputs - 1 - places // 2)
        filled = torch.cat([order, order.new_zeros(LEAST - outputs % LEAST)])
        self.register_buffer("order", filled, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)


def last_layer(
    x: Float[Tensor, "K R I"],
    weight: Float[Tensor, "K I O"],
    bias: Float[Tensor, "K O"],
    pairs: Pairs | None = None,
) -> Float[Tensor, "K R W"]:
    """`LastLayer`, in the order of `pairs`."""
    order, place = (pairs.order, pairs.place) if pairs is not None else (None, None)
    return LastLayer.apply(x, weight, bias, order, place)
