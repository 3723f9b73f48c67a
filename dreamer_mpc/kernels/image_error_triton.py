"""Triton kernels of `image_error.py`: what follows a decoder's last product, in one pass over memory each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # of a block


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _places(
    start, image, W: tl.constexpr, O: tl.constexpr, SIDE: tl.constexpr, ROW: tl.constexpr,  # noqa: E741
    COUNT: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Of the numbers of an image's blocks from `start` on: position, whether there is one, and whether it is a pixel's.

    For those also the channel, and the place in the image.
    """
    lane = tl.arange(0, BLOCK)
    at = start + lane
    inside = (lane < STEP) & (at < COUNT)
    block, slot = at // (SIDE * ROW), at % (SIDE * ROW)
    row, rest = slot // ROW, slot % ROW
    pixel = (block // W * SIDE + row) * (SIDE * W) + block % W * SIDE + rest // O
    channel = rest % O
    return at, inside, inside & (rest < SIDE * O), channel, image * (COUNT // ROW * SIDE * O) + pixel * O + channel


@triton.jit
def _forward(
    y, bias, target, out, W: tl.constexpr, O: tl.constexpr, SIDE: tl.constexpr, ROW: tl.constexpr,  # noqa: E741
    COUNT: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COUNT, STEP):
        at, _, real, channel, place = _places(start, image, W, O, SIDE, ROW, COUNT, BLOCK, STEP)
        x = tl.load(y + image * COUNT + at, mask=real, other=0.0).to(tl.float32)
        x += tl.load(bias + channel, mask=real, other=0.0)
        if SIGMOID:
            x = _sigmoid(x)
        error = tl.where(real, x - tl.load(target + place, mask=real, other=0.0), 0.0)
        total += error * error
    tl.store(out + image, tl.sum(total, axis=0))


@triton.jit
def _backward(
    g, y, bias, target, dy, sums, W: tl.constexpr, O: tl.constexpr, SIDE: tl.constexpr,  # noqa: E741
    ROW: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    scale = 2 * tl.load(g + image)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COUNT, STEP):
        at, inside, real, channel, place = _places(start, image, W, O, SIDE, ROW, COUNT, BLOCK, STEP)
        x = tl.load(y + image * COUNT + at, mask=real, other=0.0).to(tl.float32)
        x += tl.load(bias + channel, mask=real, other=0.0)
        if SIGMOID:
            x = _sigmoid(x)
        d = scale * (x - tl.load(target + place, mask=real, other=0.0))
        if SIGMOID:
            d *= x * (1 - x)
        d = tl.where(real, d, 0.0)
        total += d
        tl.store(dy + image * COUNT + at, d, mask=inside)
    channel = tl.arange(0, BLOCK) % ROW % O  # the same in every block
    for k in tl.static_range(O):
        tl.store(sums + image * O + k, tl.sum(tl.where(channel == k, total, 0.0), axis=0))


def _sizes(y: Tensor, bias: Tensor, side: int, sigmoid: bool) -> dict[str, int]:
    height, width, numbers = y.shape[1:]
    row = numbers // side
    sizes = {"W": width, "O": len(bias), "SIDE": side, "ROW": row, "COUNT": height * width * numbers}
    return sizes | {"BLOCK": ELEMENTS, "STEP": ELEMENTS // row * row, "SIGMOID": sigmoid}


def forward(y: Tensor, bias: Tensor, target: Tensor, side: int, sigmoid: bool) -> Tensor:
    """See `image_error.ImageError`; y [M, h, w, N] and target [M, side h, side w, O] contiguous."""
    out = torch.empty(len(y), dtype=torch.float32, device=y.device)
    _forward[(len(y),)](y, bias, target, out, **_sizes(y, bias, side, sigmoid))
    return out


def backward(g: Tensor, y: Tensor, bias: Tensor, target: Tensor, side: int, sigmoid: bool) -> tuple[Tensor, Tensor]:
    """Gradients of y and bias."""
    dy, sums = torch.empty_like(y), torch.empty(len(y), len(bias), dtype=torch.float32, device=y.device)
    _backward[(len(y),)](g, y, bias, target, dy, sums, **_sizes(y, bias, side, sigmoid))
    return dy, sums.sum(0)
