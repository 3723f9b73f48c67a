"""Gradients of a loss through a cut: first back to what a network inferred, then from there to its parameters.

What lies behind the cut can begin before the gradients of other losses in the inferred tensors are there.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Cut:
    """`inferred`, tensors in named tuples, lists or dicts, and `copy`, the same without history, for a loss.

    `back` takes the loss, `through` goes on from the gradients in the copies to the parameters of `network`.
    """

    def __init__(self, inferred: Any, network: nn.Module):
        self._leaves, spec = pytree.tree_flatten(inferred)
        self._copies = [_copy(x) for x in self._leaves]
        self.copy = pytree.tree_unflatten(self._copies, spec)
        self._names, self._parameters = zip(*network.named_parameters(), strict=True)

    def back(self, loss: Float[Tensor, ""]) -> None:
        """The gradients of the parameters that the loss itself uses, and of the copies."""
        inputs = [x for x in self._copies if _differentiable(x)]
        found = torch.autograd.grad(loss, [*self._parameters, *inputs], allow_unused=True)
        count = len(self._parameters)
        of_copies = iter(found[count:])
        self._near = found[:count]
        self._weights = [next(of_copies) if _differentiable(copy) else None for copy in self._copies]

    def through(self, tensor: Tensor, gradient: Tensor | None) -> tuple[Tensor, ...]:
        """All gradients of the parameters, in their order; `gradient` in the inferred `tensor` counts in addition."""
        outputs, weights = [], []
        for leaf, weight in zip(self._leaves, self._weights, strict=True):
            if leaf is tensor:
                weight = _sum(weight, gradient)
            if weight is not None:
                outputs.append(leaf)
                weights.append(weight)
        far = torch.autograd.grad(outputs, self._parameters, weights, allow_unused=True)
        found = [_sum(*pair) for pair in zip(self._near, far, strict=True)]
        for name, of in zip(self._names, found, strict=True):
            if of is None:
                raise ValueError(f"the loss does not depend on the parameter {name}")
        return tuple(found)


def _differentiable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _copy(x: Any) -> Any:
    return x.detach().requires_grad_() if _differentiable(x) else x


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
