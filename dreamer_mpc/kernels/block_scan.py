"""DreamerV3's recurrent scan with a backward pass of its own: `BlockRSSM.observe` without its loop under autograd.

Autograd over T steps adds up the gradient of every weight T times. Here the loop back computes gradients of activations
alone; those of the weights are one product each, over all steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.block_cell import (
    BlockWeights,
    Recurrent,
    RecurrentGradients,
    cast_weights,
    draw,
    draw_backward,
    norm_back,
    recur,
    recur_back,
)
from dreamer_mpc.kernels.norm import norm_silu, norm_silu_backward


class _Saved(NamedTuple):
    """A step, as the backward pass needs it; or several, stacked."""

    recurrent: Recurrent
    posterior_pre: Float[Tensor, "*t B h"]  # before norm and activation
    posterior: Float[Tensor, "*t B h"]
    logits: Float[Tensor, "*t B Z"]


class _Gradients(NamedTuple):
    """Gradients of what lies between the products of a step; or of several."""

    recurrent: RecurrentGradients
    posterior_out: Float[Tensor, "*t B h"]
    posterior_pre: Float[Tensor, "*t B h"]
    logits: Float[Tensor, "*t B Z"]


class BlockScan(torch.autograd.Function):
    """deter [T, B, D], stoch [T, B, Z] and posterior [T, B, K, C] of a sequence, as `BlockRSSM.observe` defines them.

    Inputs: the state before (`deter`, `stoch`), the action's layer `moved` [T, B, h], the embedding's part of the
    posterior's first layer with its bias, `seen` [T, B, h], Gumbel `noise` [T, B, K, C], `is_first` [T, B], `unimix`,
    the norms' `eps`, `bf16` (products of bf16 numbers), and the `BlockWeights`.
    """

    @staticmethod
    def forward(ctx, deter, stoch, moved, seen, noise, is_first, unimix, eps, bf16, *weights):
        w = cast_weights(BlockWeights(*weights), bf16)
        first, dtype = is_first[..., None], w.own.dtype  # [T, B, 1]; of products
        stoch, moved, seen = stoch.to(dtype), moved.to(dtype), seen.to(dtype)
        steps, posteriors, stochs = [], [], []
        for t in range(len(moved)):
            step, given = recur(deter, stoch, moved[t], first[t], w, eps)
            deter = step.deter
            posterior_pre = torch.addmm(seen[t], given, w.posterior.t())
            posterior = norm_silu(posterior_pre, w.posterior_gain, eps, w.logits.dtype)
            logits = F.linear(posterior, w.logits, w.logits_bias)
            stoch, log_probs = draw(logits, noise[t], unimix, dtype)
            steps.append(_Saved(step, posterior_pre, posterior, logits))
            posteriors.append(log_probs)
            stochs.append(stoch)
        recurrent, *others = zip(*steps, strict=True)
        recurrent = stacked(recurrent)
        ctx.save_for_backward(first, *recurrent, *map(torch.stack, others), *weights)
        ctx.settings = unimix, eps, bf16
        return recurrent[-1].clone(), torch.stack(stochs).to(deter.dtype), torch.stack(posteriors)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_deter, g_stoch, g_posterior):
        first, *rest = ctx.saved_tensors
        unimix, eps, bf16 = ctx.settings
        size, count = len(Recurrent._fields), len(_Saved._fields) - 1
        saved = _Saved(Recurrent(*rest[:size]), *rest[size : size + count])
        weights, grads = BlockWeights(*rest[size + count :]), []
        w = cast_weights(weights, bf16)
        deter, stoch = torch.zeros_like(g_deter[0]), torch.zeros_like(g_stoch[0])  # from the step after
        for t in reversed(range(len(first))):
            logits = draw_backward(g_stoch[t] + stoch, g_posterior[t], saved.logits[t], unimix)
            out = logits @ w.logits
            pre = norm_back(out, saved.posterior_pre[t], w.posterior_gain, eps)
            step = Recurrent(*(part[t] for part in saved.recurrent))
            recurrent, deter, stoch = recur_back(g_deter[t] + deter + pre @ w.posterior, step, w, eps)
            deter, stoch = (torch.where(first[t], 0.0, part) for part in (deter, stoch))
            grads.append(_Gradients(recurrent, out, pre, logits))
        recurrent, *others = zip(*reversed(grads), strict=True)
        each = _Gradients(RecurrentGradients(*stacked(recurrent)), *map(torch.stack, others))
        of_weights = _weight_gradients(each, saved, weights, eps, bf16)
        moved = each.recurrent.shared[..., -weights.deter.shape[0] :]
        return deter, stoch, moved.to(deter.dtype), each.posterior_pre.to(deter.dtype), *[None] * 5, *of_weights


def stacked(steps: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Each tensor of the steps' tuples, time first."""
    return [torch.stack(part) for part in zip(*steps, strict=True)]


def _weight_gradients(g: _Gradients, saved: _Saved, w: BlockWeights, eps: float, bf16: bool) -> BlockWeights:
    """Gradients of all parameters, each in one product over all steps."""
    blocks = len(w.gates)

    def product(left: Float[Tensor, "T B O"], right: Float[Tensor, "T B N"]) -> Float[Tensor, "O N"]:
        left, right = (_product_dtype(x.flatten(0, 1), bf16) for x in (left, right))
        return (left.t() @ right).to(w.deter.dtype)

    def total(g: Float[Tensor, "T B N"]) -> Float[Tensor, " N"]:
        return g.flatten(0, 1).sum(0, dtype=w.deter.dtype)

    def block_product(left: Float[Tensor, "T B E"], right: Float[Tensor, "T G B Y"]) -> Float[Tensor, "G E2 Y"]:
        left = left.flatten(0, 1).unflatten(-1, (blocks, -1)).permute(1, 2, 0)  # [G, E / G, T B]
        right = right.transpose(0, 1).flatten(1, 2)  # [G, T B, Y]
        return torch.bmm(_product_dtype(left, bf16), _product_dtype(right, bf16)).to(w.deter.dtype)

    def gain(out: Float[Tensor, "T B N"], pre: Float[Tensor, "T B N"], of: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return norm_silu_backward(out.flatten(0, 1), pre.flatten(0, 1), of, eps, of_x=False)[1]

    hidden_pre = g.recurrent.hidden_pre.unflatten(-1, (blocks, -1))  # [T, B, G, X]
    return BlockWeights(
        deter=product(g.recurrent.deter_pre, saved.recurrent.before),
        deter_bias=total(g.recurrent.deter_pre),
        deter_gain=gain(g.recurrent.deter_out, saved.recurrent.deter_pre, w.deter_gain),
        stoch=product(g.recurrent.stoch_pre, saved.recurrent.stoch_before),
        stoch_bias=total(g.recurrent.stoch_pre),
        stoch_gain=gain(g.recurrent.stoch_out, saved.recurrent.stoch_pre, w.stoch_gain),
        own=block_product(saved.recurrent.before, hidden_pre.transpose(1, 2)),
        shared=product(g.recurrent.hidden_pre, saved.recurrent.shared),
        hidden_bias=total(g.recurrent.hidden_pre).view(blocks, 1, -1),
        hidden_gain=gain(g.recurrent.hidden_out, saved.recurrent.hidden_pre, w.hidden_gain),
        gates=block_product(saved.recurrent.hidden, g.recurrent.gates),
        gates_bias=g.recurrent.gates.sum((0, 2), dtype=w.deter.dtype)[:, None],
        posterior=product(g.posterior_pre, saved.recurrent.deter),
        posterior_gain=gain(g.posterior_out, saved.posterior_pre, w.posterior_gain),
        logits=product(g.logits, saved.posterior),
        logits_bias=total(g.logits),
    )


def _product_dtype(x: Tensor, bf16: bool) -> Tensor:
    return x.bfloat16() if bf16 else x
