"""DreamerV3's recurrent scan with a backward pass of its own: `BlockRSSM.observe` without its loop under autograd.

Autograd over T steps adds up the gradient of every weight T times. Here the loop back computes gradients of activations
alone; those of the weights are one product each, over all steps. What lies between two products is one kernel on a GPU
(`block_scan_triton.py`), single torch operations elsewhere.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.norm import fuses, norm_silu, norm_silu_backward

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import block_scan_triton as kernels
except ImportError:
    kernels = None


class BlockWeights(NamedTuple):
    """The parameters of the scan; deter has D = G * X units in G blocks, the layers before them h, logits Z = K * C."""

    deter: Float[Tensor, "h D"]
    deter_bias: Float[Tensor, " h"]
    deter_gain: Float[Tensor, " h"]
    stoch: Float[Tensor, "h Z"]
    stoch_bias: Float[Tensor, " h"]
    stoch_gain: Float[Tensor, " h"]
    own: Float[Tensor, "G X X"]  # of the hidden layer: inputs from the block itself
    shared: Float[Tensor, "D I"]  # and from the layers of deter, stoch and action, I = 3 h
    hidden_bias: Float[Tensor, "G 1 X"]
    hidden_gain: Float[Tensor, " D"]
    gates: Float[Tensor, "G X Y"]  # reset, candidate and update, Y = 3 X
    gates_bias: Float[Tensor, "G 1 Y"]
    posterior: Float[Tensor, "h D"]
    posterior_gain: Float[Tensor, " h"]
    logits: Float[Tensor, "Z h"]
    logits_bias: Float[Tensor, " Z"]


class Saved(NamedTuple):
    """Inputs and outputs of the scan and what lies between, time first, as the backward pass needs them."""

    before: Float[Tensor, "T B D"]  # deter and stoch before each step, zero where an episode begins
    stoch_before: Float[Tensor, "T B Z"]
    deter_pre: Float[Tensor, "T B h"]  # before norm and activation, here and below
    stoch_pre: Float[Tensor, "T B h"]
    shared: Float[Tensor, "T B I"]
    hidden_pre: Float[Tensor, "T B D"]
    hidden: Float[Tensor, "T B D"]
    gates: Float[Tensor, "T G B Y"]
    posterior_pre: Float[Tensor, "T B h"]
    posterior: Float[Tensor, "T B h"]
    logits: Float[Tensor, "T B Z"]
    deter: Float[Tensor, "T B D"]


def gru(
    gates: Float[Tensor, "G B Y"], before: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """The next deter, of reset, candidate and update, each of X units of a block; again in the precision of `gates`."""
    if fuses(gates):
        return kernels.gru(gates, before)
    reset, candidate, update = _gates(gates, before)
    deter = update * torch.tanh(reset * candidate) + (1 - update) * before
    return deter, deter.to(gates.dtype)


def gru_backward(
    g: Float[Tensor, "B D"], gates: Float[Tensor, "G B Y"], before: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, "G B Y"], Float[Tensor, "B D"]]:
    """Gradients of `gates` and `before`, each in its precision, of `g`, that of the next deter."""
    if fuses(gates):
        return kernels.gru_backward(g, gates, before)
    reset, candidate, update = _gates(gates, before)
    new = torch.tanh(reset * candidate)
    dnew = g * update * (1 - new.square())
    parts = (dnew * candidate * reset * (1 - reset), dnew * reset, g * (new - before) * update * (1 - update))
    blocks = [part.unflatten(-1, (gates.shape[0], -1)).transpose(0, 1) for part in parts]  # [G, B, X]
    return torch.cat(blocks, dim=-1).to(gates.dtype), g * (1 - update)


def begin(
    deter: Float[Tensor, "B D"], stoch: Float[Tensor, "B Z"], first: Bool[Tensor, "B 1"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, "B Z"]]:
    """deter and stoch, zero where an episode begins; deter in its precision and in that of `stoch`."""
    if fuses(deter):
        return kernels.begin(deter, stoch, first)
    deter, stoch = (torch.where(first, 0.0, part) for part in (deter, stoch))
    return deter, deter.to(stoch.dtype), stoch


def draw(
    logits: Float[Tensor, "B Z"], noise: Float[Tensor, "B K C"], unimix: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B K C"]]:
    """One-hot samples as `dtype` of softmax(logits), mixed with a share `unimix` of the uniform; log-probabilities."""
    if fuses(logits):
        return kernels.draw(logits, noise, unimix, dtype)
    probs = logits.view(noise.shape).softmax(-1)
    log_probs = torch.log((1 - unimix) * probs + unimix / noise.shape[-1])
    best = (log_probs + noise).argmax(-1, keepdim=True)
    return torch.zeros_like(noise, dtype=dtype).scatter_(-1, best, 1.0).flatten(1), log_probs


def draw_backward(
    g_stoch: Float[Tensor, "B Z"], g: Float[Tensor, "B K C"], logits: Float[Tensor, "B Z"], unimix: float
) -> Float[Tensor, "B Z"]:
    """The gradient of `logits`; that of a sample counts as one of the mixed probabilities (straight-through)."""
    if fuses(logits):
        return kernels.draw_backward(g_stoch, g, logits, unimix)
    probs = logits.view(g.shape).softmax(-1)
    mixed = (1 - unimix) * probs + unimix / g.shape[-1]
    slope = (1 - unimix) * (g / mixed + g_stoch.view(g.shape))
    return (probs * (slope - (probs * slope).sum(-1, keepdim=True))).flatten(1)


class BlockScan(torch.autograd.Function):
    """deter [T, B, D], stoch [T, B, Z] and posterior [T, B, K, C] of a sequence, as `BlockRSSM.observe` defines them.

    Inputs: the state before (`deter`, `stoch`), the action's layer `moved` [T, B, h], the embedding's part of the
    posterior's first layer with its bias, `seen` [T, B, h], Gumbel `noise` [T, B, K, C], `is_first` [T, B], `unimix`,
    the norms' `eps`, `bf16` (products of bf16 numbers), and the `BlockWeights`.
    """

    @staticmethod
    def forward(ctx, deter, stoch, moved, seen, noise, is_first, unimix, eps, bf16, *weights):
        w = _cast(BlockWeights(*weights), bf16)
        first, dtype = is_first[..., None], w.own.dtype  # [T, B, 1]; of products
        stoch, moved, hidden_bias = stoch.to(dtype), moved.to(dtype), w.hidden_bias.flatten()
        steps, posteriors, stochs = [], [], []
        for t in range(len(moved)):
            before, given, stoch_before = begin(deter, stoch, first[t])
            deter_pre = F.linear(given, w.deter, w.deter_bias)
            stoch_pre = F.linear(stoch_before, w.stoch, w.stoch_bias)
            inputs = [norm_silu(deter_pre, w.deter_gain, eps, dtype), norm_silu(stoch_pre, w.stoch_gain, eps, dtype)]
            shared = torch.cat([*inputs, moved[t]], dim=-1)  # [B, I]
            hidden_pre = F.linear(shared, w.shared, hidden_bias)
            _by_block(hidden_pre, w).baddbmm_(_by_block(given, w), w.own)  # a view
            hidden = norm_silu(hidden_pre, w.hidden_gain, eps, dtype)
            gates = torch.baddbmm(w.gates_bias, _by_block(hidden, w), w.gates)
            deter, given_on = gru(gates, before)
            posterior_pre = torch.addmm(seen[t].to(dtype), given_on, w.posterior.t())
            posterior = norm_silu(posterior_pre, w.posterior_gain, eps, w.logits.dtype)
            logits = F.linear(posterior, w.logits, w.logits_bias)
            stoch, log_probs = draw(logits, noise[t], unimix, dtype)
            steps.append(
                Saved(
                    before, stoch_before, deter_pre, stoch_pre, shared, hidden_pre, hidden, gates, posterior_pre,
                    posterior, logits, deter,
                )
            )  # fmt: skip
            posteriors.append(log_probs)
            stochs.append(stoch)
        saved = Saved(*(torch.stack(part) for part in zip(*steps, strict=True)))
        ctx.save_for_backward(first, *saved, *weights)
        ctx.settings = unimix, eps, bf16
        return saved.deter.clone(), torch.stack(stochs).to(deter.dtype), torch.stack(posteriors)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_deter, g_stoch, g_posterior):
        first, *rest = ctx.saved_tensors
        unimix, eps, bf16 = ctx.settings
        saved, weights = Saved(*rest[: len(Saved._fields)]), BlockWeights(*rest[len(Saved._fields) :])
        w, grads = _cast(weights, bf16), []
        deter, stoch = torch.zeros_like(g_deter[0]), torch.zeros_like(g_stoch[0])  # from the step after
        for t in reversed(range(len(first))):
            now = Saved(*(part[t] for part in saved))
            step, deter, stoch = _step_back(g_deter[t] + deter, g_stoch[t] + stoch, g_posterior[t], now, w, unimix, eps)
            deter, stoch = (torch.where(first[t], 0.0, part) for part in (deter, stoch))
            grads.append(step)
        each = _Gradients(*(torch.stack(part[::-1]) for part in zip(*grads, strict=True)))
        of_weights = _weight_gradients(each, saved, weights, eps, bf16)
        moved = each.shared[..., -weights.deter.shape[0] :]
        return deter, stoch, moved.to(deter.dtype), each.posterior_pre.to(deter.dtype), *[None] * 5, *of_weights


class _Gradients(NamedTuple):
    """Gradients of activations, time first; see `Saved`."""

    deter_out: Float[Tensor, "T B h"]  # after norm and activation, here and below
    deter_pre: Float[Tensor, "T B h"]
    stoch_out: Float[Tensor, "T B h"]
    stoch_pre: Float[Tensor, "T B h"]
    shared: Float[Tensor, "T B I"]
    hidden_out: Float[Tensor, "T B D"]
    hidden_pre: Float[Tensor, "T B D"]
    gates: Float[Tensor, "T G B Y"]
    posterior_out: Float[Tensor, "T B h"]
    posterior_pre: Float[Tensor, "T B h"]
    logits: Float[Tensor, "T B Z"]


def _step_back(
    g_deter: Float[Tensor, "B D"],
    g_stoch: Float[Tensor, "B Z"],
    g_posterior: Float[Tensor, "B K C"],
    saved: Saved,
    w: BlockWeights,
    unimix: float,
    eps: float,
) -> tuple[_Gradients, Float[Tensor, "B D"], Float[Tensor, "B Z"]]:
    """One step back: gradients of its activations, and of deter and stoch before it."""
    logits = draw_backward(g_stoch, g_posterior, saved.logits, unimix)
    posterior_out = logits @ w.logits
    posterior_pre = _norm_back(posterior_out, saved.posterior_pre, w.posterior_gain, eps)
    gates, before = gru_backward(g_deter + posterior_pre @ w.posterior, saved.gates, saved.before)
    hidden_out = torch.empty_like(saved.hidden)
    torch.bmm(gates, w.gates.transpose(1, 2), out=_by_block(hidden_out, w))  # into a view
    hidden_pre = _norm_back(hidden_out, saved.hidden_pre, w.hidden_gain, eps)
    shared = hidden_pre @ w.shared  # [B, I]
    deter_out, stoch_out, _ = shared.chunk(3, dim=-1)
    deter_pre = _norm_back(deter_out, saved.deter_pre, w.deter_gain, eps)
    stoch_pre = _norm_back(stoch_out, saved.stoch_pre, w.stoch_gain, eps)
    given = deter_pre @ w.deter
    _by_block(given, w).baddbmm_(_by_block(hidden_pre, w), w.own.transpose(1, 2))
    before = before + given
    step = _Gradients(
        deter_out, deter_pre, stoch_out, stoch_pre, shared, hidden_out, hidden_pre, gates, posterior_out,
        posterior_pre, logits,
    )  # fmt: skip
    return step, before, (stoch_pre @ w.stoch).to(before.dtype)


def _norm_back(g: Float[Tensor, "B N"], x: Float[Tensor, "B N"], gain: Float[Tensor, " N"], eps: float) -> Tensor:
    return norm_silu_backward(g, x, gain, eps, of_gain=False)[0]


def _weight_gradients(g: _Gradients, saved: Saved, w: BlockWeights, eps: float, bf16: bool) -> BlockWeights:
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

    hidden_pre = g.hidden_pre.unflatten(-1, (blocks, -1))  # [T, B, G, X]
    return BlockWeights(
        deter=product(g.deter_pre, saved.before),
        deter_bias=total(g.deter_pre),
        deter_gain=gain(g.deter_out, saved.deter_pre, w.deter_gain),
        stoch=product(g.stoch_pre, saved.stoch_before),
        stoch_bias=total(g.stoch_pre),
        stoch_gain=gain(g.stoch_out, saved.stoch_pre, w.stoch_gain),
        own=block_product(saved.before, hidden_pre.transpose(1, 2)),
        shared=product(g.hidden_pre, saved.shared),
        hidden_bias=total(g.hidden_pre).view(blocks, 1, -1),
        hidden_gain=gain(g.hidden_out, saved.hidden_pre, w.hidden_gain),
        gates=block_product(saved.hidden, g.gates),
        gates_bias=g.gates.sum((0, 2), dtype=w.deter.dtype)[:, None],
        posterior=product(g.posterior_pre, saved.deter),
        posterior_gain=gain(g.posterior_out, saved.posterior_pre, w.posterior_gain),
        logits=product(g.logits, saved.posterior),
        logits_bias=total(g.logits),
    )


def _by_block(x: Float[Tensor, "B D"], w: BlockWeights) -> Float[Tensor, "G B X"]:
    """The units of each block, a view."""
    return x.unflatten(-1, (len(w.own), -1)).transpose(0, 1)


def _from_blocks(x: Float[Tensor, "G B X"], dtype: torch.dtype) -> Float[Tensor, "B D"]:
    return x.transpose(0, 1).flatten(1).to(dtype)


def _gates(gates: Float[Tensor, "G B Y"], before: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Reset, candidate and update [B, D] each, after their activations but for the candidate's."""
    reset, candidate, update = (_from_blocks(gate, before.dtype) for gate in gates.chunk(3, dim=-1))
    return torch.sigmoid(reset), candidate, torch.sigmoid(update - 1)


def _cast(w: BlockWeights, bf16: bool) -> BlockWeights:
    """Weights of products in bf16, once for all steps; the logits' layer, gains and their biases stay as they are."""
    names = (
        "deter", "deter_bias", "stoch", "stoch_bias", "own", "shared", "hidden_bias", "gates", "gates_bias", "posterior"
    )  # fmt: skip
    return w._replace(**{name: getattr(w, name).bfloat16() for name in names}) if bf16 else w


def _product_dtype(x: Tensor, bf16: bool) -> Tensor:
    return x.bfloat16() if bf16 else x
