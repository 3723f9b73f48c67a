"""Triton kernels of `norm.py`: RMS norm, gain and SiLU in one pass over memory, computed in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528  # four per multiprocessor of an H200
ELEMENTS = 4096  # of a block


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _forward(x, gain, out, rows, x_member, x_stride, eps, N: tl.constexpr, NP: tl.constexpr, BR: tl.constexpr):
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    x += member * x_member
    gain += member * N
    out += member * rows * N
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < N)[None, :]
        v = tl.load(x + at[:, None] * x_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
        n = v * tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None] * w
        tl.store(out + at[:, None] * N + cols[None, :], n * _sigmoid(n), mask=real)


@triton.jit
def _backward(
    g, x, gain, dx, sums, rows, g_member, g_stride, x_member, x_stride, eps, N: tl.constexpr, NP: tl.constexpr,
    BR: tl.constexpr, DX: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    g += member * g_member
    x += member * x_member
    gain += member * N
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    total = tl.zeros([BR, NP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < N)[None, :]
        v = tl.load(x + at[:, None] * x_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
        dy = tl.load(g + at[:, None] * g_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None]
        scaled = v * inverse
        s = _sigmoid(scaled * w)
        dn = dy * s * (1 + scaled * w * (1 - s))
        if SUMS:
            total += dn * scaled
        if DX:
            dn = dn * w
            mean = tl.sum(dn * scaled, axis=1)[:, None] / N
            to = dx + (member * rows + at)[:, None] * N + cols[None, :]
            tl.store(to, inverse * (dn - scaled * mean), mask=real)
    if SUMS:
        place = member * tl.num_programs(0) + tl.program_id(0)
        tl.store(sums + place * N + cols, tl.sum(total, axis=0), mask=cols < N)


def _blocks(members: int, rows: int, size: int) -> tuple[tuple[int, int], dict[str, int]]:
    """A grid that fills the GPU also with few rows, and the sizes of a block."""
    padded = triton.next_power_of_2(size)
    most, programs = max(1, ELEMENTS // padded), max(PROGRAMS // members, 1)
    block = min(most, triton.next_power_of_2(triton.cdiv(rows, programs)))
    return (min(programs, triton.cdiv(rows, block)), members), {"N": size, "NP": padded, "BR": block}


def _three(x: Tensor) -> Tensor:
    """[K, M, N] with numbers of a row side by side; members and rows may be apart."""
    x = x if x.dim() == 3 else x[None]
    return x if x.stride(2) == 1 else x.contiguous()


def norm_silu(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `norm.norm_silu`."""
    out, x = torch.empty(x.shape, dtype=dtype, device=x.device), _three(x)
    members, rows, size = x.shape
    grid, sizes = _blocks(members, rows, size)
    _forward[grid](x, gain.contiguous(), out, rows, x.stride(0), x.stride(1), eps, **sizes)
    return out


def norm_silu_backward(
    g: Tensor, x: Tensor, gain: Tensor, eps: float, of_x: bool = True, of_gain: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """See `norm.norm_silu_backward`."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if of_x else None
    g, x = _three(g), _three(x)
    members, rows, size = x.shape
    grid, sizes = _blocks(members, rows, size)
    sums = torch.empty(members, grid[0], size, dtype=torch.float32, device=x.device) if of_gain else None
    strides = (g.stride(0), g.stride(1), x.stride(0), x.stride(1))
    _backward[grid](g, x, gain.contiguous(), dx, sums, rows, *strides, eps, DX=of_x, SUMS=of_gain, **sizes)
    return dx, None if sums is None else sums.sum(1).view(gain.shape)
