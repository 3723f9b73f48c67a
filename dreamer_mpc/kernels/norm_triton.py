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
def _forward(
    x, bias, gain, out, rows, x_member, x_stride, eps, N: tl.constexpr, NP: tl.constexpr, BR: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    x += member * x_member
    gain += member * N
    out += member * rows * N
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    if BIAS:
        b = tl.load(bias + member * N + cols, mask=cols < N, other=0.0)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < N)[None, :]
        v = tl.load(x + at[:, None] * x_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
        if BIAS:
            v += b
        n = v * tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None] * w
        tl.store(out + at[:, None] * N + cols[None, :], n * _sigmoid(n), mask=real)


@triton.jit
def _backward(
    g, x, bias, gain, dx, sums, rows, g_member, g_stride, x_member, x_stride, dx_member, dx_stride, eps,
    N: tl.constexpr, NP: tl.constexpr, BR: tl.constexpr, BIAS: tl.constexpr, DX: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    g += member * g_member
    x += member * x_member
    gain += member * N
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    total = tl.zeros([BR, NP], tl.float32)
    if BIAS:
        b = tl.load(bias + member * N + cols, mask=cols < N, other=0.0)[None, :]
        of_bias = tl.zeros([BR, NP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < N)[None, :]
        v = tl.load(x + at[:, None] * x_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
        if BIAS:
            v += b
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
            d = inverse * (dn - scaled * mean)
            if BIAS:
                of_bias += d
            to = dx + member * dx_member + at[:, None] * dx_stride + cols[None, :]
            tl.store(to, d, mask=real)
    if SUMS:
        place = (member * tl.num_programs(0) + tl.program_id(0)) * (2 if BIAS else 1)
        tl.store(sums + place * N + cols, tl.sum(total, axis=0), mask=cols < N)
        if BIAS:
            tl.store(sums + (place + 1) * N + cols, tl.sum(of_bias, axis=0), mask=cols < N)


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


def norm_silu(x: Tensor, gain: Tensor, eps: float, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """See `norm.norm_silu`."""
    out, x = torch.empty(x.shape, dtype=dtype, device=x.device), _three(x)
    members, rows, size = x.shape
    grid, sizes = _blocks(members, rows, size)
    gain, biased = gain.contiguous(), bias is not None
    bias = bias.contiguous() if biased else gain
    _forward[grid](x, bias, gain, out, rows, x.stride(0), x.stride(1), eps, BIAS=biased, **sizes)
    return out


def norm_silu_backward(
    g: Tensor, x: Tensor, gain: Tensor, eps: float, of_x: bool = True, of_gain: bool = True, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """See `norm.norm_silu_backward`."""
    shape, g, x = x.shape, _three(g), _three(x)
    members, rows, size = x.shape
    grid, sizes = _blocks(members, rows, size)
    gain, biased = gain.contiguous(), bias is not None
    bias = bias.contiguous() if biased else gain
    dx = torch.empty_like(x) if of_x else x  # with the strides of x where it has no gaps
    sums = torch.empty(members, grid[0], 1 + biased, size, dtype=torch.float32, device=x.device) if of_gain else None
    strides = [stride for part in (g, x, dx) for stride in part.stride()[:2]]
    _backward[grid](
        g, x, bias, gain, dx if of_x else None, sums, rows, *strides, eps, BIAS=biased, DX=of_x, SUMS=of_gain, **sizes
    )
    found = [None] * (1 + biased) if sums is None else [part.view(gain.shape) for part in sums.sum(1).unbind(1)]
    return dx.view(shape) if of_x else None, *found
