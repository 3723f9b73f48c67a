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
    ROWS: tl.constexpr, BR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of BR rows of an image's blocks: where their numbers are, and which exist, and the same for their pixels."""
    at, cols = start + tl.arange(0, BR), tl.arange(0, WIDTH)
    block, row = at // SIDE, at % SIDE
    first = ((block // W * SIDE + row) * W + block % W) * (SIDE * O)  # place of the row's first pixel in the image
    live = (at < ROWS)[:, None]
    numbers = image * ROWS * ROW + at[:, None] * ROW + cols[None, :]
    pixels = image * ROWS * SIDE * O + first[:, None] + cols[None, :]
    return numbers, live & (cols < ROW)[None, :], pixels, live & (cols < SIDE * O)[None, :]


@triton.jit
def _forward(
    y, bias, target, out, W: tl.constexpr, O: tl.constexpr, SIDE: tl.constexpr, ROW: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr, BR: tl.constexpr, WIDTH: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    b = tl.load(bias + tl.arange(0, WIDTH) % O)[None, :]
    total = tl.zeros([BR, WIDTH], tl.float32)
    for start in range(0, ROWS, BR):
        numbers, _, pixels, real = _places(start, image, W, O, SIDE, ROW, ROWS, BR, WIDTH)
        x = tl.load(y + numbers, mask=real, other=0.0).to(tl.float32) + b
        if SIGMOID:
            x = _sigmoid(x)
        error = tl.where(real, x - tl.load(target + pixels, mask=real, other=0.0), 0.0)
        total += error * error
    tl.store(out + image, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def _backward(
    g, y, bias, target, dy, sums, W: tl.constexpr, O: tl.constexpr, SIDE: tl.constexpr,  # noqa: E741
    ROW: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr, WIDTH: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    image, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    scale = 2 * tl.load(g + image)
    b = tl.load(bias + cols % O)[None, :]
    total = tl.zeros([BR, WIDTH], tl.float32)
    for start in range(0, ROWS, BR):
        numbers, inside, pixels, real = _places(start, image, W, O, SIDE, ROW, ROWS, BR, WIDTH)
        x = tl.load(y + numbers, mask=real, other=0.0).to(tl.float32) + b
        if SIGMOID:
            x = _sigmoid(x)
        d = scale * (x - tl.load(target + pixels, mask=real, other=0.0))
        if SIGMOID:
            d *= x * (1 - x)
        d = tl.where(real, d, 0.0)
        total += d
        tl.store(dy + numbers, d, mask=inside)
    column = tl.sum(total, axis=0)
    for k in tl.static_range(O):
        tl.store(sums + image * O + k, tl.sum(tl.where(cols % O == k, column, 0.0), axis=0))


def _sizes(y: Tensor, bias: Tensor, side: int, sigmoid: bool) -> dict[str, int]:
    height, width, numbers = y.shape[1:]
    row = numbers // side
    padded = triton.next_power_of_2(row)
    sizes = {"W": width, "O": len(bias), "SIDE": side, "ROW": row, "ROWS": height * width * side}
    return sizes | {"BR": max(1, ELEMENTS // padded), "WIDTH": padded, "SIGMOID": sigmoid}


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
