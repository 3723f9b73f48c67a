"""Gradients of weights on a stream of their own, beside the way back to what a function was given."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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


def leave(box: list[Any], function: Callable[..., tuple[Tensor, ...]], *given: Any) -> None:
    """From a backward pass: the gradients of its weights are `function(*given)`."""
    box.append((function, *given))


def placeholders(weights: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients in the shapes of the weights, which nothing reads."""
    zero = weights[0].new_zeros(())
    return [zero.expand_as(weight) for weight in weights]
