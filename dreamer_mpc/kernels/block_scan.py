"""DreamerV3's recurrent scan with a backward pass of its own: `BlockRSSM.observe` without its loop under autograd.

Autograd over T steps adds up the gradient of every weight T times. Here the loop back computes gradients of activations
alone; those of the weights are one product each, over all steps. On a GPU both loops are one Triton kernel each
(`block_scan_triton.py`).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.block_cell import (
    BlockWeights,
    Recurrent,
    RecurrentGradients,
    begin,
    cast_weights,
    draw,
    draw_backward,
    enter,
    norm_back,
    recur,
    recur_back,
)
from dreamer_mpc.kernels.deferred import Deferred, leave, placeholders
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.kernels.norm import norm_silu, norm_silu_backward

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import block_scan_triton as kernels
except ImportError:
    kernels = None


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


class _Gains(NamedTuple):
    """Gradients of the gains of the norms."""

    deter: Float[Tensor, " h"]
    stoch: Float[Tensor, " h"]
    hidden: Float[Tensor, " D"]
    posterior: Float[Tensor, " h"]


class Ready(NamedTuple):
    """What a scan needs but its start and the images: see `ready`."""

    aside: Aside
    box: list[Any]  # of `Deferred`
    deferred: tuple[Tensor, ...]  # the action's layer [T, B, h] and the `BlockWeights`
    noise: Float[Tensor, "T B K C"]
    is_first: Bool[Tensor, "T B"]
    bf16: bool
    how: dict[str, int] | None  # of teams; and what they read
    given: "tuple[Tensor, Tensor, kernels.Prepared] | None"
    learns: bool  # whether there will be a way back


def ready(
    moved: Float[Tensor, "T B h"], noise: Float[Tensor, "T B K C"], is_first: Bool[Tensor, "T B"],
    weights: BlockWeights, bf16: bool, aside: Aside,
) -> Ready:  # fmt: skip
    """Prepare a `scan` in `aside`, where its weights' gradients are computed too; call it there.

    `moved` is the action's layer, `noise` Gumbel noise, `bf16` asks for products of bf16 numbers.
    """
    box = []
    deferred, how, given = Deferred.apply(box, moved, *weights), team(weights.deter, noise, weights, bf16), None
    if how is not None:
        with torch.no_grad():
            w = kernels.prepare(cast_weights(weights, bf16))
            given = moved.to(w.own.dtype), (~is_first).to(weights.deter.dtype), w
    return Ready(aside, box, deferred, noise, is_first, bf16, how, given, torch.is_grad_enabled())


class BlockScan(torch.autograd.Function):
    """deter [T, B, D], stoch [T, B, Z] and posterior [T, B, K, C] of a sequence, as `BlockRSSM.observe` defines them.

    Inputs: the state before (`deter`, `stoch`), the embedding's part of the posterior's first layer with its bias,
    `seen` [T, B, h], `unimix`, the norms' `eps`, what is `ready`, and what it defers: `moved`, the action's layer, and
    the weights.
    """

    @staticmethod
    def forward(ctx, deter, stoch, seen, unimix, eps, ready, moved, *weights):
        ctx.box, ctx.settings, ctx.how = ready.box, (unimix, eps, ready.bf16), ready.how
        if ctx.how is None:
            inputs = (deter, stoch, moved, seen, ready.noise, ready.is_first, BlockWeights(*weights), *ctx.settings)
            saved, *outputs = _scan(*inputs)
        else:
            saved, *outputs = _scan_in_teams(deter, stoch, seen, ready, unimix, eps)
        ctx.completed = ready.aside.mark()
        ctx.save_for_backward(ready.is_first, *saved, *weights)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        count = len(BlockWeights._fields)
        first, *saved = ctx.saved_tensors
        saved, weights = saved[:-count], BlockWeights(*saved[-count:])
        if ctx.how is None:
            deter, stoch, seen, *left = _back(*gradients, first[..., None], saved, weights, *ctx.settings)
        else:
            # What was made aside may not be taken there for other numbers while it is read here.
            ctx.completed.join(*saved)
            deter, stoch, seen, *left = _back_in_teams(*gradients, saved, weights, *ctx.settings, ctx.how)
        leave(ctx.box, *left)
        given = (deter.new_empty(()).expand(*seen.shape), *weights)
        return deter, stoch, seen.to(deter.dtype), *[None] * 3, *placeholders(given)


def scan(
    deter: Float[Tensor, "B D"], stoch: Float[Tensor, "B Z"], seen: Float[Tensor, "T B h"], unimix: float, eps: float,
    ready: Ready,
) -> tuple[Float[Tensor, "T B D"], Float[Tensor, "T B Z"], Float[Tensor, "T B K C"]]:  # fmt: skip
    """`BlockScan`; on the way back, gradients of its weights are computed beside what goes on before the scan."""
    moved, keep, w = ready.given or (ready.noise, ready.noise, ())
    ready.aside.join(ready.noise, moved, keep, *w)
    return BlockScan.apply(deter, stoch, seen, unimix, eps, ready, *ready.deferred)


def team(like: Tensor, noise: Float[Tensor, "T B K C"], w: BlockWeights, bf16: bool) -> dict | None:
    """How teams of programs scan such a sequence, of states `like` that tensor, in one kernel each way.

    None where they cannot.
    """
    if kernels is None or not like.is_cuda or like.dtype != torch.float32:
        return None
    return kernels.launch(sizes_of(noise, w), like.device, bf16)


def sizes_of(noise: Float[Tensor, "T B K C"], w: BlockWeights) -> "kernels.Sizes":
    """The sizes by which `launch` chooses teams."""
    steps, rows, variables, classes = noise.shape
    return kernels.Sizes(steps, rows, w.deter.shape[1], len(w.own), len(w.deter), variables, classes)


def _scan(deter, stoch, moved, seen, noise, is_first, weights, unimix, eps, bf16) -> tuple:
    w = cast_weights(weights, bf16)
    first, dtype = is_first[..., None], w.own.dtype  # [T, B, 1]; of products
    stoch, moved, seen = stoch.to(dtype), moved.to(dtype), seen.to(dtype)
    steps, posteriors, stochs = [], [], []
    for t in range(len(moved)):
        before, given, stoch = begin(deter, stoch, first[t])
        deter_pre = F.linear(given, w.deter, w.deter_bias)
        step, given = recur(before, given, stoch, enter(deter_pre, stoch, moved[t], w, eps), w, eps)
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
    saved = [*recurrent, *map(torch.stack, others)]
    return saved, recurrent[-1].clone(), torch.stack(stochs).to(deter.dtype), torch.stack(posteriors)


def _back(g_deter, g_stoch, g_posterior, first, saved, weights, unimix, eps, bf16) -> tuple:
    size, grads, w = len(Recurrent._fields), [], cast_weights(weights, bf16)
    saved = _Saved(Recurrent(*saved[:size]), *saved[size:])
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
    g, x = each.recurrent, saved.recurrent

    def gain(out: Float[Tensor, "T B N"], pre: Float[Tensor, "T B N"], of: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return norm_silu_backward(out.flatten(0, 1), pre.flatten(0, 1), of, eps, of_x=False)[1]

    gains = _Gains(
        gain(g.deter_out, x.deter_pre, w.deter_gain), gain(g.stoch_out, x.stoch_pre, w.stoch_gain),
        gain(g.hidden_out, x.hidden_pre, w.hidden_gain),
        gain(each.posterior_out, saved.posterior_pre, w.posterior_gain),
    )  # fmt: skip
    return deter, stoch, each.posterior_pre, _of_deferred, each, gains, saved, weights, bf16


def _scan_in_teams(deter, stoch, seen, ready, unimix, eps) -> tuple:
    (moved, keep, w), how, aside = ready.given, ready.how, ready.aside
    scanned, posteriors = kernels.forward(deter, stoch, moved, seen, ready.noise, keep, w, unimix, eps, how)
    saved = []
    if ready.learns:
        aside.follow()
        with aside:  # long before the way back reads it
            inverses = kernels.inverses(scanned, eps)
            completed = _completed(scanned, moved, seen, ready.is_first[..., None], w, eps)
        # `seen` stays until the way back, so that its memory is not taken before it is read here.
        saved = [seen, keep, inverses, *scanned, *w, *completed.recurrent, *completed[1:]]
    return saved, scanned.deter[1:], scanned.stoch[1:].to(deter.dtype), posteriors


def _back_in_teams(g_deter, g_stoch, g_posterior, saved, weights, unimix, eps, bf16, how) -> tuple:
    _, keep, inverses, *saved = saved
    first, second, third = itertools.accumulate(len(x._fields) for x in (kernels.Scanned, kernels.Prepared, Recurrent))
    scanned, w = kernels.Scanned(*saved[:first]), kernels.Prepared(*saved[first:second])
    saved = _Saved(Recurrent(*saved[second:third]), *saved[third:])
    x, posterior_pre = saved.recurrent, saved.posterior_pre
    pre = (posterior_pre, x.deter_pre, x.stoch_pre)
    passed = kernels.backward(g_deter, g_stoch, g_posterior, keep, inverses, scanned, *pre, w, unimix, eps, how)
    out = passed.out_parts.sum(1)
    seen = norm_back(out.flatten(0, 1), posterior_pre.flatten(0, 1), w.posterior_gain, eps).view(out.shape)
    return passed.deter, passed.stoch, seen, _of_deferred_in_teams, passed, out, seen, saved, weights, w, eps, bf16


def _of_deferred_in_teams(passed, out, of_posterior, saved, weights, w, eps, bf16) -> tuple[Tensor, ...]:
    """`_of_deferred` with what lies between the kernel's results and it."""
    x, hidden = saved.recurrent, len(w.deter_gain)

    def back(g: Float[Tensor, "T B N"], x: Float[Tensor, "T B N"], gain: Float[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        of_x, of_gain = norm_silu_backward(g.flatten(0, 1), x.flatten(0, 1), gain, eps)
        return of_x.view(x.shape), of_gain

    hidden_pre, hidden_gain = back(passed.hidden_out, x.hidden_pre, w.hidden_gain)
    shared = hidden_pre @ w.shared  # [T, B, I]
    deter_out, stoch_out, _ = shared.split(hidden, dim=-1)
    deter_pre, deter_gain = back(deter_out, x.deter_pre, w.deter_gain)
    stoch_pre, stoch_gain = back(stoch_out, x.stoch_pre, w.stoch_gain)
    gates = passed.gates.unflatten(-1, (len(w.own), -1)).transpose(1, 2)  # [T, G, B, Y]
    of = (deter_out, deter_pre, stoch_out, stoch_pre, shared, passed.hidden_out, hidden_pre, gates)
    rows = out.flatten(0, 1), saved.posterior_pre.flatten(0, 1)
    _, posterior_gain = norm_silu_backward(*rows, w.posterior_gain, eps, of_x=False)
    grads = _Gradients(RecurrentGradients(*of), out, of_posterior, passed.logits)
    gains = _Gains(deter_gain, stoch_gain, hidden_gain, posterior_gain)
    return _of_deferred(grads, gains, saved, weights, bf16)


def _completed(scanned, moved, seen, first, w, eps) -> _Saved:
    """With what the kernel did not write, or not in whole."""
    hidden, dtype = moved.shape[-1], w.own.dtype

    def activated(x: Float[Tensor, "T B N"], gain: Float[Tensor, " N"], dtype: torch.dtype) -> Float[Tensor, "T B N"]:
        return norm_silu(x.flatten(0, 1), gain, eps, dtype).view(x.shape)

    posterior_pre = scanned.in_parts[1:, ..., :hidden].sum(1) + seen
    deter_pre = torch.where(first, 0.0, scanned.in_parts[:-1, ..., hidden:].sum(1)) + w.deter_bias
    stoch_pre = torch.where(first, 0.0, scanned.stoch_parts.sum(1)) + w.stoch_bias
    shared = [activated(deter_pre, w.deter_gain, dtype), activated(stoch_pre, w.stoch_gain, dtype), moved]
    recurrent = Recurrent(
        torch.where(first, 0.0, scanned.cast[:-1]), torch.where(first, 0.0, scanned.stoch[:-1]), deter_pre, stoch_pre,
        torch.cat(shared, dim=-1), scanned.hidden_pre, activated(scanned.hidden_pre, w.hidden_gain, dtype),
        scanned.gates, scanned.cast[1:],
    )  # fmt: skip
    posterior = activated(posterior_pre, w.posterior_gain, w.logits.dtype)
    return _Saved(recurrent, posterior_pre, posterior, scanned.logits)


def stacked(steps: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Each tensor of the steps' tuples, time first."""
    return [torch.stack(part) for part in zip(*steps, strict=True)]


def _of_deferred(
    g: _Gradients, gains: _Gains, saved: _Saved, w: BlockWeights, bf16: bool
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the action's layer, and of all parameters, each in one product over all steps."""
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

    hidden_pre = g.recurrent.hidden_pre.unflatten(-1, (blocks, -1))  # [T, B, G, X]
    of_moved = g.recurrent.shared[..., -len(w.deter) :].to(w.deter.dtype)
    return of_moved, *BlockWeights(
        deter=product(g.recurrent.deter_pre, saved.recurrent.before),
        deter_bias=total(g.recurrent.deter_pre),
        deter_gain=gains.deter,
        stoch=product(g.recurrent.stoch_pre, saved.recurrent.stoch_before),
        stoch_bias=total(g.recurrent.stoch_pre),
        stoch_gain=gains.stoch,
        own=block_product(saved.recurrent.before, hidden_pre.transpose(1, 2)),
        shared=product(g.recurrent.hidden_pre, saved.recurrent.shared),
        hidden_bias=total(g.recurrent.hidden_pre).view(blocks, 1, -1),
        hidden_gain=gains.hidden,
        gates=block_product(saved.recurrent.hidden, g.recurrent.gates),
        gates_bias=g.recurrent.gates.sum((0, 2), dtype=w.deter.dtype)[:, None],
        posterior=product(g.posterior_pre, saved.recurrent.deter),
        posterior_gain=gains.posterior,
        logits=product(g.logits, saved.posterior),
        logits_bias=total(g.logits),
    )


def _product_dtype(x: Tensor, bf16: bool) -> Tensor:
    return x.bfloat16() if bf16 else x
