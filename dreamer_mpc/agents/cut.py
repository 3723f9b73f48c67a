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
    """`inferred`, tensors in named tuples, lists or dicts, and `copy`, the same without history, for a loss.

    `back` takes the loss, `through` goes on from the gradients in the copies to the parameters of `network`.
    """

    def __init__(self, inferred: Any, network: nn.Module):
        leaves, spec = pytree.tree_flatten(inferred)
        copies = [_copy(x) for x in leaves]
        self.copy = pytree.tree_unflatten(copies, spec)
        self._leaves, self._copies = ([x for x in each if _differentiable(x)] for each in (leaves, copies))
        self._names, self._parameters = zip(*network.named_parameters(), strict=True)

    def back(self, loss: Float[Tensor, ""]) -> None:
        """The gradients of the parameters that the loss itself uses, and of the copies."""
        found = torch.autograd.grad(loss, [*self._parameters, *self._copies], allow_unused=True)
        count = len(self._parameters)
        self._near, self._weights = found[:count], found[count:]

    def through(self, tensor: Tensor, gradient: Tensor | None) -> tuple[Tensor, ...]:
        """All gradients of the parameters, in their order; `gradient` in the inferred `tensor` counts in addition."""
        outputs, weights = [], []
        for leaf, weight in zip(self._leaves, self._weights, strict=True):
            weight = _sum(weight, gradient) if leaf is tensor else weight
            if weight is not None:
                outputs.append(leaf)
                weights.append(weight)
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
