"""Gradients of a loss through a cut: first back to what a network inferred, then from there to its parameters.

What lies behind the cut can begin before the gradients of other losses in the inferred tensors are there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Cut:
    """What a network inferred, perhaps in several parts, and copies without history for losses.

    For each part, `copy` makes the copies, of tensors in named tuples, lists or dicts, and `back` takes its loss. Then
    `through` goes on from the gradients in all copies to the parameters of `network`.
    """

    def __init__(self, network: nn.Module):
        self._names, self._parameters = zip(*network.named_parameters(), strict=True)
        self._near: list[Tensor | None] = [None] * len(self._names)  # gradients on this side of the cut
        self._leaves: list[Tensor] = []
        self._weights: list[Tensor | None] = []  # the gradients in the leaves

    def copy(self, inferred: Any) -> Any:
        """The same without history, for a loss."""
        leaves, spec = pytree.tree_flatten(inferred)
        self._copies = [_copy(x) for x in leaves]
        self._leaves += [x for x in leaves if _differentiable(x)]
        return pytree.tree_unflatten(self._copies, spec)

    def back(self, loss: Float[Tensor, ""]) -> None:
        """The gradients of the parameters that the loss of the last copies itself uses, and of those."""
        inputs = [x for x in self._copies if _differentiable(x)]
        found = torch.autograd.grad(loss, [*self._parameters, *inputs], allow_unused=True)
        count = len(self._parameters)
        self._near = _sums(self._near, found[:count])
        self._weights += found[count:]

    def through(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """All gradients of the parameters, in their order; `gradients` in the inferred `tensors` count in addition."""
        more = {id(tensor): gradient for tensor, gradient in zip(tensors, gradients, strict=True)}
        weights = [_sum(weight, more.get(id(leaf))) for leaf, weight in zip(self._leaves, self._weights, strict=True)]
        used = [i for i, weight in enumerate(weights) if weight is not None]
        outputs, weights = [self._leaves[i] for i in used], [weights[i] for i in used]
        far = torch.autograd.grad(outputs, self._parameters, weights, allow_unused=True)
        found = _sums(self._near, far)
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


def _sums(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """`_sum` of each pair, in few launches."""
    found = [b if a is None else a for a, b in zip(first, second, strict=True)]
    both = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a is not None and b is not None]
    if both:
        for i, total in zip(both, torch._foreach_add([first[i] for i in both], [second[i] for i in both]), strict=True):
            found[i] = total
    return found
