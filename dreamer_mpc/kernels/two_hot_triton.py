"""Triton kernels of `two_hot.py`: expectations and cross-entropies of rows of logits, in one pass over memory each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1056  # eight per multiprocessor of an H200
ELEMENTS = 2048  # of a block


@triton.jit
def _rows(logits, at, kept, cols, N: tl.constexpr, W: tl.constexpr):
    """Rows of logits, 0 in place of what fills them up, and which of the numbers are real.

    Where W is a power of two, whole rows are read, in wide accesses.
    """
    x = tl.load(logits + at[:, None] * W + cols[None, :], mask=kept[:, None] & (cols < W)[None, :], other=0.0)
    real = kept[:, None] & (cols < N)[None, :]
    return tl.where(real, x, 0.0), real


@triton.jit
def _softmax(x, real):
    """Unnormalised probabilities of rows, their sums, and the logarithm of the sums of exp(x)."""
    most = tl.max(tl.where(real, x, -1e30), axis=1)
    e = tl.where(real, tl.exp(x - most[:, None]), 0.0)
    total = tl.maximum(tl.sum(e, axis=1), 1e-30)
    return e, total, most + tl.log(total)


@triton.jit
def _two_hot(target, at, kept, cols, bins, N: tl.constexpr):
    """The shares of the bins in the targets of rows `at`, [BR, NP]; NaN where a target is not finite."""
    t = tl.load(target + at, mask=kept, other=0.0)
    first, last = tl.load(bins), tl.load(bins + N - 1)
    inside = tl.minimum(tl.maximum(t, first), last)
    edges = tl.load(bins + cols, mask=cols < N, other=float("inf"))[None, :]
    below = tl.sum(tl.where(edges <= inside[:, None], 1, 0), axis=1) - 1
    below = tl.minimum(tl.maximum(below, 0), N - 2)
    low, high = tl.load(bins + below), tl.load(bins + below + 1)
    share = ((inside - low) / (high - low) + 0 * t)[:, None]
    place = cols[None, :] - below[:, None]
    return tl.where(place == 0, 1 - share, tl.where(place == 1, share, 0.0))


@triton.jit
def _expectation(
    logits, values, out, rows, x_member, N: tl.constexpr, W: tl.constexpr, NP: tl.constexpr, BR: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    logits += member * x_member
    upper = (cols >= N - PAIRS) & (cols < N)
    v = tl.load(values + cols, mask=upper, other=0.0)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        kept = at < rows
        x, real = _rows(logits, at, kept, cols, N, W)
        mirror = tl.load(logits + at[:, None] * W + (N - 1 - cols)[None, :], mask=real, other=0.0)
        most = tl.max(tl.where(real, x, -1e30), axis=1)[:, None]
        e = tl.where(real, tl.exp(x - most), 0.0)
        surplus = e - tl.where(real, tl.exp(mirror - most), 0.0)  # of each bin over its mirror image
        total = tl.maximum(tl.sum(e, axis=1), 1e-30)
        tl.store(out + member * rows + at, tl.sum(surplus / total[:, None] * v, axis=1), mask=kept)


@triton.jit
def _loss(
    logits, target, second, bins, loss, logs, rows, x_member, weight, N: tl.constexpr, W: tl.constexpr,
    NP: tl.constexpr, BR: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    logits += member * x_member
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = (block * BR + tl.arange(0, BR)).to(tl.int64)
        kept, at = row < rows, member * rows + row
        x, real = _rows(logits, row, kept, cols, N, W)
        _, _, log_sum = _softmax(x, real)
        y = log_sum - tl.sum(x * _two_hot(target, at, kept, cols, bins, N), axis=1)
        if TWO:
            y += weight * (log_sum - tl.sum(x * _two_hot(second, at, kept, cols, bins, N), axis=1))
        tl.store(loss + at, y, mask=kept)
        tl.store(logs + at, log_sum, mask=kept)


@triton.jit
def _loss_backward(
    g, logits, target, second, bins, logs, out, rows, x_member, weight, N: tl.constexpr, W: tl.constexpr,
    NP: tl.constexpr, BR: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    cols, member = tl.arange(0, NP), tl.program_id(1).to(tl.int64)
    logits += member * x_member
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        row = (block * BR + tl.arange(0, BR)).to(tl.int64)
        kept, at = row < rows, member * rows + row
        x, real = _rows(logits, row, kept, cols, N, W)
        log_sum = tl.load(logs + at, mask=kept, other=0.0)
        dy = tl.load(g + at, mask=kept, other=0.0)
        probs = tl.exp(tl.where(real, x - log_sum[:, None], -1e30))
        dx = probs - _two_hot(target, at, kept, cols, bins, N)
        if TWO:
            dx += weight * (probs - _two_hot(second, at, kept, cols, bins, N))
        # what fills up a row has the gradient 0, also where that of the row is not finite
        dx = tl.where(real, dy[:, None] * dx, 0.0)
        tl.store(out + at[:, None] * W + cols[None, :], dx, mask=kept[:, None] & (cols < W)[None, :])


def _blocks(logits: Tensor, size: int) -> tuple[tuple[int, int], dict[str, int]]:
    """A grid and the sizes of a block, of rows of which the first `size` numbers count."""
    members, rows, width = logits.shape
    padded = triton.next_power_of_2(width)
    block = max(1, ELEMENTS // padded)
    programs = min(max(PROGRAMS // members, 1), triton.cdiv(rows, block))
    return (programs, members), {"N": size, "W": width, "NP": padded, "BR": block}


def expectation(logits: Tensor, values: Tensor) -> Tensor:
    """See `two_hot.expectation`; logits [K, R, W], each member contiguous."""
    out = torch.empty(logits.shape[:2], dtype=torch.float32, device=logits.device)
    grid, sizes = _blocks(logits, len(values))
    _expectation[grid](logits, values, out, logits.shape[1], logits.stride(0), **sizes, PAIRS=len(values) // 2)
    return out


def loss(
    logits: Tensor, target: Tensor, second: Tensor | None, bins: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropies [K, R], and the logarithm of the sum of exp(logits) of each row."""
    out, logs = torch.empty_like(target), torch.empty_like(target)
    two = second is not None
    grid, sizes = _blocks(logits, len(bins))
    given = (logits, target, second if two else target, bins, out, logs)
    _loss[grid](*given, logits.shape[1], logits.stride(0), weight, **sizes, TWO=two)
    return out, logs


def loss_backward(
    g: Tensor, logits: Tensor, target: Tensor, second: Tensor | None, bins: Tensor, logs: Tensor, weight: float
) -> Tensor:
    """The gradient of the logits."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    two = second is not None
    grid, sizes = _blocks(logits, len(bins))
    given = (g, logits, target, second if two else target, bins, logs, out)
    _loss_backward[grid](*given, logits.shape[1], logits.stride(0), weight, **sizes, TWO=two)
    return out
