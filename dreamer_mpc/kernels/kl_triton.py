"""Triton kernels of `kl.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of a block


@triton.jit
def _read(x, rows, live, STRIDE: tl.constexpr, Z: tl.constexpr, ZP: tl.constexpr, other: tl.constexpr):
    cols = tl.arange(0, ZP)
    return tl.load(x + rows[:, None] * STRIDE + cols[None, :], mask=live[:, None] & (cols < Z)[None, :], other=other)


@triton.jit
def _forward(
    mean, std, other_mean, other_std, out, count, S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    S3: tl.constexpr, Z: tl.constexpr, ZP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    live = rows < count
    m, s = _read(mean, rows, live, S0, Z, ZP, 0.0), _read(std, rows, live, S1, Z, ZP, 1.0)
    n, t = _read(other_mean, rows, live, S2, Z, ZP, 0.0), _read(other_std, rows, live, S3, Z, ZP, 1.0)
    ratio, distance = s / t, (m - n) / t
    ratio *= ratio
    kl = 0.5 * (ratio + distance * distance - 1 - tl.log(ratio))  # 0 in the columns that fill up
    tl.store(out + rows, tl.sum(kl, axis=1), mask=live)


@triton.jit
def _backward(
    g, mean, std, other_mean, other_std, d_mean, d_std, d_other_mean, d_other_std, count, S0: tl.constexpr,
    S1: tl.constexpr, S2: tl.constexpr, S3: tl.constexpr, Z: tl.constexpr, ZP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    rows, cols = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, ZP)
    live = rows < count
    m, s = _read(mean, rows, live, S0, Z, ZP, 0.0), _read(std, rows, live, S1, Z, ZP, 1.0)
    n, t = _read(other_mean, rows, live, S2, Z, ZP, 0.0), _read(other_std, rows, live, S3, Z, ZP, 1.0)
    scale = tl.load(g + rows, mask=live, other=0.0)[:, None] / t
    ratio, distance = s / t, (m - n) / t
    where, mask = rows[:, None] * Z + cols[None, :], live[:, None] & (cols < Z)[None, :]
    tl.store(d_mean + where, scale * distance, mask=mask)
    tl.store(d_std + where, scale * (ratio - 1 / ratio), mask=mask)
    tl.store(d_other_mean + where, -scale * distance, mask=mask)
    tl.store(d_other_std + where, scale * (1 - ratio * ratio - distance * distance), mask=mask)


def _sizes(rows: tuple[Tensor, ...]) -> dict[str, int]:
    z = rows[0].shape[1]
    strides = {f"S{k}": x.stride(0) for k, x in enumerate(rows)}
    return strides | {"Z": z, "ZP": triton.next_power_of_2(z), "BR": ROWS}


def forward(*rows: Tensor) -> Tensor:
    """KL [R] of means and standard deviations [R, Z], twice, whose rows may be parts of wider ones."""
    count = len(rows[0])
    out = torch.empty(count, dtype=torch.float32, device=rows[0].device)
    _forward[(triton.cdiv(count, ROWS),)](*rows, out, count, **_sizes(rows))
    return out


def backward(g: Tensor, *rows: Tensor) -> list[Tensor]:
    """Gradients of these four."""
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in rows]
    _backward[(triton.cdiv(len(g), ROWS),)](g.contiguous(), *rows, *grads, len(g), **_sizes(rows))
    return grads
