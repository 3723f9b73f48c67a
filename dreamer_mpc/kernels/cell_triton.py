"""The recurrent cell over a whole sequence as one Triton kernel, forward and backward.

A team of G programs processes BM rows of the batch through all time steps. Each program computes its slice of every
layer's columns, so it reads a G-th of the weights. Activations pass between layers through the buffers that the
backward pass needs anyway; after each layer the team synchronises at a counter in memory. A layer of few inputs is
computed as a whole by each member, where the next product takes it in one block. Teams never wait for each other.
All programs of a team must be on the GPU at once, so there are never more programs than multiprocessors unless
G is 1. In an update two of these kernels may run concurrently, so those that save for the backward pass use at most
half of the GPU; otherwise one would wait for the multiprocessors of the other.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamer_mpc.kernels.policy import MODE_ITERATIONS, PolicyWeights


@triton.jit
def _elu(x):
    return tl.where(x > 0, x, tl.exp(x) - 1)


@triton.jit
def _elu_slope(y):
    """d elu / dx where elu(x) = y."""
    return tl.where(y > 0, 1.0, y + 1)


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def _tanh_normal_mode(mean, std, STEPS: tl.constexpr):
    """See `policy.tanh_normal_mode`."""
    shift = 2 * std * std
    x = mean + tl.where(mean < 0, -shift, shift)
    for _ in tl.static_range(STEPS):
        t = _tanh(x)
        x -= (x - mean - shift * t) / tl.maximum(1 - shift + shift * t * t, 1e-6)
    return _tanh(x)


@triton.jit
def _load(ptr, rows, live, cols, real, STRIDE: tl.constexpr):
    """Rows of a [*, STRIDE] matrix, its columns `cols` where they are real: [BM, BN]."""
    return tl.load(ptr + rows[:, None] * STRIDE + cols[None, :], mask=live[:, None] & real[None, :], other=0.0)


@triton.jit
def _store(ptr, value, rows, live, cols, real, STRIDE: tl.constexpr):
    tl.store(ptr + rows[:, None] * STRIDE + cols[None, :], value, mask=live[:, None] & real[None, :])


@triton.jit
def _bias(ptr, cols, real):
    return tl.load(ptr + cols, mask=real, other=0.0)[None, :]


@triton.jit
def _weight(w, cols, real, ks, K: tl.constexpr, STRIDE: tl.constexpr):
    """A block of w.T, w [N, K]: [BK, BN]."""
    return tl.load(w + cols[None, :] * STRIDE + ks[:, None], mask=real[None, :] & (ks[:, None] < K), other=0.0)


@triton.jit
def _matmul(
    acc, x, w, rows, live, cols, real, K: tl.constexpr, X_STRIDE: tl.constexpr, W_STRIDE: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [BM, BN] + x [*, K] @ w.T for the columns `cols`, w [N, K]; both come from memory in blocks of K."""
    for k in tl.range(0, K, BK, num_stages=STAGES):
        ks = k + tl.arange(0, BK)
        b = _weight(w, cols, real, ks, K, W_STRIDE)
        a = _load(x, rows, live, ks, ks < K, X_STRIDE).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _matmul2(
    acc0, acc1, x0, x1, w0, w1, rows, live, cols0, real0, cols1, real1, K: tl.constexpr, SHARED: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Two products at once, which wait for memory together: acc + x [*, K] @ w.T each; one x for both if SHARED."""
    for k in tl.range(0, K, BK, num_stages=STAGES):
        ks = k + tl.arange(0, BK)
        b0 = _weight(w0, cols0, real0, ks, K, K)
        b1 = _weight(w1, cols1, real1, ks, K, K)
        a0 = _load(x0, rows, live, ks, ks < K, K).to(b0.dtype)
        if SHARED:
            a1 = a0
        else:
            a1 = _load(x1, rows, live, ks, ks < K, K).to(b1.dtype)
        acc0 = tl.dot(a0, b0, acc0, input_precision=PRECISION)
        acc1 = tl.dot(a1, b1, acc1, input_precision=PRECISION)
    return acc0, acc1


@triton.jit
def _matmul3(
    acc0, acc1, acc2, x, w, scale, rows, live, cols, real, K: tl.constexpr, N: tl.constexpr, SCALE: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Three products at once, for the gates: w [3N, K], rows of x times `scale` [BM, 1]."""
    for k in tl.range(0, K, BK, num_stages=STAGES):
        ks = k + tl.arange(0, BK)
        b0 = _weight(w, cols, real, ks, K, K)
        b1 = _weight(w + N * K, cols, real, ks, K, K)
        b2 = _weight(w + 2 * N * K, cols, real, ks, K, K)
        a = _load(x, rows, live, ks, ks < K, K)
        if SCALE:
            a = a * scale
        a = a.to(b0.dtype)
        acc0 = tl.dot(a, b0, acc0, input_precision=PRECISION)
        acc1 = tl.dot(a, b1, acc1, input_precision=PRECISION)
        acc2 = tl.dot(a, b2, acc2, input_precision=PRECISION)
    return acc0, acc1, acc2


@triton.jit
def _small_matmul(
    acc, x, w, ks, K: tl.constexpr, cols, real, K_STRIDE: tl.constexpr, N_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """acc [BM, BN] + x [BM, KP] in registers times w, whose element (k, n) lies at k * K_STRIDE + n * N_STRIDE."""
    at = ks[:, None] * K_STRIDE + cols[None, :] * N_STRIDE
    b = tl.load(w + at, mask=(ks[:, None] < K) & real[None, :], other=0.0)
    return tl.dot(x.to(b.dtype), b, acc, input_precision=PRECISION)


@triton.jit
def _own(cols, member, SIZE: tl.constexpr, SHARE: tl.constexpr):
    """Which of all columns of a layer are this member's."""
    return (cols < SIZE) & (cols >= member * SHARE) & (cols < (member + 1) * SHARE)


@triton.jit
def _meet(counter, target, G: tl.constexpr):
    """Wait until every program of the team has stored its results."""
    tl.debug_barrier()
    if G > 1:
        tl.atomic_add(counter, 1, sem="release", scope="gpu")
        while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
            pass
        tl.debug_barrier()


@triton.jit
def _forward(
    deter, stoch, action, add, noise, keep, x, gates, hidden, stats,
    w_in, b_in, w_ih, b_ih, w_hh, b_hh, w_hidden, w_out, b_out,
    actor_in, actor_mid, actor_out, actor_bias, actor_noise, previous, weight, scratch, counters,
    T, M, init_std, min_action_std, mean_scale,
    D: tl.constexpr, Z: tl.constexpr, A: tl.constexpr, X: tl.constexpr, U: tl.constexpr, LAYERS: tl.constexpr,
    MIN_STD: tl.constexpr, HIDDEN_STRIDE: tl.constexpr, ACTOR_STRIDE: tl.constexpr, STEP_ADD: tl.constexpr,
    KEEP: tl.constexpr, SAVE: tl.constexpr, BLEND: tl.constexpr, MODE_STEPS: tl.constexpr, G: tl.constexpr,
    SD: tl.constexpr,
    SX: tl.constexpr, SU: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BX: tl.constexpr, BU: tl.constexpr,
    XP: tl.constexpr, WHOLE: tl.constexpr, ZP: tl.constexpr, AP: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    team, member = tl.program_id(0), tl.program_id(1)
    counter = counters + team
    met = 0
    at = (team * BM + tl.arange(0, BM)).to(tl.int64)
    live = at < M
    # This member's columns of layers of size D, X and U; stoch and actions are computed by every member.
    ds, xs, us = member * SD + tl.arange(0, BD), member * SX + tl.arange(0, BX), member * SU + tl.arange(0, BU)
    dr = (tl.arange(0, BD) < SD) & (ds < D)
    xr = (tl.arange(0, BX) < SX) & (xs < X)
    ur = (tl.arange(0, BU) < SU) & (us < U)
    zs, acts = tl.arange(0, ZP), tl.arange(0, AP)
    zr, ar = zs < Z, acts < A
    every = tl.arange(0, XP)
    real = every < X
    z = _load(stoch, at, live, zs, zr, Z)  # [BM, ZP]
    kept = tl.full([BM, 1], 1.0, tl.float32)
    for t in range(T):
        now = at + t * M  # rows of this step's inputs, and of the state before it
        saved = now if SAVE else at
        if LAYERS > 0:  # the policy acts in the state that was reached
            h = tl.zeros([BM, BU], tl.float32)
            h = _matmul(h, deter, actor_in, now, live, us, ur, D, D, ACTOR_STRIDE, BK, STAGES, PRECISION)
            h = _small_matmul(h, z, actor_in + D, zs, Z, us, ur, 1, ACTOR_STRIDE, PRECISION)
            h = _elu(h + _bias(actor_bias, us, ur))
            for layer in tl.static_range(LAYERS - 1):
                buffer = scratch + (layer % 2) * M * U
                _store(buffer, h, at, live, us, ur, U)
                met += G
                _meet(counter, met, G)
                h = tl.zeros([BM, BU], tl.float32)
                h = _matmul(h, buffer, actor_mid + layer * U * U, at, live, us, ur, U, U, U, BK, STAGES, PRECISION)
                h = _elu(h + _bias(actor_bias + (layer + 1) * U, us, ur))
            buffer = scratch + ((LAYERS - 1) % 2) * M * U
            _store(buffer, h, at, live, us, ur, U)
            if MODE_STEPS == 0:
                act_noise = _load(actor_noise, now, live, acts, ar, A)  # read while the team meets
            met += G
            _meet(counter, met, G)
            mean = tl.zeros([BM, AP], tl.float32)
            raw = tl.zeros([BM, AP], tl.float32)
            mean, raw = _matmul2(
                mean, raw, buffer, buffer, actor_out, actor_out + A * U, at, live, acts, ar, acts, ar, U, True,
                BK, STAGES, PRECISION,
            )  # fmt: skip
            mean += _bias(actor_bias + LAYERS * U, acts, ar)
            raw += _bias(actor_bias + LAYERS * U + A, acts, ar)
            mean = mean_scale * _tanh(mean / mean_scale)
            std = _softplus(raw + init_std) + min_action_std
            if MODE_STEPS > 0:
                a = _tanh_normal_mode(mean, std, MODE_STEPS)
            else:
                a = _tanh(mean + std * act_noise)
            if BLEND:
                share = tl.load(weight + now, mask=live, other=0.0)[:, None]
                a = share * _load(previous, now, live, acts, ar, A) + (1 - share) * a
                a = tl.minimum(tl.maximum(a, -1.0), 1.0)
            a = tl.where(ar[None, :], a, 0.0)
            _store(action, a, now, live & (member == 0), acts, ar, A)
        else:
            a = _load(action, now, live, acts, ar, A)
        if KEEP:
            kept = tl.load(keep + now, mask=live, other=0.0)[:, None]  # [BM, 1]
            z = z * kept
            a = a * kept
        # Input layer: of few inputs, so that a member computes all of it where it has the registers, without a meeting
        if WHOLE:
            h = tl.zeros([BM, XP], tl.float32)
            h = _small_matmul(h, z, w_in, zs, Z, every, real, 1, Z + A, PRECISION)
            h = _small_matmul(h, a, w_in + Z, acts, A, every, real, 1, Z + A, PRECISION)
            h = _elu(h + _bias(b_in, every, real))
            if SAVE:
                _store(x, h, saved, live, every, _own(every, member, X, SX), X)
        else:
            h = tl.zeros([BM, BX], tl.float32)
            h = _small_matmul(h, z, w_in, zs, Z, xs, xr, 1, Z + A, PRECISION)
            h = _small_matmul(h, a, w_in + Z, acts, A, xs, xr, 1, Z + A, PRECISION)
            _store(x, _elu(h + _bias(b_in, xs, xr)), saved, live, xs, xr, X)
        # GRU
        before = _load(deter, now, live, ds, dr, D)
        if KEEP:
            before = before * kept
        r = tl.zeros([BM, BD], tl.float32)
        u = tl.zeros([BM, BD], tl.float32)
        gh = tl.zeros([BM, BD], tl.float32)
        n = tl.zeros([BM, BD], tl.float32)
        r, u, gh = _matmul3(r, u, gh, deter, w_hh, kept, now, live, ds, dr, D, D, KEEP, BK, STAGES, PRECISION)
        if WHOLE:
            r = _small_matmul(r, h, w_ih, every, X, ds, dr, 1, X, PRECISION)
            u = _small_matmul(u, h, w_ih + D * X, every, X, ds, dr, 1, X, PRECISION)
            n = _small_matmul(n, h, w_ih + 2 * D * X, every, X, ds, dr, 1, X, PRECISION)
        else:
            met += G
            _meet(counter, met, G)
            r, u, n = _matmul3(r, u, n, x, w_ih, kept, saved, live, ds, dr, X, D, False, BK, STAGES, PRECISION)
        r = tl.sigmoid(r + _bias(b_ih, ds, dr) + _bias(b_hh, ds, dr))
        u = tl.sigmoid(u + _bias(b_ih + D, ds, dr) + _bias(b_hh + D, ds, dr))
        gh += _bias(b_hh + 2 * D, ds, dr)
        n = _tanh(n + _bias(b_ih + 2 * D, ds, dr) + r * gh)
        _store(deter, n + u * (before - n), now + M, live, ds, dr, D)
        if SAVE:
            _store(gates, r, saved, live, ds, dr, 4 * D)
            _store(gates + D, u, saved, live, ds, dr, 4 * D)
            _store(gates + 2 * D, n, saved, live, ds, dr, 4 * D)
            _store(gates + 3 * D, gh, saved, live, ds, dr, 4 * D)
        # Prior or posterior; what it needs beside the state is read while the team meets
        drawn = _load(noise, now, live, zs, zr, Z)
        h = tl.zeros([BM, BX], tl.float32)
        if STEP_ADD:
            h += _load(add, now, live, xs, xr, X)
        else:
            h += _bias(add, xs, xr)
        met += G
        _meet(counter, met, G)
        h = _matmul(h, deter, w_hidden, now + M, live, xs, xr, D, D, HIDDEN_STRIDE, BK, STAGES, PRECISION)
        _store(hidden, _elu(h), saved, live, xs, xr, X)
        met += G
        _meet(counter, met, G)
        mean = tl.zeros([BM, ZP], tl.float32)
        raw = tl.zeros([BM, ZP], tl.float32)
        mean, raw = _matmul2(
            mean, raw, hidden, hidden, w_out, w_out + Z * X, saved, live, zs, zr, zs, zr, X, True,
            BK, STAGES, PRECISION,
        )  # fmt: skip
        mean += _bias(b_out, zs, zr)
        raw += _bias(b_out + Z, zs, zr)
        z = mean + (_softplus(raw) + MIN_STD) * drawn
        z = tl.where(zr[None, :], z, 0.0)
        first = live & (member == 0)
        _store(stoch, z, now + M, first, zs, zr, Z)
        if SAVE:
            _store(stats, mean, saved, first, zs, zr, 2 * Z)
            _store(stats + Z, raw, saved, first, zs, zr, 2 * Z)


@triton.jit
def _backward(
    g_deter, g_stoch, g_stats, deter, noise, keep, x, gates, hidden, stats,
    w_in_t, w_ih_t, w_hh_t, w_hidden_t, w_out,
    d_action, d_deter0, d_stoch0, d_x, d_gi, d_gh, d_hidden, d_stats, counters, T, M,
    D: tl.constexpr, Z: tl.constexpr, A: tl.constexpr, X: tl.constexpr, KEEP: tl.constexpr, SAVE: tl.constexpr,
    G: tl.constexpr, SD: tl.constexpr, SX: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BX: tl.constexpr,
    XP: tl.constexpr, WHOLE: tl.constexpr, ZP: tl.constexpr, AP: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    team, member = tl.program_id(0), tl.program_id(1)
    counter = counters + team
    met = 0
    at = (team * BM + tl.arange(0, BM)).to(tl.int64)
    live = at < M
    first = live & (member == 0)
    ds, xs = member * SD + tl.arange(0, BD), member * SX + tl.arange(0, BX)
    dr = (tl.arange(0, BD) < SD) & (ds < D)
    xr = (tl.arange(0, BX) < SX) & (xs < X)
    zs, acts = tl.arange(0, ZP), tl.arange(0, AP)
    zr, ar = zs < Z, acts < A
    every = tl.arange(0, XP)
    real = every < X
    dd = tl.zeros([BM, BD], tl.float32)
    dz = tl.zeros([BM, ZP], tl.float32)
    last = at + (T - 1) * M
    g_z, eps = _load(g_stoch, last, live, zs, zr, Z), _load(noise, last, live, zs, zr, Z)
    spread = _load(stats + Z, last, live, zs, zr, 2 * Z)
    for i in range(T):
        t = T - 1 - i
        now = at + t * M
        saved = now if SAVE else at  # what only the weights' gradients need again
        g_d = _load(g_deter, now, live, ds, dr, D)
        dz += g_z
        # Prior or posterior
        d_mean = dz
        d_raw = dz * eps * tl.sigmoid(spread)
        if SAVE:
            d_mean += _load(g_stats, now, live, zs, zr, 2 * Z)
            d_raw += _load(g_stats + Z, now, live, zs, zr, 2 * Z)
            _store(d_stats, d_mean, saved, first, zs, zr, 2 * Z)
            _store(d_stats + Z, d_raw, saved, first, zs, zr, 2 * Z)
        if WHOLE:  # without a meeting, as the input layer of `_forward`
            h = tl.zeros([BM, XP], tl.float32)
            h = _small_matmul(h, d_mean, w_out, zs, Z, every, real, X, 1, PRECISION)
            h = _small_matmul(h, d_raw, w_out + Z * X, zs, Z, every, real, X, 1, PRECISION)
            h *= _elu_slope(_load(hidden, now, live, every, real, X))
            if SAVE:
                _store(d_hidden, h, saved, live, every, _own(every, member, X, SX), X)
        else:
            h = tl.zeros([BM, BX], tl.float32)
            h = _small_matmul(h, d_mean, w_out, zs, Z, xs, xr, X, 1, PRECISION)
            h = _small_matmul(h, d_raw, w_out + Z * X, zs, Z, xs, xr, X, 1, PRECISION)
            h *= _elu_slope(_load(hidden, now, live, xs, xr, X))
            _store(d_hidden, h, saved, live, xs, xr, X)
        dd += g_d
        # What the GRU needs of the forward pass, read while the team meets
        before = _load(deter, now, live, ds, dr, D)
        kept = tl.full([BM, 1], 1.0, tl.float32)
        if KEEP:
            kept = tl.load(keep + now, mask=live, other=0.0)[:, None]
            before = before * kept
        r = _load(gates, now, live, ds, dr, 4 * D)
        u = _load(gates + D, now, live, ds, dr, 4 * D)
        n = _load(gates + 2 * D, now, live, ds, dr, 4 * D)
        gh = _load(gates + 3 * D, now, live, ds, dr, 4 * D)
        if WHOLE:
            dd = _small_matmul(dd, h, w_hidden_t, every, X, ds, dr, 1, X, PRECISION)
        else:
            met += G
            _meet(counter, met, G)
            dd = _matmul(dd, d_hidden, w_hidden_t, saved, live, ds, dr, X, X, X, BK, STAGES, PRECISION)
        # GRU
        d_n = dd * (1 - u) * (1 - n * n)
        d_u = dd * (before - n) * u * (1 - u)
        d_r = d_n * gh * r * (1 - r)
        dd = dd * u
        _store(d_gi, d_r, saved, live, ds, dr, 3 * D)
        _store(d_gi + D, d_u, saved, live, ds, dr, 3 * D)
        _store(d_gi + 2 * D, d_n, saved, live, ds, dr, 3 * D)
        _store(d_gh, d_r, saved, live, ds, dr, 3 * D)
        _store(d_gh + D, d_u, saved, live, ds, dr, 3 * D)
        _store(d_gh + 2 * D, d_n * r, saved, live, ds, dr, 3 * D)
        slope = _elu_slope(_load(x, now, live, xs, xr, X))
        met += G
        _meet(counter, met, G)
        h = tl.zeros([BM, BX], tl.float32)
        h, dd = _matmul2(
            h, dd, d_gi, d_gh, w_ih_t, w_hh_t, saved, live, xs, xr, ds, dr, 3 * D, False, BK, STAGES, PRECISION
        )
        _store(d_x, h * slope, saved, live, xs, xr, X)
        # What the next step begins with, read while the team meets
        ahead = at + tl.maximum(t - 1, 0) * M
        g_z, eps = _load(g_stoch, ahead, live, zs, zr, Z), _load(noise, ahead, live, zs, zr, Z)
        spread = _load(stats + Z, ahead, live, zs, zr, 2 * Z)
        met += G
        _meet(counter, met, G)
        # Input layer
        dz = tl.zeros([BM, ZP], tl.float32)
        da = tl.zeros([BM, AP], tl.float32)
        dz, da = _matmul2(
            dz, da, d_x, d_x, w_in_t, w_in_t + Z * X, saved, live, zs, zr, acts, ar, X, True, BK, STAGES, PRECISION
        )
        dd, dz, da = dd * kept, dz * kept, da * kept
        _store(d_action, da, now, first, acts, ar, A)
    _store(d_deter0, dd, at, live, ds, dr, D)
    _store(d_stoch0, dz, at, first, zs, zr, Z)


def _sizes(deter: int, stoch: int, action: int, hidden: int) -> dict[str, int]:
    return {"D": deter, "Z": stoch, "A": action, "X": hidden, "ZP": _block(stoch), "AP": _block(action)}


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _launch(rows: int, width: int, device: torch.device, bf16: bool, alone: bool) -> dict[str, int]:
    """Rows and size of a team, by how many of them the GPU holds at once, for layers of at most `width` columns."""
    processors, memory = _hardware(device)
    processors //= 1 if alone else 2
    block, team, warps = 32, 1, 8
    for few, members, threads in ((16, 13, 4), (32, 4, 8)):  # measured on an H200
        if triton.cdiv(rows, few) * members <= processors:
            block, team, warps = few, members, threads
            break
    # A team's blocks of weights are small, so that one can have all inputs: one wait for memory. In fp32 registers end.
    depth, columns = 256 if bf16 else 128, _block(triton.cdiv(width, team))
    # Of the gates' three blocks of weights and one of activations, or two of each, two are there at a time; in fp32 one
    # more block of activations.
    weights = columns * (2 if bf16 else 4)
    most = 2 * max(3 * weights + 4 * block, 2 * weights + 8 * block) + (0 if bf16 else 4 * block)
    while depth > (16 if bf16 else 8) and depth * most > memory:
        depth //= 2
    return {"BM": block, "G": team, "BK": depth, "STAGES": 3, "num_warps": warps}


def _hardware(device: torch.device) -> tuple[int, int]:
    """Programs that run at once, and a program's shared memory in bytes. On a CPU, interpreted, they take turns."""
    if device.type == "cpu":
        return 1, 101_376
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 101_376)


def _slices(launch: dict[str, int], **sizes: int) -> dict[str, int]:
    """A member's share S* of layers of these sizes, and the block B* that holds it."""
    shares = {name: triton.cdiv(size, launch["G"]) for name, size in sizes.items()}
    return {f"S{n}": share for n, share in shares.items()} | {f"B{n}": _block(share) for n, share in shares.items()}


def _wholes(launch: dict[str, int], hidden: int) -> dict[str, int | bool]:
    """Whether each member of a team computes all of a hidden layer with few inputs, and the block that holds it."""
    return {"WHOLE": launch["G"] > 1 and launch["BK"] >= hidden, "XP": _block(hidden)}


def _product(weights: list[Tensor], bf16: bool) -> list[Tensor]:
    """Weights for products, in rows; a transposed one is rounded and rearranged in one pass."""
    layout = {"memory_format": torch.contiguous_format}
    return [w.to(torch.bfloat16, **layout) if bf16 else w.contiguous() for w in weights]


class Products(NamedTuple):
    """The weights of products as the kernels read them, in the order of `Cell`."""

    forward: list[Tensor]
    backward: list[Tensor]  # transposed but for the last; empty where there is no way back


def products(cell: tuple[Tensor, ...], bf16: bool, back: bool = True) -> Products:
    """Of a cell; `back`: whether there is a way back."""
    *others, out = weights = [cell[i] for i in (0, 2, 4, 6, 7)]
    return Products(_product(weights, bf16), _product([*(w.t() for w in others), out], bf16) if back else [])


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def forward(
    deter: Tensor, stoch: Tensor, action: Tensor, add: Tensor, noise: Tensor, keep: Tensor | None, x: Tensor,
    gates: Tensor | None, hidden: Tensor, stats: Tensor | None, cell: tuple[Tensor, ...], min_std: float, bf16: bool,
    actor: PolicyWeights | None = None, actor_noise: Tensor | None = None, previous: Tensor | None = None,
    weight: Tensor | None = None, given: Products | None = None,
) -> None:  # fmt: skip
    """Fill deter[1:], stoch[1:] and the saved tensors from deter[0] and stoch[0]; with `actor`, also `action`.

    `bf16`: products of bf16 numbers, summed in fp32; `given`: the cell's `products`, made before.
    """
    w_in, b_in, w_ih, b_ih, w_hh, b_hh, w_hidden, w_out, b_out = cell
    steps, rows = noise.shape[:2]
    width = max(deter.shape[-1], hidden.shape[-1], actor.units if actor is not None else 0)
    launch = _launch(rows, width, noise.device, bf16, alone=gates is None)
    teams = triton.cdiv(rows, launch["BM"])
    policy = {"U": 16, "LAYERS": 0, "ACTOR_STRIDE": 1, "BLEND": False, "MODE_STEPS": 0}
    scalars = (0.0, 0.0, 1.0)
    actor_in = actor_mid = actor_out = actor_bias = scratch = None
    if actor is not None:
        actor_in, actor_mid, actor_out, actor_bias = _actor_weights(actor, bf16)
        units, layers = actor_in.shape[0], 1 + len(actor_mid)
        policy = {"U": units, "LAYERS": layers, "ACTOR_STRIDE": actor_in.stride(0), "BLEND": previous is not None}
        policy["MODE_STEPS"] = MODE_ITERATIONS if actor_noise is None else 0
        scratch = noise.new_empty(2, rows, units)
        scalars = (actor.raw_init_std, actor.min_std, actor.mean_scale)
    ready = _product([w_in, w_ih, w_hh, w_hidden, w_out], bf16) if given is None else given.forward
    w_in, w_ih, w_hh, w_hidden, w_out = ready
    sizes = _sizes(deter.shape[-1], stoch.shape[-1], action.shape[-1], hidden.shape[-1])
    _forward[(teams, launch["G"])](
        deter, stoch, action, add, noise, keep, x, gates, hidden, stats,
        w_in, b_in, w_ih, b_ih, w_hh, b_hh, w_hidden, w_out, b_out,
        actor_in, actor_mid, actor_out, actor_bias, actor_noise, previous, weight, scratch,
        _counters(teams, noise.device), steps, rows, *scalars,
        **sizes, **launch, **policy, **_wholes(launch, sizes["X"]),
        **_slices(launch, D=sizes["D"], X=sizes["X"], U=policy["U"]),
        MIN_STD=min_std, HIDDEN_STRIDE=w_hidden.stride(0), STEP_ADD=add.dim() == 3, KEEP=keep is not None,
        SAVE=gates is not None, PRECISION=_precision(),
    )  # fmt: skip


def _counters(teams: int, device: torch.device) -> Tensor:
    return torch.zeros(teams, dtype=torch.int32, device=device)


def _actor_weights(actor: PolicyWeights, bf16: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First layer (rows padded to whole 16 bytes), middle layers [L - 1, U, U], last layer, all biases in a row."""
    first, *middle, last = actor.weights
    padded = torch.nn.functional.pad(first, (0, -first.shape[1] % 8))
    mid = torch.stack(middle) if middle else first.new_empty(0)
    bias = torch.cat(actor.biases)
    return *_product([padded.detach(), mid.detach(), last.detach()], bf16), bias.detach()


def backward(
    g_deter: Tensor, g_stoch: Tensor, g_stats: Tensor | None, deter: Tensor, noise: Tensor, keep: Tensor | None,
    x: Tensor, gates: Tensor, hidden: Tensor, stats: Tensor, cell: tuple[Tensor, ...], actions: int, bf16: bool,
    given: Products | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of action, deter[0], stoch[0]; and, with `g_stats`, those at the layers' outputs. `given`: as there."""
    steps, rows, z = noise.shape
    d, width = deter.shape[-1], hidden.shape[-1]
    launch = _launch(rows, max(d, width), noise.device, bf16, alone=False)
    teams = triton.cdiv(rows, launch["BM"])
    kept = steps if g_stats is not None else 1
    sizes = (actions, width, 3 * d, 3 * d, width, 2 * z)
    d_action, d_x, d_gi, d_gh, d_hidden, d_stats = (
        noise.new_empty(kept if i else steps, rows, size) for i, size in enumerate(sizes)
    )
    d_deter0, d_stoch0 = noise.new_empty(rows, d), noise.new_empty(rows, z)
    weights = (products(cell, bf16) if given is None else given).backward
    _backward[(teams, launch["G"])](
        g_deter, g_stoch, g_stats, deter, noise, keep, x, gates, hidden, stats,
        *weights,
        d_action, d_deter0, d_stoch0, d_x, d_gi, d_gh, d_hidden, d_stats, _counters(teams, noise.device), steps, rows,
        **_sizes(d, z, actions, width), **launch, **_wholes(launch, width), **_slices(launch, D=d, X=width),
        KEEP=keep is not None, SAVE=g_stats is not None, PRECISION=_precision(),
    )  # fmt: skip
    return d_action, d_deter0, d_stoch0, d_x, d_gi, d_gh, d_hidden, d_stats
