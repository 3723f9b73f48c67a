"""Triton kernels of `block_cell.py`: what lies between the products of a step, one kernel each. All compute in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def _gates(gates, before, member, row, rows, cols, real, X: tl.constexpr, D: tl.constexpr):
    """Reset, candidate, update after their activations, and deter before, of the units `cols` of a block."""
    at = gates + (member * rows + row) * 3 * X + cols
    reset = _sigmoid(tl.load(at, mask=real, other=0.0).to(tl.float32))
    candidate = tl.load(at + X, mask=real, other=0.0).to(tl.float32)
    update = _sigmoid(tl.load(at + 2 * X, mask=real, other=0.0).to(tl.float32) - 1)
    h = tl.load(before + row * D + member * X + cols, mask=real, other=0.0)
    return reset, candidate, update, h


@triton.jit
def _gru(gates, before, deter, cast, rows, D: tl.constexpr, X: tl.constexpr, XP: tl.constexpr):
    row, member, cols = tl.program_id(0), tl.program_id(1), tl.arange(0, XP)
    real = cols < X
    reset, candidate, update, h = _gates(gates, before, member, row, rows, cols, real, X, D)
    new = update * _tanh(reset * candidate) + (1 - update) * h
    at = row * D + member * X + cols
    tl.store(deter + at, new, mask=real)
    tl.store(cast + at, new, mask=real)


@triton.jit
def _gru_backward(
    g, gates, before, dgates, dbefore, rows, D: tl.constexpr, X: tl.constexpr, XP: tl.constexpr
):  # fmt: skip
    row, member, cols = tl.program_id(0), tl.program_id(1), tl.arange(0, XP)
    real = cols < X
    reset, candidate, update, h = _gates(gates, before, member, row, rows, cols, real, X, D)
    at = row * D + member * X + cols
    dy = tl.load(g + at, mask=real, other=0.0)
    new = _tanh(reset * candidate)
    dnew = dy * update * (1 - new * new)
    to = dgates + (member * rows + row) * 3 * X + cols
    tl.store(to, dnew * candidate * reset * (1 - reset), mask=real)
    tl.store(to + X, dnew * reset, mask=real)
    tl.store(to + 2 * X, dy * (new - h) * update * (1 - update), mask=real)
    tl.store(dbefore + at, dy * (1 - update), mask=real)


@triton.jit
def _begin(
    deter, stoch, first, deter_out, cast, stoch_out, D: tl.constexpr, Z: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, cols = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(first + row) == 0
    h = tl.load(deter + row * D + cols, mask=(cols < D) & kept, other=0.0)
    tl.store(deter_out + row * D + cols, h, mask=cols < D)
    tl.store(cast + row * D + cols, h, mask=cols < D)
    z = tl.load(stoch + row * Z + cols, mask=(cols < Z) & kept, other=0.0)
    tl.store(stoch_out + row * Z + cols, z, mask=cols < Z)


@triton.jit
def _mixed(logits, row, ks, cs, real, unimix, K: tl.constexpr, C: tl.constexpr):
    """Positions, softmax and its mixture with the uniform distribution, [KP, CP]."""
    at = row * K * C + ks[:, None] * C + cs[None, :]
    x = tl.load(logits + at, mask=real, other=-1e30)
    e = tl.where(real, tl.exp(x - tl.max(x, axis=1)[:, None]), 0.0)
    probs = e / tl.maximum(tl.sum(e, axis=1), 1e-30)[:, None]
    return at, probs, tl.maximum((1 - unimix) * probs + unimix / C, 1e-37)


@triton.jit
def _draw(
    logits, noise, stoch, log_probs, unimix, K: tl.constexpr, C: tl.constexpr, KP: tl.constexpr, CP: tl.constexpr
):  # fmt: skip
    row, ks, cs = tl.program_id(0), tl.arange(0, KP), tl.arange(0, CP)
    real = (ks < K)[:, None] & (cs < C)[None, :]
    at, _, mixed = _mixed(logits, row, ks, cs, real, unimix, K, C)
    logs = tl.log(tl.where(real, mixed, 1.0))
    score = tl.where(real, logs + tl.load(noise + at, mask=real, other=0.0), -1e30)
    best = tl.argmax(score, axis=1)
    tl.store(stoch + at, tl.where(cs[None, :] == best[:, None], 1.0, 0.0), mask=real)
    tl.store(log_probs + at, logs, mask=real)


@triton.jit
def _draw_backward(
    g_stoch, g, logits, out, unimix, K: tl.constexpr, C: tl.constexpr, KP: tl.constexpr, CP: tl.constexpr
):  # fmt: skip
    row, ks, cs = tl.program_id(0), tl.arange(0, KP), tl.arange(0, CP)
    real = (ks < K)[:, None] & (cs < C)[None, :]
    at, probs, mixed = _mixed(logits, row, ks, cs, real, unimix, K, C)
    dlog = tl.load(g + at, mask=real, other=0.0)
    dprob = tl.load(g_stoch + at, mask=real, other=0.0)
    slope = tl.where(real, (1 - unimix) * (dlog / tl.where(real, mixed, 1.0) + dprob), 0.0)
    tl.store(out + at, probs * (slope - tl.sum(probs * slope, axis=1)[:, None]), mask=real)


def gru(gates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """See `block_cell.gru`."""
    deter, cast = torch.empty_like(before), torch.empty_like(before, dtype=gates.dtype)
    _gru[_grid(gates)](gates, before, deter, cast, len(before), **_sizes(gates, before))
    return deter, cast


def gru_backward(g: Tensor, gates: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """See `block_cell.gru_backward`."""
    dgates, dbefore = torch.empty_like(gates), torch.empty_like(before)
    _gru_backward[_grid(gates)](g, gates, before, dgates, dbefore, len(before), **_sizes(gates, before))
    return dgates, dbefore


def begin(deter: Tensor, stoch: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `block_cell.begin`."""
    (rows, size), units = deter.shape, stoch.shape[1]
    out = torch.empty_like(deter), torch.empty_like(deter, dtype=stoch.dtype), torch.empty_like(stoch)
    grid = (rows, triton.cdiv(max(size, units), 1024))
    _begin[grid](deter.contiguous(), stoch.contiguous(), first, *out, D=size, Z=units, BLOCK=1024)
    return out


def draw(logits: Tensor, noise: Tensor, unimix: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `block_cell.draw`."""
    stoch, log_probs = torch.empty_like(logits, dtype=dtype), torch.empty_like(noise)
    _draw[(len(logits),)](logits, noise, stoch, log_probs, unimix, **_classes(noise))
    return stoch, log_probs


def draw_backward(g_stoch: Tensor, g: Tensor, logits: Tensor, unimix: float) -> Tensor:
    """See `block_cell.draw_backward`."""
    out = torch.empty_like(logits)
    _draw_backward[(len(logits),)](g_stoch.contiguous(), g.contiguous(), logits, out, unimix, **_classes(g))
    return out


def _grid(gates: Tensor) -> tuple[int, int]:
    return gates.shape[1], gates.shape[0]


def _sizes(gates: Tensor, before: Tensor) -> dict[str, int]:
    units = gates.shape[2] // 3
    return {"D": before.shape[1], "X": units, "XP": triton.next_power_of_2(units)}


def _classes(noise: Tensor) -> dict[str, int]:
    _, variables, classes = noise.shape
    padded = {"KP": triton.next_power_of_2(variables), "CP": triton.next_power_of_2(classes)}
    return {"K": variables, "C": classes, **padded}
