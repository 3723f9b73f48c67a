"""Gradients of weights on a stream of their own, beside the way back to what a function was given."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils import _pytree as pytree


class Deferred(torch.autograd.Function):
    """`weights` for a function whose backward pass leaves in `box` how to compute their gradients, and from what.

    Autograd runs a backward pass on the stream of its forward pass: on that of this call, not on the function's. The
    function itself gives `placeholders` for these gradients. `box` is a list; what is in it is `function, *arguments`.
    """

    @staticmethod
    def forward(ctx, box, *weights):
        ctx.box = box
        return tuple(weight.view_as(weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *_):
        function, *given = ctx.box.pop()
        for x in pytree.tree_leaves(given):
            if isinstance(x, Tensor) and x.is_cuda:
                x.record_stream(torch.cuda.current_stream(x.device))  # its memory is not to be reused before
        return None, *function(*given)


class Once:
    """What depends on weights alone, for several calls with the same ones: made at the first of them, on its stream."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def __call__(self, key: Any, make: Callable[[], Any]) -> Any:
        """What the first `make` with this key gave."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def leave(box: list[Any], function: Callable[..., tuple[Tensor, ...]], *given: Any) -> None:
    """From a backward pass: the gradients of its weights are `function(*given)`."""
    box.append((function, *given))


def placeholders(weights: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients in the shapes of the weights, which nothing reads."""
    anything = weights[0].new_empty(())
    return [anything.expand_as(weight) for weight in weights]


class Linear(torch.autograd.Function):
    """`F.linear` of x [*, I], whose weight [O, I] and bias [O] `Deferred` gives, with its `box`; of one precision."""

    @staticmethod
    def forward(ctx, x, weight, bias, box):
        ctx.save_for_backward(x, weight)
        ctx.box = box
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        leave(ctx.box, _of_linear, g.flatten(0, -2), x.flatten(0, -2))
        of_x = g @ weight if ctx.needs_input_grad[0] else None
        return of_x, *placeholders((weight, weight[:, 0])), None


def _of_linear(g: Float[Tensor, "M O"], x: Float[Tensor, "M I"]) -> tuple[Float[Tensor, "O I"], Float[Tensor, " O"]]:
    return g.t() @ x, g.sum(0)


class Convolution(torch.autograd.Function):
    """`F.conv2d` of x [M, I, H, W] without a bias, whose weight [O, I, k, k] `Deferred` gives, with its `box`."""

    @staticmethod
    def forward(ctx, x, weight, box, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.box, ctx.settings = box, (list(stride), list(padding), [1, 1], False, [0, 0], 1)
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        leave(ctx.box, _of_weight, g, x, weight, ctx.settings)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(g, x, weight, None, *ctx.settings, [True, False, False])[0]
        return of_x, *placeholders((weight,)), None, None, None


def _of_weight(g: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> tuple[Tensor]:
    return (torch.ops.aten.convolution_backward(g, x, weight, None, *settings, [False, True, False])[1],)
