"""Triton kernels of `image_error.py`: what follows a decoder's last product, in one pass over memory each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # of a block: a multiple of the numbers of 2x2 pixels


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _places(at, image, W: tl.constexpr, O: tl.constexpr, ROW: tl.constexpr, COUNT: tl.constexpr):  # noqa: E741
    """Channel of each number of the blocks of an image, its place among the pixels, and whether it has one."""
    block, slot = at // (2 * ROW), at % (2 * ROW)
    row, rest = slot // ROW, slot % ROW
    pixel = (block // W * 2 + row) * (2 * W) + block % W * 2 + rest // O
    channel = rest % O
    real = (rest < 2 * O) & (at < COUNT)
    return channel, image * (COUNT // ROW * 2 * O) + pixel * O + channel, real


@triton.jit
def _forward(
    y, bias, target, out, W: tl.constexpr, O: tl.constexpr, ROW: tl.constexpr, COUNT: tl.constexpr,  # noqa: E741
    BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COUNT, BLOCK):
        at = start + tl.arange(0, BLOCK)
        channel, place, real = _places(at, image, W, O, ROW, COUNT)
        x = tl.load(y + image * COUNT + at, mask=real, other=0.0).to(tl.float32)
        s = _sigmoid(x + tl.load(bias + channel, mask=real, other=0.0))
        error = tl.where(real, s - tl.load(target + place, mask=real, other=0.0), 0.0)
        total += error * error
    tl.store(out + image, tl.sum(total, axis=0))


@triton.jit
def _backward(
    g, y, bias, target, dy, sums, W: tl.constexpr, O: tl.constexpr, ROW: tl.constexpr,  # noqa: E741
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    scale = 2 * tl.load(g + image)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COUNT, BLOCK):
        at = start + tl.arange(0, BLOCK)
        channel, place, real = _places(at, image, W, O, ROW, COUNT)
        x = tl.load(y + image * COUNT + at, mask=real, other=0.0).to(tl.float32)
        s = _sigmoid(x + tl.load(bias + channel, mask=real, other=0.0))
        error = s - tl.load(target + place, mask=real, other=0.0)
        d = tl.where(real, scale * error * s * (1 - s), 0.0)
        total += d
        tl.store(dy + image * COUNT + at, d, mask=at < COUNT)
    channel = tl.arange(0, BLOCK) % ROW % O  # the same in every block
    for k in tl.static_range(O):
        tl.store(sums + image * O + k, tl.sum(tl.where(channel == k, total, 0.0), axis=0))


def _sizes(y: Tensor, bias: Tensor) -> dict[str, int]:
    height, width, numbers = y.shape[1:]
    return {"W": width, "O": len(bias), "ROW": numbers // 2, "COUNT": height * width * numbers, "BLOCK": ELEMENTS}


def forward(y: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """See `image_error.ImageError`; y [M, h, w, N] and target [M, 2 h, 2 w, O] contiguous."""
    out = torch.empty(len(y), dtype=torch.float32, device=y.device)
    _forward[(len(y),)](y, bias, target, out, **_sizes(y, bias))
    return out


def backward(g: Tensor, y: Tensor, bias: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and bias."""
    dy, sums = torch.empty_like(y), torch.empty(len(y), len(bias), dtype=torch.float32, device=y.device)
    _backward[(len(y),)](g, y, bias, target, dy, sums, **_sizes(y, bias))
    return dy, sums.sum(0)
