"""Triton kernels of `returns.py`: recursions over time for every column, in one launch.

A program reads all steps of its columns at once. Recursions are linear, x_k = a_k + b_k x_{k-1}, and so associative.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 8  # of a program


@triton.jit
def _linear(a, b, c, d):
    """x -> a + b x, then x -> c + d x."""
    return c + d * a, b * d


@triton.jit
def _place(columns, steps, T: tl.constexpr, B: tl.constexpr):
    """Steps [T, 1] and where the numbers of a program are [T, B]; of what, and which of them exist."""
    k, cols = tl.arange(0, T)[:, None], tl.program_id(0) * B + tl.arange(0, B)[None, :]
    return k, k * columns + cols, (k < steps) & (cols < columns)


@triton.jit
def _discount(c, at, kept, discount, CONTINUES: tl.constexpr):
    """The discount after each step; 0 where there is none."""
    if CONTINUES:
        return discount * tl.load(c + at, mask=kept, other=0.0)
    return tl.where(kept, discount, 0.0)


@triton.jit
def _forward(
    r, v, c, out, columns, steps, discount, lambda_, T: tl.constexpr, CONTINUES: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    k, at, kept = _place(columns, steps, T, B)
    d = _discount(c, at, kept, discount, CONTINUES)
    share = tl.where(k < steps - 1, 1 - lambda_, 1.0)  # of the value after a step
    first = tl.load(r + at, mask=kept, other=0.0) + d * share * tl.load(v + at, mask=kept, other=0.0)
    found, _ = tl.associative_scan((first, lambda_ * d), 0, _linear, reverse=True)
    tl.store(out + at, found, mask=kept)


@triton.jit
def _backward(
    g, v, c, out, dr, dv, dc, columns, steps, discount, lambda_, T: tl.constexpr, CONTINUES: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    k, at, kept = _place(columns, steps, T, B)
    d = _discount(c, at, kept, discount, CONTINUES)
    before = lambda_ * _discount(c, at - columns, kept & (k > 0), discount, CONTINUES)
    # a return counts for itself, and by its share in the one before
    total, _ = tl.associative_scan((tl.load(g + at, mask=kept, other=0.0), before), 0, _linear)
    last = k == steps - 1
    share = tl.where(last, 1.0, 1 - lambda_)
    tl.store(dr + at, total, mask=kept)
    tl.store(dv + at, share * d * total, mask=kept)
    if CONTINUES:
        after = share * tl.load(v + at, mask=kept, other=0.0)
        after += lambda_ * tl.load(out + at + columns, mask=kept & (k < steps - 1), other=0.0)
        tl.store(dc + at, discount * after * total, mask=kept)


def forward(r: Tensor, v: Tensor, c: Tensor | None, discount: float, lambda_: float) -> Tensor:
    """Returns [T, *] of contiguous tensors."""
    out = torch.empty_like(r)
    _launch(_forward, (r, v, r if c is None else c, out), discount, lambda_, c is not None)
    return out


def backward(
    g: Tensor, v: Tensor, c: Tensor | None, out: Tensor, discount: float, lambda_: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of rewards, values and continuations of `g`, that of the returns `out`."""
    dr, dv, dc = torch.empty_like(g), torch.empty_like(g), None if c is None else torch.empty_like(g)
    given = (g, v, g if c is None else c, out, dr, dv, g if dc is None else dc)
    _launch(_backward, given, discount, lambda_, c is not None)
    return dr, dv, dc


def _launch(kernel, tensors: tuple[Tensor, ...], discount: float, lambda_: float, continues: bool) -> None:
    steps, columns = len(tensors[0]), tensors[0][0].numel()
    sizes = {"T": triton.next_power_of_2(steps), "CONTINUES": continues, "B": COLUMNS}
    grid = (triton.cdiv(columns, COLUMNS),)
    kernel[grid](*tensors, columns, steps, discount, lambda_, **sizes, num_warps=2)
