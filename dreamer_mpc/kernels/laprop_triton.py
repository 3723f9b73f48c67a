"""Triton kernels of `agents/laprop.py`: norms and the step of all tensors of a group, a few launches each."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # numbers of a program
MANY = 128  # addresses that one launch writes; a kernel's arguments have 4 KB


@triton.jit
def _write(table, after, N: tl.constexpr):
    for i in tl.static_range(N):
        tl.store(table + i, tl.cast(after[i], tl.int64) - 1)


@triton.jit
def _numbers(table, tensor):
    """Where a tensor begins, whose address is in a table."""
    return tl.load(table + tensor).to(tl.pointer_type(tl.float32))


@triton.jit
def _place(table, owners, N: tl.constexpr, BLOCK: tl.constexpr):
    """The tensor of a program, the numbers in it that are the program's, and which of them exist."""
    tensor = tl.load(owners + tl.program_id(0))
    first, count = tl.load(table + 4 * N + tensor), tl.load(table + 5 * N + tensor)
    at = (tl.program_id(0) - first) * BLOCK + tl.arange(0, BLOCK)
    return tensor, at, at < count


@triton.jit
def _squares(table, grads, owners, sums, N: tl.constexpr, BLOCK: tl.constexpr):
    tensor, at, real = _place(table, owners, N, BLOCK)
    x = tl.load(_numbers(table, tensor) + at, mask=real, other=0.0)
    g = tl.load(_numbers(grads, tensor) + at, mask=real, other=0.0)
    tl.store(sums + tl.program_id(0), tl.sum(x * x, axis=0))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(g * g, axis=0))


@triton.jit
def _factors(
    table, sums, norms, factors, blocks, clip, floor, N: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    tensor, cols = tl.program_id(0), tl.arange(0, WIDE)
    first, count = tl.load(table + 4 * N + tensor), tl.load(table + 5 * N + tensor)
    last = first + tl.cdiv(count, BLOCK)
    of_x, of_g = tl.zeros([WIDE], tl.float32), tl.zeros([WIDE], tl.float32)
    for start in range(first, last, WIDE):
        real = start + cols < last
        of_x += tl.load(sums + start + cols, mask=real, other=0.0)
        of_g += tl.load(sums + blocks + start + cols, mask=real, other=0.0)
    size, norm = tl.sqrt(tl.sum(of_x, axis=0)), tl.sqrt(tl.sum(of_g, axis=0))
    excess = norm / (clip * tl.maximum(size, floor))
    tl.store(norms + tensor, norm)
    tl.store(factors + tensor, tl.where(excess <= 1, 1.0, 1 / excess))  # NaN stays NaN


@triton.jit
def _advance(
    table, skipped, numbers, lr, log1, log2, N: tl.constexpr, NP: tl.constexpr, WARMUP: tl.constexpr
):  # fmt: skip
    tensors = tl.arange(0, NP)
    real = tensors < N
    steps = tl.load(table + 3 * N + tensors, mask=real, other=0).to(tl.pointer_type(tl.float32))
    count = tl.load(steps, mask=real, other=0.0) + tl.where(tl.load(skipped) == 0, 1.0, 0.0)
    tl.store(steps, count, mask=real)
    count = tl.maximum(tl.sum(tl.where(tensors == 0, count, 0.0), axis=0), 1.0)  # 0 if the very first step is skipped
    # 1 - beta^count is small at first, and would lose its digits in fp32
    correction1, correction2 = 1 - tl.exp((count * log1).to(tl.float64)), 1 - tl.exp((count * log2).to(tl.float64))
    rate = lr * tl.minimum((count - 1) / WARMUP, 1.0) if WARMUP > 0 else lr
    tl.store(numbers, rate / correction1.to(tl.float32))
    tl.store(numbers + 1, tl.sqrt(correction2.to(tl.float32)))


@triton.jit
def _step(
    table, grads, owners, factors, skipped, numbers, keep1, take1, keep2, take2, eps, N: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    tensor, at, real = _place(table, owners, N, BLOCK)
    real = real & (tl.load(skipped) == 0)  # a skipped step reads and writes nothing
    p, g = _numbers(table, tensor) + at, _numbers(grads, tensor) + at
    m, v = _numbers(table + N, tensor) + at, _numbers(table + 2 * N, tensor) + at
    u = tl.load(g, mask=real, other=0.0) * tl.load(factors + tensor)
    square, average = tl.load(v, mask=real, other=0.0), tl.load(m, mask=real, other=0.0)
    x = tl.load(p, mask=real, other=0.0)
    # Of a sum of two products a compiler fuses one or the other, and not the same one for all numbers of a program:
    # equal numbers would part in their last digit, and with them the mirror images of `TwoHot`'s bins, at +-4.9e8.
    square = tl.fma(square, keep2, take2 * u * u)
    average = tl.fma(average, keep1, take1 * u / (tl.sqrt(square) / tl.load(numbers + 1) + eps))
    tl.store(v, square, mask=real)
    tl.store(m, average, mask=real)
    tl.store(p, tl.fma(average, -tl.load(numbers), x), mask=real)


class Measured(NamedTuple):
    """Norms of gradients, what LaProp multiplies each gradient by, and the gradients' addresses on the device."""

    norms: Tensor  # [N]
    factors: Tensor  # [N]
    table: Tensor  # [N]
    addresses: tuple[int, ...]


class Group:
    """The tensors of a group: their addresses in a table on the device, as long as they stay where they are.

    Its columns, one after the other: the addresses of parameters, of m, of v and of the counts of steps, the first
    program of each tensor, and its size. Gradients are other tensors in every eager call, and a CUDA graph cannot copy
    from the host: their addresses are arguments of a kernel that writes them to the device.
    """

    def __init__(
        self, params: Sequence[Tensor], averages: Sequence[Tensor], squares: Sequence[Tensor], steps: Sequence[Tensor]
    ):
        tensors = [*params, *averages, *squares]
        sizes, owners, first = [p.numel() for p in params], [], []
        for tensor, size in enumerate(sizes):
            first.append(len(owners))
            owners += [tensor] * -(-size // BLOCK)
        device = params[0].device
        addresses = [x.data_ptr() for x in (*tensors, *steps)]
        self.table = torch.tensor([*addresses, *first, *sizes], dtype=torch.int64, device=device)
        self.owners = torch.tensor(owners, dtype=torch.int32, device=device)
        self.count = len(sizes)

    def measure(self, grads: Sequence[Tensor], clip: float, floor: float) -> Measured:
        """Norms of gradients and factors of the adaptive clipping."""
        addresses, blocks = tuple(g.data_ptr() for g in grads), len(self.owners)
        table = self.table.new_empty(self.count)
        for start in range(0, self.count, MANY):
            # Triton compiles for which integers are multiples of 16; these never are, so that once is enough.
            some = tuple(address + 1 for address in addresses[start : start + MANY])
            _write[(1,)](table[start:], some, N=len(some), num_warps=1)
        norms, factors, sums = (grads[0].new_empty(size) for size in (self.count, self.count, 2 * blocks))
        sizes = {"N": self.count, "BLOCK": BLOCK}
        _squares[(blocks,)](self.table, table, self.owners, sums, **sizes)
        _factors[(self.count,)](self.table, sums, norms, factors, blocks, clip, floor, **sizes, WIDE=256)
        return Measured(norms, factors, table, addresses)

    def step(
        self, measured: Measured, skipped: Tensor, lr: float, warmup: int, betas: tuple[float, float], eps: float
    ) -> None:
        """Changes parameters, m, v and the counts of steps in place, unless `skipped`."""
        numbers = measured.norms.new_empty(2)  # the learning rate over the correction of m, the root of that of v
        padded = triton.next_power_of_2(self.count)
        logs = [math.log(beta) for beta in betas]
        _advance[(1,)](self.table, skipped, numbers, lr, *logs, N=self.count, NP=padded, WARMUP=warmup)
        shares = [share for beta in betas for share in (beta, 1 - beta)]
        given = (self.table, measured.table, self.owners, measured.factors, skipped, numbers)
        _step[(len(self.owners),)](*given, *shares, eps, N=self.count, BLOCK=BLOCK, num_warps=8)
