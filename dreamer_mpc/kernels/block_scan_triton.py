"""DreamerV3's scan over a whole sequence as one Triton kernel each way, by teams as in `cell_triton.py`.

A team of P programs takes BM rows of the batch through all steps. Each program has some units of one block of deter,
and computes their columns of the hidden layer and of the gates, and the classes of every P-th variable. Products whose
output is narrower than that are cut along their inputs too: programs write parts, and those who read add them up. So
there are five layers after which the team has to meet. What does not depend on the layer before is computed between a
program's arrival at such a meeting and its end. All programs of a team must be on the GPU at once: `cell_triton.py`.

Matrices of T + 1 states or T steps have a row for each step and row of the batch, [T * M, *].
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamer_mpc.kernels import cell_triton
from dreamer_mpc.kernels.block_cell import BlockWeights
from dreamer_mpc.kernels.block_cell_triton import _tanh
from dreamer_mpc.kernels.cell_triton import _bias, _load, _store

WIDEST, WIDEST_EXACT = 256, 64  # inputs of a product that a program has in registers; of one in fp32 without TF32
UNITS = 32  # of deter that a program has
ROWS = (16, 32)  # that a team may have
SHARED = 86_016  # bytes that a program needs with 16 rows and the widest layers in bf16, by the compiler's count
PARTS = {"deter": 4, "stoch": 2}  # at most, into which the inputs of a product are cut


@triton.jit
def _arrive(counter):
    """Say that this program has stored its results."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def _wait(counter, target):
    """Wait until every program of the team has arrived."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _tile(w, ks, kr, cols, real, K_STRIDE: tl.constexpr, N_STRIDE: tl.constexpr):
    """Weights of the inputs `ks` and the outputs `cols`: [BK, BN]."""
    at = ks[:, None] * K_STRIDE + cols[None, :] * N_STRIDE
    return tl.load(w + at, mask=kr[:, None] & real[None, :], other=0.0)


@triton.jit
def _times(acc, x, w, PRECISION: tl.constexpr):
    """acc [BM, BN] + x [BM, BK] @ w, all in registers."""
    return tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION)


@triton.jit
def _rounded(x, w, bias, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """x @ w + bias as it is stored in the precision of products."""
    acc = tl.zeros([BM, BN], tl.float32)
    return (_times(acc, x, w, PRECISION) + bias).to(w.dtype).to(tl.float32)


@triton.jit
def _total(parts, at, live, cols, real, M, STRIDE: tl.constexpr, S: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The sum of S parts [M, STRIDE]."""
    acc = tl.zeros([BM, BN], tl.float32)
    for s in tl.static_range(S):
        acc += _load(parts + s * M * STRIDE, at, live, cols, real, STRIDE)
    return acc


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)): the reciprocal square root is one instruction, a division six."""
    root = tl.rsqrt(1 + tl.exp(-x))
    return root * root


@triton.jit
def _norm_silu(x, gain, eps, N: tl.constexpr):
    n = x * tl.rsqrt(tl.sum(x * x, axis=1) / N + eps)[:, None] * gain
    return n * _sigmoid(n)


@triton.jit
def _before_norm(g, scaled, gain):
    """The gradient of the norm's output, `scaled`, of g, that of SiLU(scaled * gain)."""
    n = scaled * gain
    s = _sigmoid(n)
    return g * s * (1 + n * (1 - s)) * gain


@triton.jit
def _norm_back(g, x, gain, eps, N: tl.constexpr):
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / N + eps)[:, None]
    scaled = x * inverse
    dn = _before_norm(g, scaled, gain)
    return inverse * (dn - scaled * (tl.sum(dn * scaled, axis=1)[:, None] / N))


@triton.jit
def _mixed(x, real, unimix, C: tl.constexpr):
    """Softmax of a variable's logits [BM, CP], and its mixture with the uniform distribution."""
    x = tl.where(real[None, :], x, -1e30)
    e = tl.where(real[None, :], tl.exp(x - tl.max(x, axis=1)[:, None]), 0.0)
    probs = e / tl.sum(e, axis=1)[:, None]
    return probs, tl.where(real[None, :], tl.maximum((1 - unimix) * probs + unimix / C, 1e-37), 1.0)


@triton.jit
def _spread(
    x, pre, inverse, mean, w, out, rows, at, live, job, M, K: tl.constexpr, N: tl.constexpr,
    K_STRIDE: tl.constexpr, N_STRIDE: tl.constexpr, NORM_BACK: tl.constexpr, P: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, S: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """S parts of x [*, K] @ w, each over KS inputs, `out` [S, M, N]; a job is a tile of BN columns of a part.

    A program has every P-th job, `job` is its first. With NORM_BACK, x is the gradient of the output of the norm of
    `pre`, and the product is that of its own gradient, inverse * (x - pre * inverse * mean).
    """
    while job < ((N + BN - 1) // BN) * S:
        part = job // ((N + BN - 1) // BN)
        cols = (job % ((N + BN - 1) // BN)) * BN + tl.arange(0, BN)
        # Two sums each, because a product has to wait for the one before it in the same sum.
        acc, acc2 = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
        of_pre, of_pre2 = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
        for k in tl.range(0, KS, 2 * BK, num_stages=STAGES):
            ks = part * KS + k + tl.arange(0, BK)
            ks2 = ks + BK
            b = _tile(w, ks, ks < K, cols, cols < N, K_STRIDE, N_STRIDE)
            b2 = _tile(w, ks2, ks2 < K, cols, cols < N, K_STRIDE, N_STRIDE)
            a = _load(x, rows, live, ks, ks < K, K).to(b.dtype)
            a2 = _load(x, rows, live, ks2, ks2 < K, K).to(b.dtype)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
            acc2 = tl.dot(a2, b2, acc2, input_precision=PRECISION)
            if NORM_BACK:
                a = _load(pre, rows, live, ks, ks < K, K).to(b.dtype)
                a2 = _load(pre, rows, live, ks2, ks2 < K, K).to(b.dtype)
                of_pre = tl.dot(a, b, of_pre, input_precision=PRECISION)
                of_pre2 = tl.dot(a2, b2, of_pre2, input_precision=PRECISION)
        acc += acc2
        if NORM_BACK:
            acc = inverse * (acc - (of_pre + of_pre2) * inverse * mean)
        _store(out + part * M * N, acc, at, live, cols, cols < N, N)
        job += P


@triton.jit(do_not_specialize=["T", "M"])  # acting has other numbers, and need not be compiled anew
def _forward(
    deter, cast, stoch, moved, seen, noise, keep, in_parts, stoch_parts, hidden_pre, squares, gates, logits, log_probs,
    w_in, b_deter, n_deter, w_stoch, b_stoch, n_stoch, w_own, w_shared, b_hidden, n_hidden, w_gates, b_gates,
    n_posterior, w_logits, b_logits, counters, T, M, unimix, eps,
    D: tl.constexpr, X: tl.constexpr, H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    MB: tl.constexpr, SU: tl.constexpr, BM: tl.constexpr, BU: tl.constexpr, XP: tl.constexpr, HP: tl.constexpr,
    CP: tl.constexpr, PP: tl.constexpr, BN: tl.constexpr, S: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr,
    ZN: tl.constexpr, ZS: tl.constexpr, ZKS: tl.constexpr, ZBK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    member = tl.program_id(1)
    other = (member + P // 2) % P  # the first half of the team has the variables, the other half what follows at once
    counter = counters + tl.program_id(0)
    at = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    live = at < M
    block = member // MB
    us = (member % MB) * SU + tl.arange(0, BU)  # this member's units of its block, and of deter
    ur = (tl.arange(0, BU) < SU) & (us < X)
    ds = block * X + us
    xs, hs, cs, ps = tl.arange(0, XP), tl.arange(0, HP), tl.arange(0, CP), tl.arange(0, PP)
    xr, hr, cr, pr = xs < X, hs < H, cs < C, ps < P
    for t in range(T + 1):
        now = at + t * M
        # The layers of deter: of the posterior of the step before, and of this step
        parts = in_parts + t * S * M * 2 * H
        _spread(
            cast, cast, 0.0, 0.0, w_in, parts, now, at, live, member, M, D, 2 * H, 1, D, False, P, BM, BN, S, KS, BK,
            STAGES, PRECISION,
        )
        _arrive(counter)
        # The hidden layer: inputs from the block itself, and from the action's layer
        going = live & (t < T)
        kept = tl.load(keep + now, mask=going, other=0.0)[:, None] > 0
        acc = tl.zeros([BM, BU], tl.float32)
        w_units = _tile(w_own + block * X * X, xs, xr, us, ur, X, 1)
        acc = tl.where(kept, _times(acc, _load(cast + block * X, now, live, xs, xr, D), w_units, PRECISION), 0.0)
        w_layer = _tile(w_shared + 2 * H, hs, hr, ds, ur, 1, 3 * H)
        acc = _times(acc, _load(moved, now, going, hs, hr, H), w_layer, PRECISION) + _bias(b_hidden, ds, ur)
        _wait(counter, (5 * t + 1) * P)
        if t > 0:  # posterior of the step before, and its sample
            v = member
            while v < K:
                cols = v * C + cs
                w_logit = _tile(w_logits, hs, hr, cols, cr, 1, H)
                pre = _total(parts, at, live, hs, hr, M, 2 * H, S, BM, HP) + _load(seen, now - M, live, hs, hr, H)
                posterior = _norm_silu(pre, _bias(n_posterior, hs, hr), eps, H)
                logit = tl.zeros([BM, CP], tl.float32)
                logit = _times(logit, posterior, w_logit, PRECISION) + _bias(b_logits, cols, cr)
                _, mixed = _mixed(logit, cr, unimix, C)
                logs = tl.log(mixed)
                score = tl.where(cr[None, :], logs + _load(noise, now - M, live, cols, cr, K * C), -1e30)
                best = tl.argmax(score, axis=1)
                _store(stoch, tl.where(cs[None, :] == best[:, None], 1.0, 0.0), now, live, cols, cr, K * C)
                _store(logits, logit, now - M, live, cols, cr, K * C)
                _store(log_probs, logs, now - M, live, cols, cr, K * C)
                v += P
        if t < T:
            _arrive(counter)
            # From the layer of deter
            w_layer = _tile(w_shared, hs, hr, ds, ur, 1, 3 * H)
            layer = tl.where(kept, _total(parts + H, at, live, hs, hr, M, 2 * H, S, BM, HP), 0.0)
            layer = _norm_silu(layer + _bias(b_deter, hs, hr), _bias(n_deter, hs, hr), eps, H)
            acc = _times(acc, layer, w_layer, PRECISION)
            _wait(counter, (5 * t + 2) * P)
            drawn = stoch_parts + t * ZS * M * H
            _spread(
                stoch, stoch, 0.0, 0.0, w_stoch, drawn, now, at, live, other, M, K * C, H, 1, K * C, False, P, BM, ZN,
                ZS, ZKS, ZBK, STAGES, PRECISION,
            )
            _arrive(counter)
            w_layer = _tile(w_shared + H, hs, hr, ds, ur, 1, 3 * H)
            _wait(counter, (5 * t + 3) * P)
            # From the layer of stoch
            layer = tl.where(kept, _total(drawn, at, live, hs, hr, M, H, ZS, BM, HP), 0.0)
            layer = _norm_silu(layer + _bias(b_stoch, hs, hr), _bias(n_stoch, hs, hr), eps, H)
            acc = _times(acc, layer, w_layer, PRECISION).to(w_layer.dtype).to(tl.float32)  # as others read it
            _store(hidden_pre, acc, now, live, ds, ur, D)
            tl.store(squares + now * P + member, tl.sum(acc * acc, axis=1), mask=live)
            _arrive(counter)
            # The gates, and the next deter
            w_block = w_gates + block * X * 3 * X
            w_reset = _tile(w_block, xs, xr, us, ur, 3 * X, 1)
            w_candidate = _tile(w_block + X, xs, xr, us, ur, 3 * X, 1)
            w_update = _tile(w_block + 2 * X, xs, xr, us, ur, 3 * X, 1)
            before = tl.where(kept, _load(deter, now, live, ds, ur, D), 0.0)
            _wait(counter, (5 * t + 4) * P)
            # Only a sum over x itself keeps the compiler from computing all of what follows anew in every warp.
            x = _load(hidden_pre + block * X, now, live, xs, xr, D).to(tl.float32)
            square = tl.sum(_load(squares, now, live, ps, pr & (ps // MB != block), P), axis=1) + tl.sum(x * x, axis=1)
            x = x * tl.rsqrt(square / D + eps)[:, None] * _bias(n_hidden + block * X, xs, xr)
            hidden = (x * _sigmoid(x)).to(w_reset.dtype)
            b_block = b_gates + block * 3 * X
            reset = _rounded(hidden, w_reset, _bias(b_block, us, ur), BM, BU, PRECISION)
            candidate = _rounded(hidden, w_candidate, _bias(b_block + X, us, ur), BM, BU, PRECISION)
            update = _rounded(hidden, w_update, _bias(b_block + 2 * X, us, ur), BM, BU, PRECISION)
            gate = gates + block * 3 * X
            _store(gate, reset, now, live, us, ur, 3 * D)
            _store(gate + X, candidate, now, live, us, ur, 3 * D)
            _store(gate + 2 * X, update, now, live, us, ur, 3 * D)
            reset, update = _sigmoid(reset), _sigmoid(update - 1)
            new = update * _tanh(reset * candidate) + (1 - update) * before
            _store(deter, new, now + M, live, ds, ur, D)
            _store(cast, new, now + M, live, ds, ur, D)
            _arrive(counter)
            _wait(counter, (5 * t + 5) * P)


@triton.jit(do_not_specialize=["T", "M"])  # acting has other numbers, and need not be compiled anew
def _backward(
    g_deter, g_stoch, g_posterior, keep, deter, gates, hidden_pre, inverses, logits, posterior_pre, deter_pre,
    stoch_pre, w_in, n_deter, w_stoch, n_stoch, w_own, w_shared, n_hidden, w_gates, n_posterior, w_logits,
    d_deter, d_stoch, d_logits, out_parts, d_gates, hidden_out, d_normed, dots, in_parts, counters, T, M, unimix, eps,
    D: tl.constexpr, X: tl.constexpr, H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    MB: tl.constexpr, SU: tl.constexpr, BM: tl.constexpr, BU: tl.constexpr, XP: tl.constexpr, HP: tl.constexpr,
    CP: tl.constexpr, PP: tl.constexpr, BN: tl.constexpr, S: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr,
    ZN: tl.constexpr, ZS: tl.constexpr, ZKS: tl.constexpr, ZBK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    member = tl.program_id(1)
    other = (member + P // 2) % P  # the first half of the team has the variables, the other half what follows at once
    counter = counters + tl.program_id(0)
    at = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    live = at < M
    block = member // MB
    us = (member % MB) * SU + tl.arange(0, BU)
    ur = (tl.arange(0, BU) < SU) & (us < X)
    ds = block * X + us
    xs, hs, cs, ps = tl.arange(0, XP), tl.arange(0, HP), tl.arange(0, CP), tl.arange(0, PP)
    xr, hr, cr, pr = xs < X, hs < H, cs < C, ps < P
    dd = tl.zeros([BM, BU], tl.float32)  # of deter
    for i in range(T + 1):
        t = T - 1 - i
        now = at + t * M
        # From step t + 1 to the state before it; and through the sample of step t to the posterior's logits
        after = now + M
        later = live & (after < T * M)
        kept = tl.load(keep + after, mask=later, other=0.0)[:, None] > 0
        parts = in_parts + (t + 1) * S * M * 2 * H
        v = member
        while v < K:
            cols = v * C + cs
            w_sample = _tile(w_stoch, hs, hr, cols, cr, K * C, 1)
            dx = _total(parts + H, at, later, hs, hr, M, 2 * H, S, BM, HP)
            dx = _norm_back(dx, _load(stoch_pre, after, later, hs, hr, H), _bias(n_stoch, hs, hr), eps, H)
            dz = tl.zeros([BM, CP], tl.float32)
            dz = tl.where(kept, _times(dz, dx, w_sample, PRECISION), 0.0)
            if t < 0:
                _store(d_stoch, dz, at, live, cols, cr, K * C)
            else:
                dz += _load(g_stoch, now, live, cols, cr, K * C)
                probs, mixed = _mixed(_load(logits, now, live, cols, cr, K * C), cr, unimix, C)
                slope = (1 - unimix) * (_load(g_posterior, now, live, cols, cr, K * C) / mixed + dz)
                slope = tl.where(cr[None, :], slope, 0.0)
                dlogit = probs * (slope - tl.sum(probs * slope, axis=1)[:, None])
                _store(d_logits, dlogit, now, live, cols, cr, K * C)
            v += P
        _arrive(counter)
        w_layer = _tile(w_in + H * D, hs, hr, ds, ur, D, 1)
        dx = _total(parts, at, later, hs, hr, M, 2 * H, S, BM, HP)
        dx = _norm_back(dx, _load(deter_pre, after, later, hs, hr, H), _bias(n_deter, hs, hr), eps, H)
        dd = tl.where(kept, _times(dd, dx, w_layer, PRECISION), 0.0)
        if t < 0:
            _store(d_deter, dd, at, live, ds, ur, D)
        else:
            _wait(counter, (5 * i + 1) * P)
            out = out_parts + t * ZS * M * H
            _spread(
                d_logits, d_logits, 0.0, 0.0, w_logits, out, now, at, live, other, M, K * C, H, H, 1, False, P, BM,
                ZN, ZS, ZKS, ZBK, STAGES, PRECISION,
            )
            _arrive(counter)
            # The posterior's layer, and the gates
            w_layer = _tile(w_in, hs, hr, ds, ur, D, 1)
            pre = _load(posterior_pre, now, live, hs, hr, H)
            gate = gates + block * 3 * X
            reset = _sigmoid(_load(gate, now, live, us, ur, 3 * D).to(tl.float32))
            candidate = _load(gate + X, now, live, us, ur, 3 * D).to(tl.float32)
            update = _sigmoid(_load(gate + 2 * X, now, live, us, ur, 3 * D).to(tl.float32) - 1)
            keeps = tl.load(keep + now, mask=live, other=0.0)[:, None] > 0
            before = tl.where(keeps, _load(deter, now, live, ds, ur, D), 0.0)
            dd += _load(g_deter, now, live, ds, ur, D)
            _wait(counter, (5 * i + 2) * P)
            dx = _total(out, at, live, hs, hr, M, H, ZS, BM, HP)
            dd = _times(dd, _norm_back(dx, pre, _bias(n_posterior, hs, hr), eps, H), w_layer, PRECISION)
            new = _tanh(reset * candidate)
            dnew = dd * update * (1 - new * new)
            gate = d_gates + block * 3 * X
            _store(gate, dnew * candidate * reset * (1 - reset), now, live, us, ur, 3 * D)
            _store(gate + X, dnew * reset, now, live, us, ur, 3 * D)
            _store(gate + 2 * X, dd * (new - before) * update * (1 - update), now, live, us, ur, 3 * D)
            dd = dd * (1 - update)
            _arrive(counter)
            # The hidden layer, up to what its norm takes from all columns
            w_block = w_gates + block * X * 3 * X
            w_reset = _tile(w_block, xs, xr, us, ur, 1, 3 * X)
            w_candidate = _tile(w_block + X, xs, xr, us, ur, 1, 3 * X)
            w_update = _tile(w_block + 2 * X, xs, xr, us, ur, 1, 3 * X)
            inverse = tl.load(inverses + now, mask=live, other=0.0)[:, None]
            scaled = _load(hidden_pre, now, live, ds, ur, D).to(tl.float32) * inverse
            _wait(counter, (5 * i + 3) * P)
            g, g1, g2 = tl.zeros([BM, BU], tl.float32), tl.zeros([BM, BU], tl.float32), tl.zeros([BM, BU], tl.float32)
            g = _times(g, _load(gate, now, live, xs, xr, 3 * D), w_reset, PRECISION)
            g1 = _times(g1, _load(gate + X, now, live, xs, xr, 3 * D), w_candidate, PRECISION)
            g2 = _times(g2, _load(gate + 2 * X, now, live, xs, xr, 3 * D), w_update, PRECISION)
            g += g1 + g2
            _store(hidden_out, g, now, live, ds, ur, D)
            g = _before_norm(g, scaled, _bias(n_hidden, ds, ur))
            _store(d_normed, g, now, live, ds, ur, D)
            tl.store(dots + now * P + member, tl.sum(g * scaled, axis=1), mask=live)
            _arrive(counter)
            # The layers of deter and stoch
            w_units = _tile(w_own + block * X * X, xs, xr, us, ur, 1, X)
            _wait(counter, (5 * i + 4) * P)
            mean = tl.sum(_load(dots, now, live, ps, pr, P), axis=1)[:, None] / D
            parts = in_parts + t * S * M * 2 * H
            _spread(
                d_normed, hidden_pre, inverse, mean, w_shared, parts, now, at, live, member, M, D, 2 * H, 3 * H, 1,
                True, P, BM, BN, S, KS, BK, STAGES, PRECISION,
            )
            _arrive(counter)
            own, of_pre = tl.zeros([BM, BU], tl.float32), tl.zeros([BM, BU], tl.float32)
            own = _times(own, _load(d_normed + block * X, now, live, xs, xr, D), w_units, PRECISION)
            of_pre = _times(of_pre, _load(hidden_pre + block * X, now, live, xs, xr, D), w_units, PRECISION)
            dd += inverse * (own - of_pre * inverse * mean)
            _wait(counter, (5 * i + 5) * P)


class Sizes(NamedTuple):
    """Sizes of a scan: steps, rows, deter, its blocks, the layers before it, variables and their classes."""

    steps: int
    rows: int
    deter: int
    blocks: int
    hidden: int
    variables: int
    classes: int

    @property
    def units(self) -> int:
        """Units of a block."""
        return self.deter // self.blocks


def launch(sizes: Sizes, device: torch.device, bf16: bool) -> dict[str, int] | None:
    """The size of teams and of their blocks; None where the device cannot hold them all, or a layer is too wide."""
    processors, memory = cell_triton._hardware(device)
    exact, widest = not bf16 and cell_triton._precision() == "ieee", max(sizes.units, sizes.hidden)
    if widest > (WIDEST_EXACT if exact else WIDEST) or sizes.classes > WIDEST_EXACT:
        return None
    needed = SHARED * (1 if bf16 else 2) // (1 if widest > WIDEST_EXACT else 4)
    members = triton.cdiv(sizes.units, UNITS)
    for rows in ROWS:
        programs = triton.cdiv(sizes.rows, rows) * sizes.blocks * members
        if programs <= processors and needed * (16 + rows) // 32 <= memory:
            return _blocks(sizes, rows, members, bf16)
    return None


def _blocks(sizes: Sizes, rows: int, members: int, bf16: bool) -> dict[str, int]:
    block, share, team = cell_triton._block, triton.cdiv(sizes.units, members), sizes.blocks * members
    own = {"P": team, "MB": members, "SU": share, "BM": rows, "BU": block(share), "PP": block(team)}
    padded = {"XP": block(sizes.units), "HP": block(sizes.hidden), "CP": block(sizes.classes)}
    wide = _cut(sizes.deter, 2 * sizes.hidden, team, PARTS["deter"], 32, 128 if bf16 else 64)
    narrow = _cut(sizes.variables * sizes.classes, sizes.hidden, team, PARTS["stoch"], 16, 128)
    cut = dict(zip(("BN", "S", "KS", "BK", "ZN", "ZS", "ZKS", "ZBK"), wide + narrow, strict=True))
    model = {"D": sizes.deter, "X": sizes.units, "H": sizes.hidden, "K": sizes.variables, "C": sizes.classes}
    return model | own | padded | cut | {"STAGES": 3, "num_warps": 8}


def _cut(inputs: int, outputs: int, team: int, parts: int, columns: int, depth: int) -> tuple[int, int, int, int]:
    """How a team shares a product: columns of a tile, parts, and the inputs of a part and of half a step through it."""
    depth = min(depth, cell_triton._block(inputs))
    parts = min(parts, max(1, team // triton.cdiv(outputs, columns)))
    share = triton.cdiv(triton.cdiv(inputs, parts), 2 * depth) * 2 * depth
    return columns, triton.cdiv(inputs, share), share, depth


class Prepared(NamedTuple):
    """The weights as the kernels read them, those of products in their precision: see `BlockWeights`."""

    of_deter: Tensor  # [2h, D]: the layers that see deter, of the posterior and of the GRU
    deter_bias: Tensor
    deter_gain: Tensor
    stoch: Tensor
    stoch_bias: Tensor
    stoch_gain: Tensor
    own: Tensor
    shared: Tensor
    hidden_bias: Tensor
    hidden_gain: Tensor
    gates: Tensor
    gates_bias: Tensor
    posterior_gain: Tensor
    logits: Tensor
    logits_bias: Tensor


def prepare(w: BlockWeights) -> Prepared:
    """For `forward` and `backward`; `w` as `cast_weights` gives them."""
    kept = {name: getattr(w, name).detach().contiguous() for name in Prepared._fields[1:]}
    return Prepared(torch.cat([w.posterior, w.deter]).detach(), **kept)


class Scanned(NamedTuple):
    """States of a sequence, the first included, and what the way back needs; `*`: in the precision of products."""

    deter: Tensor  # [T + 1, B, D]
    cast: Tensor  # * the same
    stoch: Tensor  # * [T + 1, B, Z]
    in_parts: Tensor  # [T + 1, S, B, 2h], of the layers of deter: the posterior's, and the next step's
    stoch_parts: Tensor  # [T, S, B, h], of the layer of stoch
    hidden_pre: Tensor  # * [T, B, D], before norm and activation
    squares: Tensor  # [T, B, P], their sums over each program's columns
    gates: Tensor  # * [T, B, 3D]
    logits: Tensor  # [T, B, Z]


class Passed(NamedTuple):
    """Gradients of a scan; `out`: after norm and activation."""

    deter: Tensor  # [B, D] of the state before
    stoch: Tensor  # [B, Z]
    logits: Tensor  # [T, B, Z]
    out_parts: Tensor  # [T, S, B, h], of the posterior's layer
    gates: Tensor  # * [T, B, 3D]
    hidden_out: Tensor  # * [T, B, D]


def forward(
    deter: Tensor, stoch: Tensor, moved: Tensor, seen: Tensor, noise: Tensor, keep: Tensor, w: Prepared,
    unimix: float, eps: float, how: dict[str, int],
) -> tuple[Scanned, Tensor]:  # fmt: skip
    """The scan after a state, and its posterior's log-probabilities; `keep` [T, B] is 0 where an episode begins."""
    steps, rows, size = len(moved), *deter.shape
    dtype, z = w.own.dtype, stoch.shape[-1]
    new, new_product = deter.new_empty, functools.partial(deter.new_empty, dtype=dtype)
    deters = new(steps + 1, rows, size)
    casts = deters if dtype == deter.dtype else new_product(steps + 1, rows, size)
    stochs = new_product(steps + 1, rows, z)
    deters[0], casts[0], stochs[0] = deter, deter, stoch
    scanned = Scanned(
        deters, casts, stochs, new(steps + 1, how["S"], rows, 2 * how["H"]), new(steps, how["ZS"], rows, how["H"]),
        new_product(steps, rows, size), new(steps, rows, how["P"]), new_product(steps, rows, 3 * size),
        new(steps, rows, z),
    )  # fmt: skip
    log_probs, teams = torch.empty_like(noise), triton.cdiv(rows, how["BM"])
    _forward[(teams, how["P"])](
        deters, casts, stochs, moved.contiguous(), seen.contiguous(), noise.contiguous(), keep, *scanned[3:], log_probs,
        *w, cell_triton._counters(teams, deter.device), steps, rows, unimix, eps, **how,
        PRECISION=cell_triton._precision(),
    )  # fmt: skip
    return scanned, log_probs


def inverses(scanned: Scanned, eps: float) -> Tensor:
    """Of the root mean squares of the hidden layer [T, B]."""
    return torch.rsqrt(scanned.squares.sum(-1) / scanned.hidden_pre.shape[-1] + eps)


def backward(
    g_deter: Tensor, g_stoch: Tensor, g_posterior: Tensor, keep: Tensor, inverses: Tensor, scanned: Scanned,
    posterior_pre: Tensor, deter_pre: Tensor, stoch_pre: Tensor, w: Prepared, unimix: float, eps: float,
    how: dict[str, int],
) -> Passed:  # fmt: skip
    """The way back of the gradients of states after each step and of log-probabilities; `*_pre` [T, B, h] are the
    layers before norm and activation; `inverses`: see the function."""
    steps, rows, size = g_deter.shape
    new = g_deter.new_empty
    hidden_out, d_normed = torch.empty_like(scanned.hidden_pre), torch.empty_like(scanned.hidden_pre)
    passed = Passed(
        new(rows, size), torch.empty_like(g_stoch[0]), torch.empty_like(scanned.logits),
        new(steps, how["ZS"], rows, how["H"]), torch.empty_like(scanned.gates), hidden_out,
    )  # fmt: skip
    teams = triton.cdiv(rows, how["BM"])
    given = (x.contiguous() for x in (g_deter, g_stoch, g_posterior))
    pre = (posterior_pre.contiguous(), deter_pre.contiguous(), stoch_pre.contiguous())
    _backward[(teams, how["P"])](
        *given, keep, scanned.deter, scanned.gates, scanned.hidden_pre, inverses, scanned.logits, *pre,
        w.of_deter, w.deter_gain, w.stoch, w.stoch_gain, w.own, w.shared, w.hidden_gain, w.gates, w.posterior_gain,
        w.logits,
        *passed, d_normed, torch.empty_like(scanned.squares), new(steps, how["S"], rows, 2 * how["H"]),
        cell_triton._counters(teams, g_deter.device), steps, rows, unimix, eps, **how,
        PRECISION=cell_triton._precision(),
    )  # fmt: skip
    return passed
