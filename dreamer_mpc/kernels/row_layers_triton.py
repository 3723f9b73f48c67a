"""Triton kernels of the layers between the large products of DreamerV3's step, several layers in one launch.

These are the inputs of the GRU, and what follows the first product of the prior and of the policy. Rows do not meet
there, so that a program takes its rows through all layers. In prior and policy, the weights of a hidden layer are in
shared memory as a whole; the functions `fits_*` say for which sizes. Sums, norms and what follows them are in fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreamer_mpc.kernels.block_cell_triton import _moved, _normed, _rows, _sigmoid, _stride, _tanh
from dreamer_mpc.kernels.cell_triton import _hardware, _precision

LEAST = 16  # rows or columns of a product on tensor cores
ROWS = 32  # of a program of the prior; more programs would read the weights more often
COLUMNS = 64  # of the logits, at once; two such blocks of weights are in shared memory
PROGRAMS = 64  # of the prior: they share the logits of the same rows


@triton.jit
def _weight(weight, outs, cols, real, N: tl.constexpr):
    """The rows `outs` of a weight [*, N], transposed."""
    return tl.load(weight + outs[None, :] * N + cols[:, None], mask=real[None, :] & (cols < N)[:, None], other=0.0)


@triton.jit
def _activated(v, gain, cols, eps, N: tl.constexpr):
    """Norm, gain and SiLU of rows that are zero beyond N numbers."""
    n = v * tl.rsqrt(tl.sum(v * v, axis=1) / N + eps)[:, None] * tl.load(gain + cols, mask=cols < N, other=0.0)[None, :]
    return n * _sigmoid(n)


@triton.jit
def _biased(v, bias, cols, real):
    return v + tl.load(bias + cols, mask=real, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _prior(
    pre, gain, second, second_bias, second_gain, last, last_bias, noise, stoch, again, second_pre, logits, rows,
    pre_stride, stoch_stride, again_stride, unimix, eps, N: tl.constexpr, NP: tl.constexpr, K: tl.constexpr,
    C: tl.constexpr, KB: tl.constexpr, CP: tl.constexpr, BR: tl.constexpr, AGAIN: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    at, cols = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64), tl.arange(0, NP)
    inside, real = (at < rows)[:, None], cols < N
    w = _weight(second, cols, cols, real, N)
    v = tl.load(pre + at[:, None] * pre_stride + cols[None, :], mask=inside & real[None, :], other=0.0).to(tl.float32)
    v = tl.dot(_activated(v, gain, cols, eps, N).to(w.dtype), w, input_precision=PRECISION)
    v = _biased(v, second_bias, cols, real).to(pre.dtype.element_ty)
    if SAVE and tl.program_id(1) == 0:
        tl.store(second_pre + at[:, None] * N + cols[None, :], v, mask=inside & real[None, :])
    hidden = _activated(v.to(tl.float32), second_gain, cols, eps, N)
    units = tl.arange(0, KB * CP)
    classes = (units % CP)[None, :]
    for block in range(tl.program_id(1), tl.cdiv(K, KB), tl.num_programs(1)):
        variables = block * KB + units // CP
        here, outs = (variables < K) & (units % CP < C), variables * C + units % CP
        x = tl.dot(hidden, _weight(last, outs, cols, here, N), input_precision=PRECISION)
        x = _biased(x, last_bias, outs, here)
        to, kept = at[:, None] * (K * C) + outs[None, :], inside & here[None, :]
        if SAVE:
            tl.store(logits + to, x, mask=kept)
        x = tl.reshape(tl.where(here[None, :], x, -1e30), [BR, KB, CP])
        there = tl.reshape(tl.broadcast_to(here[None, :], [BR, KB * CP]), [BR, KB, CP])
        e = tl.where(there, tl.exp(x - tl.max(x, axis=2)[:, :, None]), 0.0)
        probs = e / tl.maximum(tl.sum(e, axis=2), 1e-30)[:, :, None]
        mixed = tl.maximum((1 - unimix) * probs + unimix / C, 1e-37)
        given = tl.reshape(tl.load(noise + to, mask=kept, other=0.0), [BR, KB, CP])
        best = tl.argmax(tl.where(there, tl.log(mixed) + given, -1e30), axis=2)
        best = tl.reshape(tl.broadcast_to(best[:, :, None], [BR, KB, CP]), [BR, KB * CP])
        one_hot = tl.where(classes == best, 1.0, 0.0)
        tl.store(stoch + at[:, None] * stoch_stride + outs[None, :], one_hot, mask=kept)
        if AGAIN:
            tl.store(again + at[:, None] * again_stride + outs[None, :], one_hot, mask=kept)


@triton.jit
def _inputs(
    deter_pre, stoch, action, deter_gain, stoch_weight, stoch_bias, stoch_gain, action_weight, action_bias, action_gain,
    shared, stoch_pre, rows, deter_stride, stoch_stride, action_stride, eps, A: tl.constexpr, Z: tl.constexpr,
    N: tl.constexpr, NP: tl.constexpr, BZ: tl.constexpr, BR: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    at, cols = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64), tl.arange(0, NP)
    inside, real = (at < rows)[:, None], cols < N
    kept = inside & real[None, :]
    if tl.program_id(1) == 0:
        total = tl.zeros([BR, NP], tl.float32)
        for start in range(0, Z, BZ):
            ins = start + tl.arange(0, BZ)
            z = tl.load(stoch + at[:, None] * stoch_stride + ins[None, :], mask=inside & (ins < Z)[None, :], other=0.0)
            w = _weight(stoch_weight, cols, ins, real, Z)
            total = tl.dot(z, w, total, input_precision=PRECISION)
        v = _biased(total, stoch_bias, cols, real).to(shared.dtype.element_ty)
        if SAVE:
            tl.store(stoch_pre + at[:, None] * N + cols[None, :], v, mask=kept)
        h = _activated(v.to(tl.float32), stoch_gain, cols, eps, N)
        tl.store(shared + N + at[:, None] * (3 * N) + cols[None, :], h, mask=kept)
    elif tl.program_id(1) == 1:
        to, weights = shared + 2 * N, (action_weight, action_bias, action_gain)
        _moved(action, *weights, to, at, action_stride, 3 * N, rows, cols, eps, A, N, NP, BR)
    else:
        _normed(deter_pre, deter_gain, shared, deter_stride, 3 * N, at, cols, kept, eps, N)


@triton.jit
def _policy(
    pre, middle, biases, gains, last, last_bias, noise, out, rows, pre_stride, lowest, highest, eps,
    LAYERS: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, BR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    at, cols, actions = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64), tl.arange(0, NP), tl.arange(0, AP)
    real = cols < N
    v = tl.load(pre + at[:, None] * pre_stride + cols[None, :], mask=(at < rows)[:, None] & real[None, :], other=0.0)
    x = v.to(tl.float32)
    for layer in tl.range(0, LAYERS - 1, num_stages=2):  # the next layer's weights arrive during this one's norm
        w = _weight(middle + layer * N * N, cols, cols, real, N)
        h = _activated(_biased(x, biases + layer * N, cols, real), gains + layer * N, cols, eps, N)
        x = tl.dot(h.to(w.dtype), w, input_precision=PRECISION).to(pre.dtype.element_ty).to(tl.float32)
    end = (LAYERS - 1) * N
    h = _activated(_biased(x, biases + end, cols, real), gains + end, cols, eps, N)
    # Rows of the last layer: those of the mean and those of the std, each filled up. Three products of TF32 numbers are
    # one of fp32 numbers but for its last bits.
    units = tl.arange(0, 2 * AP)
    here, outs = units % AP < A, units // AP * A + units % AP
    w = _weight(last, outs, cols, here, N)
    y = tl.dot(h.to(pre.dtype.element_ty).to(tl.float32), w, input_precision="tf32x3")
    y = tl.reshape(_biased(y, last_bias, outs, here), [BR, 2, AP])
    mean, std = tl.split(tl.permute(y, (0, 2, 1)))
    to, kept = at[:, None] * A + actions[None, :], (at < rows)[:, None] & (actions < A)[None, :]
    drawn = tl.load(noise + to, mask=kept, other=0.0)
    tl.store(out + to, _tanh(mean) + (lowest + (highest - lowest) * _sigmoid(std + 2)) * drawn, mask=kept)


def fits_inputs(deter_pre: Tensor) -> bool:
    """Whether `inputs` takes `deter_pre` [M, h]."""
    return _fits(deter_pre, 2 * COLUMNS * deter_pre.element_size(), LEAST)


def inputs(
    deter_pre: Tensor, stoch: Tensor, action: Tensor, deter_gain: Tensor, stoch_weight: Tensor, stoch_bias: Tensor,
    stoch_gain: Tensor, action_weight: Tensor, action_bias: Tensor, action_gain: Tensor, eps: float, save: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """Where `save`, the product of stoch [M, Z] in its layer; and what `block_cell.share` gives, after `action_layer`.

    The parts of the rows, of stoch, action and deter, are programs of their own.
    """
    deter_pre, stoch, action, (rows, width) = _rows(deter_pre), _rows(stoch), _rows(action), deter_pre.shape
    shared = stoch.new_empty(rows, 3 * width)
    stoch_pre = stoch.new_empty(rows, width) if save else None
    _inputs[(triton.cdiv(rows, LEAST), 3)](
        deter_pre, stoch, action, deter_gain, stoch_weight.contiguous(), stoch_bias, stoch_gain,
        action_weight.contiguous(), action_bias, action_gain, shared, stoch_pre, rows, deter_pre.stride(0),
        stoch.stride(0), action.stride(0), eps, A=action.shape[1], Z=stoch.shape[1], N=width, NP=_padded(width),
        BZ=COLUMNS, BR=LEAST, SAVE=save, PRECISION=_product_precision(), num_warps=8, num_stages=3,
    )  # fmt: skip
    return stoch_pre, shared


def fits_prior(pre: Tensor, noise: Tensor) -> bool:
    """Whether `prior` takes `pre` [M, h] and `noise` [M, K, C]."""
    return _fits(pre, max(_padded(pre.shape[1]) * pre.element_size(), 2 * 4 * _variables(noise)[1]), ROWS)


def prior(
    pre: Tensor, gain: Tensor, second: Tensor, second_bias: Tensor, second_gain: Tensor, last: Tensor,
    last_bias: Tensor, noise: Tensor, unimix: float, eps: float, into: Tensor, save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """See `block_walk.draw_prior`; weights are those of `PriorWeights` without the first layer's."""
    pre, dtype, (rows, variables, classes) = _rows(pre), second.dtype, noise.shape
    stoch = into if into.dtype == dtype else torch.empty(into.shape, dtype=dtype, device=into.device)
    again = None if stoch is into else into
    second_pre = torch.empty(pre.shape, dtype=dtype, device=pre.device) if save else None
    logits = torch.empty(into.shape, dtype=last.dtype, device=pre.device) if save else None
    (padded, columns), blocks = _variables(noise), triton.cdiv(rows, ROWS)
    parts = min(triton.cdiv(variables * padded, columns), max(PROGRAMS // blocks, 1))
    _prior[(blocks, parts)](
        pre, gain, second.contiguous(), second_bias, second_gain, last.contiguous(), last_bias, noise.contiguous(),
        stoch, again, second_pre, logits, rows, pre.stride(0), stoch.stride(0), _stride(again), unimix, eps,
        N=pre.shape[1], NP=_padded(pre.shape[1]), K=variables, C=classes, KB=columns // padded, CP=padded, BR=ROWS,
        AGAIN=again is not None, SAVE=save, PRECISION=_product_precision(), num_warps=8, num_stages=3,
    )  # fmt: skip
    return stoch, second_pre, logits


def fits_policy(pre: Tensor, actions: int) -> bool:
    """Whether `policy` takes `pre` [M, h] for so many actions."""
    return _fits(pre, max(_padded(pre.shape[1]) * pre.element_size(), 2 * 4 * _padded(actions)), LEAST)


def policy(
    pre: Tensor, middle: Tensor, biases: Tensor, gains: Tensor, last: Tensor, last_bias: Tensor, noise: Tensor,
    lowest: float, highest: float, eps: float,
) -> Tensor:  # fmt: skip
    """Samples [M, A] of a policy with L hidden layers of h units, of its first product `pre` [M, h] without bias.

    `middle` [L - 1, h, h] are the weights of the other hidden layers, in the precision of `pre`; `biases` and `gains`
    [L, h] and the last layer, `last` [2 A, h] for mean and std as in `normal_head`, are in fp32; `noise` [M, A].
    """
    pre, noise, (rows, size), actions = _rows(pre), noise.contiguous(), pre.shape, noise.shape[1]
    out = noise.new_empty(noise.shape)
    _policy[(triton.cdiv(rows, LEAST),)](
        pre, middle, biases, gains, last.contiguous(), last_bias, noise, out, rows, pre.stride(0), lowest, highest, eps,
        LAYERS=len(biases), N=size, NP=_padded(size), A=actions, AP=_padded(actions), BR=LEAST,
        PRECISION=_product_precision(), num_warps=8,
    )  # fmt: skip
    return out


def _fits(pre: Tensor, column: int, block: int) -> bool:
    """Whether programs of `block` rows all run at once and have the memory for weights and what follows them.

    They read all weights each, so that with more rows products of their own are faster. `column`: the bytes of the
    weights that are there at a time, of each of the columns of `pre`.
    """
    processors, memory = _hardware(pre.device)
    rows, padded = len(pre), _padded(pre.shape[1])
    return triton.cdiv(rows, block) <= processors and padded * (column + 3 * 4 * block) <= memory


def _variables(noise: Tensor) -> tuple[int, int]:
    """Classes of a variable, filled up, and the columns of a block of variables."""
    padded = triton.next_power_of_2(noise.shape[2])
    return padded, max(COLUMNS, padded)


def _padded(size: int) -> int:
    return max(LEAST, triton.next_power_of_2(size))


def _product_precision() -> str:
    """Without TF32, products of fp32 numbers are three products of TF32 numbers: fp32 but for the last bits."""
    return "tf32x3" if _precision() == "ieee" else "tf32"
