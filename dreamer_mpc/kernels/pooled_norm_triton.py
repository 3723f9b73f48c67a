"""Triton kernels of `pooled_norm.py`: what follows a convolution, in one pass over memory, computed in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1056  # eight per multiprocessor of an H200
ELEMENTS = 2048  # of a block


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _corner(
    at, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, POOL: tl.constexpr, BLOCKS: tl.constexpr, INTO: tl.constexpr
):  # fmt: skip
    """Where the first pixel of the window of each output pixel `at` begins in [M, H, W, C], or in blocks of it.

    With INTO, output pixels are in blocks.
    """
    h: tl.constexpr = H // POOL
    w: tl.constexpr = W // POOL
    if INTO:
        block = at // 4
        i, j = block // (w // 2) % (h // 2) * 2 + at // 2 % 2, block % (w // 2) * 2 + at % 2
    else:
        i, j = at // w % h, at % w
    m, i, j = at // (h * w), i * POOL, j * POOL
    if BLOCKS:
        where = (((m * (H // 2) + i // 2) * (W // 2) + j // 2) * 4 + i % 2 * 2 + j % 2) * C
    else:
        where = ((m * H + i) * W + j) * C
    return where


@triton.jit
def _largest(x, where, cols, real, C: tl.constexpr, POOL: tl.constexpr, ROW: tl.constexpr):
    """The largest number of each window and channel, and the place of the first pixel that has it: [BR, CP] each."""
    best = tl.load(x + where[:, None] + cols[None, :], mask=real, other=0.0).to(tl.float32)
    place = tl.zeros_like(best).to(tl.int32)
    for pixel in tl.static_range(1, POOL * POOL):
        offset = pixel // POOL * ROW + pixel % POOL * C
        value = tl.load(x + where[:, None] + offset + cols[None, :], mask=real, other=0.0).to(tl.float32)
        place = tl.where(value > best, pixel, place)
        best = tl.maximum(value, best)
    return best, place


@triton.jit
def _forward(
    x, bias, gain, out, rows, eps, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BR: tl.constexpr, POOL: tl.constexpr, BLOCKS: tl.constexpr, INTO: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, CP)
    b = tl.load(bias + cols, mask=cols < C, other=0.0)[None, :]
    g = tl.load(gain + cols, mask=cols < C, other=0.0)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < C)[None, :]
        v, _ = _largest(x, _corner(at, H, W, C, POOL, BLOCKS, INTO), cols, real, C, POOL, ROW)
        v += b
        n = v * tl.rsqrt(tl.sum(v * v, axis=1) / C + eps)[:, None] * g
        tl.store(out + at[:, None] * C + cols[None, :], n * _sigmoid(n), mask=real)


@triton.jit
def _backward(
    dy, x, bias, gain, dx, sums, rows, eps, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, CP: tl.constexpr,
    BR: tl.constexpr, POOL: tl.constexpr, BLOCKS: tl.constexpr, INTO: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, CP)
    b = tl.load(bias + cols, mask=cols < C, other=0.0)[None, :]
    g = tl.load(gain + cols, mask=cols < C, other=0.0)[None, :]
    of_bias, of_gain = tl.zeros([BR, CP], tl.float32), tl.zeros([BR, CP], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < C)[None, :]
        where = _corner(at, H, W, C, POOL, BLOCKS, INTO)
        v, place = _largest(x, where, cols, real, C, POOL, ROW)
        v += b
        d = tl.load(dy + at[:, None] * C + cols[None, :], mask=real, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(v * v, axis=1) / C + eps)[:, None]
        scaled = v * inverse
        s = _sigmoid(scaled * g)
        d = d * s * (1 + scaled * g * (1 - s))
        of_gain += d * scaled
        d = d * g
        d = inverse * (d - scaled * (tl.sum(d * scaled, axis=1) / C)[:, None])
        d = tl.where(real, d, 0.0)
        of_bias += d
        for pixel in tl.static_range(POOL * POOL):
            offset = pixel // POOL * ROW + pixel % POOL * C
            tl.store(dx + where[:, None] + offset + cols[None, :], tl.where(place == pixel, d, 0.0), mask=real)
    sums += tl.program_id(0) * 2 * C
    tl.store(sums + cols, tl.sum(of_bias, axis=0), mask=cols < C)
    tl.store(sums + C + cols, tl.sum(of_gain, axis=0), mask=cols < C)


def _blocks(x: Tensor, pool: int, blocks: bool, into: bool) -> tuple[tuple[int, ...], int, tuple[int], dict[str, int]]:
    """The shape of the output, its pixels, a grid, and a block's sizes. ROW: from a pixel of a window to that below."""
    images, height, width, channels = x.shape
    height, width, channels = (2 * height, 2 * width, channels // 4) if blocks else (height, width, channels)
    h, w, padded = height // pool, width // pool, triton.next_power_of_2(channels)
    shape = (images, h // 2, w // 2, 4 * channels) if into else (images, h, w, channels)
    block, pixels = max(1, ELEMENTS // padded), images * h * w
    sizes = {"H": height, "W": width, "C": channels, "CP": padded, "BR": block, "POOL": pool, "BLOCKS": blocks}
    grid = (min(PROGRAMS, triton.cdiv(pixels, block)),)
    return shape, pixels, grid, sizes | {"INTO": into, "ROW": (2 if blocks else width) * channels}


def forward(x: Tensor, bias: Tensor, gain: Tensor, eps: float, pool: int, blocks: bool, into: bool) -> Tensor:
    """See `pooled_norm.PooledNorm`; x contiguous."""
    shape, pixels, grid, sizes = _blocks(x, pool, blocks, into)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    _forward[grid](x, bias, gain, out, pixels, eps, **sizes)
    return out


def backward(
    dy: Tensor, x: Tensor, bias: Tensor, gain: Tensor, eps: float, pool: int, blocks: bool, into: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of bias and gain, in parts [P, 2, C] to be added up."""
    _, pixels, grid, sizes = _blocks(x, pool, blocks, into)
    dx = torch.empty_like(x)
    sums = torch.empty(grid[0], 2, len(gain), dtype=torch.float32, device=x.device)
    _backward[grid](dy, x, bias, gain, dx, sums, pixels, eps, **sizes)
    return dx, sums
