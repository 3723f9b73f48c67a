"""Triton kernels of `returns.py`: recursions over time for every column, in one launch.

Their loops are unrolled, so that what is read does not wait for what is computed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 64  # of a program


@triton.jit
def _discount(c, at, kept, discount, CONTINUES: tl.constexpr):
    d = discount
    if CONTINUES:
        d = discount * tl.load(c + at, mask=kept, other=0.0)
    return d


@triton.jit
def _forward(r, v, c, out, columns, discount, lambda_, T: tl.constexpr, CONTINUES: tl.constexpr, B: tl.constexpr):
    cols = tl.program_id(0) * B + tl.arange(0, B)
    kept = cols < columns
    last = tl.load(v + (T - 1) * columns + cols, mask=kept, other=0.0)
    for k in tl.static_range(T):
        at = (T - 1 - k) * columns + cols
        after = (1 - lambda_) * tl.load(v + at, mask=kept, other=0.0) + lambda_ * last
        last = tl.load(r + at, mask=kept, other=0.0) + _discount(c, at, kept, discount, CONTINUES) * after
        tl.store(out + at, last, mask=kept)


@triton.jit
def _backward(
    g, v, c, out, dr, dv, dc, columns, discount, lambda_, T: tl.constexpr, CONTINUES: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    cols = tl.program_id(0) * B + tl.arange(0, B)
    kept = cols < columns
    carried = tl.zeros([B], tl.float32)
    for k in tl.static_range(T):  # a return counts for itself, and by its share in the one before
        at = k * columns + cols
        total = tl.load(g + at, mask=kept, other=0.0) + carried
        d = _discount(c, at, kept, discount, CONTINUES)
        carried = lambda_ * d * total
        tl.store(dr + at, total, mask=kept)
        of_value = (1 - lambda_) * d * total
        tl.store(dv + at, of_value + carried if k == T - 1 else of_value, mask=kept)
        if CONTINUES:
            value = tl.load(v + at, mask=kept, other=0.0)
            after = value
            if k < T - 1:
                after = tl.load(out + at + columns, mask=kept, other=0.0)
            tl.store(dc + at, discount * ((1 - lambda_) * value + lambda_ * after) * total, mask=kept)


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
    grid = (triton.cdiv(columns, COLUMNS),)
    kernel[grid](*tensors, columns, discount, lambda_, T=steps, CONTINUES=continues, B=COLUMNS, num_warps=2)
