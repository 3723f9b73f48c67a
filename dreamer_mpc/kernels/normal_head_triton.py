"""Triton kernel of `NormalActor`: its last layer and the mean and std that it gives, in fp32 and without gradients."""

import triton
import triton.language as tl
from torch import Tensor

from dreamer_mpc.kernels.block_cell_triton import _sigmoid, _tanh

ROWS = 4  # of a program
PRODUCTS = 4096  # that a program computes at once


@triton.jit
def _head(
    hidden, weight, bias, mean, std, rows, hidden_stride, lowest, highest, A: tl.constexpr, AP: tl.constexpr,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    at, actions = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64), tl.arange(0, AP)
    m, s = tl.zeros([BR, AP], tl.float32), tl.zeros([BR, AP], tl.float32)
    for start in range(0, N, BN):
        cols = start + tl.arange(0, BN)
        inside = (at < rows)[:, None] & (cols < N)[None, :]
        h = tl.load(hidden + at[:, None] * hidden_stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        place, real = weight + actions[:, None] * N + cols[None, :], (actions < A)[:, None] & (cols < N)[None, :]
        m += tl.sum(h[:, None, :] * tl.load(place, mask=real, other=0.0)[None, :, :], axis=2)
        s += tl.sum(h[:, None, :] * tl.load(place + A * N, mask=real, other=0.0)[None, :, :], axis=2)
    m += tl.load(bias + actions, mask=actions < A, other=0.0)[None, :]
    s += tl.load(bias + A + actions, mask=actions < A, other=0.0)[None, :]
    real, to = (at < rows)[:, None] & (actions < A)[None, :], at[:, None] * A + actions[None, :]
    tl.store(mean + to, _tanh(m), mask=real)
    tl.store(std + to, lowest + (highest - lowest) * _sigmoid(s + 2), mask=real)


def normal_head(hidden: Tensor, weight: Tensor, bias: Tensor, lowest: float, highest: float) -> tuple[Tensor, Tensor]:
    """Mean tanh(m) and std lowest + (highest - lowest) sigmoid(s + 2), both [*, A], with (m, s) = weight hidden + bias.

    `hidden` is [*, h] in any precision, `weight` [2 A, h].
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    (count, inputs), actions = rows.shape, len(bias) // 2
    mean, std = (weight.new_empty(*hidden.shape[:-1], actions) for _ in range(2))
    padded, block = triton.next_power_of_2(actions), min(ROWS, triton.next_power_of_2(count))
    sizes = {"A": actions, "AP": padded, "N": inputs, "BR": block, "BN": max(16, PRODUCTS // (block * padded))}
    given = (rows, weight.contiguous(), bias, mean, std, count, rows.stride(0), lowest, highest)
    _head[(triton.cdiv(count, block),)](*given, **sizes)
    return mean, std
