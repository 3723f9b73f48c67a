"""Triton kernels of `block_cell.py`: what lies between the products of a step, one kernel each. All compute in fp32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamer_mpc.kernels.norm_triton import _blocks

FEW_ROWS = 256  # up to so many, `gated` has smaller blocks, so that more programs share the work


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def _normed(x, gain, out, x_stride, out_stride, at, cols, real, eps, N: tl.constexpr):
    """Norm, gain and SiLU of the rows `at`."""
    v = tl.load(x + at[:, None] * x_stride + cols[None, :], mask=real, other=0.0).to(tl.float32)
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    n = v * tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None] * w
    tl.store(out + at[:, None] * out_stride + cols[None, :], n * _sigmoid(n), mask=real)


@triton.jit
def _share(
    deter_pre, stoch_pre, moved, deter_gain, stoch_gain, shared, rows, deter_stride, stoch_stride, moved_stride, eps,
    N: tl.constexpr, NP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, NP)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        real = (at < rows)[:, None] & (cols < N)[None, :]
        _normed(deter_pre, deter_gain, shared, deter_stride, 3 * N, at, cols, real, eps, N)
        _normed(stoch_pre, stoch_gain, shared + N, stoch_stride, 3 * N, at, cols, real, eps, N)
        kept = tl.load(moved + at[:, None] * moved_stride + cols[None, :], mask=real, other=0.0)
        tl.store(shared + 2 * N + at[:, None] * (3 * N) + cols[None, :], kept, mask=real)


@triton.jit
def _moved(
    action, weight, bias, gain, out, at, action_stride, out_stride, rows, cols, eps, A: tl.constexpr, N: tl.constexpr,
    NP: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The action's layer of the rows `at`; its product is of numbers in the precision of `out`."""
    real = (at < rows)[:, None] & (cols < N)[None, :]
    total = tl.zeros([BR, NP], tl.float32)
    for k in tl.static_range(A):
        a = tl.load(action + at * action_stride + k, mask=at < rows, other=0.0).to(tl.float32)
        a = tl.div_rn(a, tl.maximum(tl.abs(a), 1.0)).to(out.dtype.element_ty).to(tl.float32)
        column = tl.load(weight + cols * A + k, mask=cols < N, other=0.0).to(out.dtype.element_ty).to(tl.float32)
        total += a[:, None] * column[None, :]
    b = tl.load(bias + cols, mask=cols < N, other=0.0)[None, :]
    w = tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    v = tl.where(real, total.to(out.dtype.element_ty).to(tl.float32) + b, 0.0)
    n = v * tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None] * w
    tl.store(out + at[:, None] * out_stride + cols[None, :], n * _sigmoid(n), mask=real)


@triton.jit
def _action_layer(
    action, weight, bias, gain, out, rows, action_stride, eps, A: tl.constexpr, N: tl.constexpr, NP: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, NP)
    for block in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        at = (block * BR + tl.arange(0, BR)).to(tl.int64)
        _moved(action, weight, bias, gain, out, at, action_stride, N, rows, cols, eps, A, N, NP, BR)


@triton.jit
def _gates(gates, bias, before, before_stride, member, row, rows, cols, real, X: tl.constexpr):
    """Reset, candidate, update after their activations, and deter before, of the units `cols` of a block."""
    at, own = gates + (row + member * rows) * 3 * X + cols, bias + member * 3 * X + cols
    reset = _sigmoid(_sum(at, own, real))
    candidate = _sum(at + X, own + X, real)
    update = _sigmoid(_sum(at + 2 * X, own + 2 * X, real) - 1)
    h = tl.load(before + row * before_stride + member * X + cols, mask=real, other=0.0)
    return reset, candidate, update, h


@triton.jit
def _sum(x, y, real):
    return tl.load(x, mask=real, other=0.0).to(tl.float32) + tl.load(y, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _gru(
    gates, bias, before, deter, again, rows, before_stride, deter_stride, again_stride, X: tl.constexpr,
    XP: tl.constexpr, AGAIN: tl.constexpr,
):  # fmt: skip
    row, member, cols = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, XP)
    real = cols < X
    reset, candidate, update, h = _gates(gates, bias, before, before_stride, member, row, rows, cols, real, X)
    new = update * _tanh(reset * candidate) + (1 - update) * h
    tl.store(deter + row * deter_stride + member * X + cols, new, mask=real)
    if AGAIN:
        tl.store(again + row * again_stride + member * X + cols, new, mask=real)


@triton.jit
def _gated(
    hidden, weight, bias, before, gates, deter, again, rows, hidden_stride, before_stride, deter_stride, again_stride,
    X: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, AGAIN: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    at, member = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64), tl.program_id(2)
    cols = tl.program_id(1) * BX + tl.arange(0, BX)
    inside, real = (at < rows)[:, None], (cols < X)[None, :]
    reset = tl.zeros([BR, BX], tl.float32)
    candidate, update = reset, reset
    for start in range(0, X, BK):
        ins = start + tl.arange(0, BK)
        place = hidden + at[:, None] * hidden_stride + member * X + ins[None, :]
        h = tl.load(place, mask=inside & (ins < X)[None, :], other=0.0)
        place, there = weight + (member * X + ins[:, None]) * (3 * X) + cols[None, :], (ins < X)[:, None] & real
        reset = tl.dot(h, tl.load(place, mask=there, other=0.0), reset)
        candidate = tl.dot(h, tl.load(place + X, mask=there, other=0.0), candidate)
        update = tl.dot(h, tl.load(place + 2 * X, mask=there, other=0.0), update)
    kept, own = inside & real, bias + member * 3 * X + cols
    dtype: tl.constexpr = hidden.dtype.element_ty
    reset, candidate, update = reset.to(dtype), candidate.to(dtype), update.to(dtype)
    if SAVE:
        to = gates + (at[:, None] + member.to(tl.int64) * rows) * (3 * X) + cols[None, :]
        tl.store(to, reset, mask=kept)
        tl.store(to + X, candidate, mask=kept)
        tl.store(to + 2 * X, update, mask=kept)
    reset = _sigmoid(_plus(reset, own, cols < X))
    candidate = _plus(candidate, own + X, cols < X)
    update = _sigmoid(_plus(update, own + 2 * X, cols < X) - 1)
    unit = member * X + cols[None, :]
    h = tl.load(before + at[:, None] * before_stride + unit, mask=kept, other=0.0)
    new = update * _tanh(reset * candidate) + (1 - update) * h
    tl.store(deter + at[:, None] * deter_stride + unit, new, mask=kept)
    if AGAIN:
        tl.store(again + at[:, None] * again_stride + unit, new, mask=kept)


@triton.jit
def _plus(x, bias, real):
    return x.to(tl.float32) + tl.load(bias, mask=real, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _gru_backward(
    g, gates, bias, before, dgates, dbefore, rows, before_stride, D: tl.constexpr, X: tl.constexpr, XP: tl.constexpr
):  # fmt: skip
    row, member, cols = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, XP)
    real = cols < X
    reset, candidate, update, h = _gates(gates, bias, before, before_stride, member, row, rows, cols, real, X)
    at = row * D + member * X + cols
    dy = tl.load(g + at, mask=real, other=0.0)
    new = _tanh(reset * candidate)
    dnew = dy * update * (1 - new * new)
    to = dgates + (row + member * rows) * 3 * X + cols
    tl.store(to, dnew * candidate * reset * (1 - reset), mask=real)
    tl.store(to + X, dnew * reset, mask=real)
    tl.store(to + 2 * X, dy * (new - h) * update * (1 - update), mask=real)
    tl.store(dbefore + at, dy * (1 - update), mask=real)


@triton.jit
def _begin(
    deter, stoch, first, deter_out, cast, stoch_out, D: tl.constexpr, Z: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(first + row) == 0
    h = tl.load(deter + row * D + cols, mask=(cols < D) & kept, other=0.0)
    tl.store(deter_out + row * D + cols, h, mask=cols < D)
    tl.store(cast + row * D + cols, h, mask=cols < D)
    z = tl.load(stoch + row * Z + cols, mask=(cols < Z) & kept, other=0.0)
    tl.store(stoch_out + row * Z + cols, z, mask=cols < Z)


@triton.jit
def _gumbel(noise, out, count, farthest, BLOCK: tl.constexpr):
    """-log(-log Phi(x)), from the normal distribution's tail q = Phi(-|x|) = exp(log_q).

    With z = |x| / sqrt(2), q = erfc(z) / 2 = t exp(p(t) - z^2) / 2 for t = 1 / (1 + 0.4 z), where the polynomial p was
    fitted at Chebyshev's nodes for |x| up to 10; the error of log_q is below 1e-7 there.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(noise + at, mask=at < count, other=0.0)
    x = tl.where(tl.abs(x) > farthest, tl.where(x > 0, farthest, -farthest), x)  # NaN stays
    z = 0.70710678 * tl.abs(x)
    t = 1 / (1 + 0.4 * z)
    p = -0.202993262 * t + 0.899839753
    p = p * t - 1.42755123
    p = p * t + 0.922393305
    p = p * t - 0.382147751
    p = p * t + 0.26999328
    p = p * t + 0.408874895
    p = p * t + 1.00019805
    p = p * t - 1.48860713
    log_q = p + tl.log(t) - z * z - 0.69314718
    q = tl.exp(log_q)
    series = q * (1 + q * (0.5 + q * (0.33333333 + 0.25 * q)))  # -log(1 - q) where that would cancel
    upper = tl.where(q < 0.05, series, -tl.log(1 - q))
    tl.store(out + at, -tl.log(tl.where(x > 0, upper, -log_q)), mask=at < count)


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
    logits, noise, stoch, again, log_probs, unimix, stoch_stride, again_stride, K: tl.constexpr, C: tl.constexpr,
    KP: tl.constexpr, CP: tl.constexpr, AGAIN: tl.constexpr, LOGS: tl.constexpr,
):  # fmt: skip
    row, ks, cs = tl.program_id(0).to(tl.int64), tl.arange(0, KP), tl.arange(0, CP)
    real = (ks < K)[:, None] & (cs < C)[None, :]
    at, _, mixed = _mixed(logits, row, ks, cs, real, unimix, K, C)
    logs = tl.log(tl.where(real, mixed, 1.0))
    score = tl.where(real, logs + tl.load(noise + at, mask=real, other=0.0), -1e30)
    best = tl.argmax(score, axis=1)
    one_hot, unit = tl.where(cs[None, :] == best[:, None], 1.0, 0.0), ks[:, None] * C + cs[None, :]
    tl.store(stoch + row * stoch_stride + unit, one_hot, mask=real)
    if AGAIN:
        tl.store(again + row * again_stride + unit, one_hot, mask=real)
    if LOGS:
        tl.store(log_probs + at, logs, mask=real)


@triton.jit
def _draw_backward(
    g_stoch, g, logits, out, unimix, K: tl.constexpr, C: tl.constexpr, KP: tl.constexpr, CP: tl.constexpr
):  # fmt: skip
    row, ks, cs = tl.program_id(0).to(tl.int64), tl.arange(0, KP), tl.arange(0, CP)
    real = (ks < K)[:, None] & (cs < C)[None, :]
    at, probs, mixed = _mixed(logits, row, ks, cs, real, unimix, K, C)
    dlog = tl.load(g + at, mask=real, other=0.0)
    dprob = tl.load(g_stoch + at, mask=real, other=0.0)
    slope = tl.where(real, (1 - unimix) * (dlog / tl.where(real, mixed, 1.0) + dprob), 0.0)
    tl.store(out + at, probs * (slope - tl.sum(probs * slope, axis=1)[:, None]), mask=real)


def share(
    deter_pre: Tensor, stoch_pre: Tensor, moved: Tensor, deter_gain: Tensor, stoch_gain: Tensor, eps: float
) -> Tensor:
    """See `block_cell.share`."""
    deter_pre, stoch_pre, moved = map(_rows, (deter_pre, stoch_pre, moved))
    (rows, size), strides = moved.shape, (deter_pre.stride(0), stoch_pre.stride(0), moved.stride(0))
    shared = moved.new_empty(rows, 3 * size)
    (programs, _), sizes = _blocks(1, rows, size)
    _share[(programs,)](deter_pre, stoch_pre, moved, deter_gain, stoch_gain, shared, rows, *strides, eps, **sizes)
    return shared


def action_layer(
    action: Tensor, weight: Tensor, bias: Tensor, gain: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """Actions [M, A] brought to [-1, 1], their product with `weight` [h, A], bias, RMS norm, gain and SiLU: [M, h].

    Product and result are in `dtype`, the rest in fp32.
    """
    action = _rows(action)
    out = torch.empty(len(action), len(weight), dtype=dtype, device=action.device)
    (programs, _), sizes = _blocks(1, *out.shape)
    given = (action, weight.contiguous(), bias, gain, out, len(action), action.stride(0), eps)
    _action_layer[(programs,)](*given, A=action.shape[1], **sizes)
    return out


def gru(gates: Tensor, bias: Tensor, before: Tensor, into: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `block_cell.gru`."""
    before, (deter, cast, again) = _rows(before), _places(before, into, gates.dtype)
    strides = (before.stride(0), deter.stride(0), _stride(again))
    given = (gates, bias, before, deter, again, len(before), *strides)
    _gru[_grid(gates)](*given, AGAIN=again is not None, **_units(gates))
    return deter, cast


def gated(
    hidden: Tensor, weight: Tensor, bias: Tensor, before: Tensor, into: Tensor | None, save: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """See `block_cell.gated`, for products of bf16 numbers."""
    hidden, before, (deter, cast, again) = _rows(hidden), _rows(before), _places(before, into, hidden.dtype)
    (members, units, _), rows = weight.shape, len(before)
    gates = hidden.new_empty(members, rows, 3 * units) if save else None
    many, padded = rows > FEW_ROWS, max(16, triton.next_power_of_2(units))
    block, columns, warps = (128, 64, 8) if many else (64, 32, 4)
    columns = min(columns, padded)
    strides = (hidden.stride(0), before.stride(0), deter.stride(0), _stride(again))
    _gated[(triton.cdiv(rows, block), triton.cdiv(units, columns), members)](
        hidden, weight.contiguous(), bias, before, gates, deter, again, rows, *strides, X=units, BX=columns,
        BK=min(64, padded), BR=block, AGAIN=again is not None, SAVE=save, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return gates, deter, cast


def gru_backward(g: Tensor, gates: Tensor, bias: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """See `block_cell.gru_backward`."""
    g, before = g.contiguous(), _rows(before)
    dgates, dbefore = torch.empty_like(gates), before.new_empty(before.shape)
    given = (g, gates, bias, before, dgates, dbefore, len(before), before.stride(0))
    _gru_backward[_grid(gates)](*given, D=before.shape[1], **_units(gates))
    return dgates, dbefore


def begin(deter: Tensor, stoch: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `block_cell.begin`."""
    (rows, size), units = deter.shape, stoch.shape[1]
    out = torch.empty_like(deter), torch.empty_like(deter, dtype=stoch.dtype), torch.empty_like(stoch)
    grid = (rows, triton.cdiv(max(size, units), 1024))
    _begin[grid](deter.contiguous(), stoch.contiguous(), first, *out, D=size, Z=units, BLOCK=1024)
    return out


def gumbel(noise: Tensor, farthest: float) -> Tensor:
    """See `block_rssm.gumbel`; `farthest` is at most 10."""
    noise, out = noise.contiguous(), noise.new_empty(noise.shape)
    _gumbel[(triton.cdiv(noise.numel(), 1024),)](noise, out, noise.numel(), farthest, BLOCK=1024)
    return out


def draw(logits: Tensor, noise: Tensor, unimix: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """See `block_cell.draw`."""
    stoch, log_probs = torch.empty_like(logits, dtype=dtype), torch.empty_like(noise)
    _launch_draw(logits, noise, stoch, None, log_probs, unimix)
    return stoch, log_probs


def draw_into(into: Tensor, logits: Tensor, noise: Tensor, unimix: float, dtype: torch.dtype) -> Tensor:
    """See `block_cell.draw_into`."""
    stoch = into if into.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    _launch_draw(logits, noise, stoch, None if stoch is into else into, None, unimix)
    return stoch


def draw_backward(g_stoch: Tensor, g: Tensor, logits: Tensor, unimix: float) -> Tensor:
    """See `block_cell.draw_backward`."""
    out = torch.empty_like(logits)
    _draw_backward[(len(logits),)](g_stoch.contiguous(), g.contiguous(), logits, out, unimix, **_classes(g))
    return out


def _places(before: Tensor, into: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where the next deter is written: in the precision of `before`, as `dtype`, and beside the first if not there.

    At most two places are written, as there are two precisions.
    """
    precise = into is not None and into.dtype == before.dtype
    deter = into if precise else before.new_empty(before.shape)
    if dtype == before.dtype:
        return deter, deter, None if precise else into
    cast = before.new_empty(before.shape, dtype=dtype) if precise or into is None else into
    return deter, cast, cast


def _grid(gates: Tensor) -> tuple[int, int]:
    return gates.shape[1], gates.shape[0]


def _launch_draw(
    logits: Tensor, noise: Tensor, stoch: Tensor, again: Tensor | None, log_probs: Tensor | None, unimix: float
) -> None:
    given = (logits, noise, stoch, again, log_probs, unimix, stoch.stride(0), _stride(again))
    _draw[(len(logits),)](*given, AGAIN=again is not None, LOGS=log_probs is not None, **_classes(noise))


def _rows(x: Tensor) -> Tensor:
    """With the numbers of a row side by side; rows may be apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


def _units(gates: Tensor) -> dict[str, int]:
    units = gates.shape[2] // 3
    padded = triton.next_power_of_2(units)
    return {"X": units, "XP": padded, "num_warps": min(4, max(1, padded // 256))}  # threads read 16 bytes of a gate


def _classes(noise: Tensor) -> dict[str, int]:
    _, variables, classes = noise.shape
    padded = {"KP": triton.next_power_of_2(variables), "CP": triton.next_power_of_2(classes)}
    return {"K": variables, "C": classes, **padded}
