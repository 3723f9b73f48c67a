"""A step of DreamerV3's recurrent model forward and back: its GRU in blocks, and the draw of its categorical states.

What lies between two products is one kernel on a GPU (`block_cell_triton.py`), single torch operations elsewhere.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from dreamer_mpc.kernels.norm import fuses, norm_silu, norm_silu_backward

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import block_cell_triton as kernels
except ImportError:
    kernels = None

TINY = 1e-37  # the least probability whose logarithm is taken


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


class Recurrent(NamedTuple):
    """A step of the GRU: inputs, output and what lies between, as the way back needs them; or several, stacked."""

    before: Float[Tensor, "*t B D"]  # deter and stoch before the step, zero where an episode begins
    stoch_before: Float[Tensor, "*t B Z"]
    deter_pre: Float[Tensor, "*t B h"]  # before norm and activation, here and below
    stoch_pre: Float[Tensor, "*t B h"] | None  # None without a way back
    shared: Float[Tensor, "*t B I"]
    hidden_pre: Float[Tensor, "*t B D"]
    hidden: Float[Tensor, "*t B D"]
    gates: Float[Tensor, "*t G B Y"] | None  # without their bias where `gru` adds it; None without a way back
    deter: Float[Tensor, "*t B D"]


class RecurrentGradients(NamedTuple):
    """Gradients of what lies between, see `Recurrent`; `out`: after norm and activation."""

    deter_out: Float[Tensor, "*t B h"]
    deter_pre: Float[Tensor, "*t B h"]
    stoch_out: Float[Tensor, "*t B h"]
    stoch_pre: Float[Tensor, "*t B h"]
    shared: Float[Tensor, "*t B I"]
    hidden_out: Float[Tensor, "*t B D"]
    hidden_pre: Float[Tensor, "*t B D"]
    gates: Float[Tensor, "*t G B Y"]


class Inputs(NamedTuple):
    """What a step of the GRU reads beside deter itself."""

    deter_pre: Float[Tensor, "B h"]  # the product of its layer, before norm and activation
    stoch_pre: Float[Tensor, "B h"] | None  # the same of stoch; None where no way back needs it
    shared: Float[Tensor, "B I"]  # what all blocks see: see `share`


def enter(
    deter_pre: Float[Tensor, "B h"],
    stoch: Float[Tensor, "B Z"],
    moved: Float[Tensor, "B h"],
    w: BlockWeights,
    eps: float,
) -> Inputs:
    """The inputs of a step after the action's layer `moved`; all in the precision of products."""
    stoch_pre = F.linear(stoch, w.stoch, w.stoch_bias)
    return Inputs(deter_pre, stoch_pre, share(deter_pre, stoch_pre, moved, w.deter_gain, w.stoch_gain, eps))


def recur(
    before: Float[Tensor, "B D"],
    given: Float[Tensor, "B D"],
    stoch: Float[Tensor, "B Z"],
    inputs: Inputs,
    w: BlockWeights,
    eps: float,
    into: Float[Tensor, "B D"] | None = None,
    save: bool = True,
) -> tuple[Recurrent, Float[Tensor, "B D"]]:
    """A step of the GRU from deter `before` and stoch; also deter in the precision of products.

    `given` is `before` in that precision, as are `stoch` and the inputs. The next deter is also written `into` memory
    with rows side by side or not, in its precision; results may be views of that. `save`: see `gated`.
    """
    dtype, (deter_pre, stoch_pre, shared) = w.own.dtype, inputs
    hidden_pre = F.linear(shared, w.shared, w.hidden_bias.flatten())
    by_block(hidden_pre, w).baddbmm_(by_block(given, w), w.own)  # a view
    hidden = norm_silu(hidden_pre, w.hidden_gain, eps, dtype)
    gates, deter, given_on = gated(hidden, w, before, into, save)
    return Recurrent(before, stoch, deter_pre, stoch_pre, shared, hidden_pre, hidden, gates, deter), given_on


def gated(
    hidden: Float[Tensor, "B D"],
    w: BlockWeights,
    before: Float[Tensor, "B D"],
    into: Float[Tensor, "B D"] | None,
    save: bool,
) -> tuple[Float[Tensor, "G B Y"] | None, Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """The products of the gates, and what `gru` makes of them after the hidden layer.

    With bf16, one kernel on a GPU computes both, and gives the products only to `save`.
    """
    if fuses(hidden) and hidden.dtype == torch.bfloat16:
        return kernels.gated(hidden, w.gates, w.gates_bias, before, into, save)
    bias, units = _added_bias(w, hidden), by_block(hidden, w)
    gates = torch.baddbmm(w.gates_bias, units, w.gates) if bias is None else torch.bmm(units, w.gates)
    return gates, *gru(gates, bias, before, into)


def recur_back(
    g: Float[Tensor, "B D"], saved: Recurrent, w: BlockWeights, eps: float
) -> tuple[RecurrentGradients, Float[Tensor, "B D"], Float[Tensor, "B Z"]]:
    """The step back of `g`, the gradient of deter: gradients of what lies between, and of deter and stoch before."""
    gates, before = gru_backward(g, saved.gates, _added_bias(w, g), saved.before)
    hidden_out = torch.empty_like(saved.hidden_pre)
    torch.bmm(gates, w.gates.transpose(1, 2), out=by_block(hidden_out, w))  # into a view
    hidden_pre = norm_back(hidden_out, saved.hidden_pre, w.hidden_gain, eps)
    shared = hidden_pre @ w.shared  # [B, I]
    deter_out, stoch_out, _ = shared.chunk(3, dim=-1)
    deter_pre = norm_back(deter_out, saved.deter_pre, w.deter_gain, eps)
    stoch_pre = norm_back(stoch_out, saved.stoch_pre, w.stoch_gain, eps)
    given = deter_pre @ w.deter
    by_block(given, w).baddbmm_(by_block(hidden_pre, w), w.own.transpose(1, 2))
    grads = RecurrentGradients(deter_out, deter_pre, stoch_out, stoch_pre, shared, hidden_out, hidden_pre, gates)
    return grads, before + given, (stoch_pre @ w.stoch).to(before.dtype)


def norm_back(
    g: Float[Tensor, "B N"], x: Float[Tensor, "B N"], gain: Float[Tensor, " N"], eps: float
) -> Float[Tensor, "B N"]:
    """The gradient of `x` alone, of that of `norm_silu(x)`."""
    return norm_silu_backward(g, x, gain, eps, of_gain=False)[0]


def share(
    deter_pre: Float[Tensor, "B h"],
    stoch_pre: Float[Tensor, "B h"],
    moved: Float[Tensor, "B h"],
    deter_gain: Float[Tensor, " h"],
    stoch_gain: Float[Tensor, " h"],
    eps: float,
) -> Float[Tensor, "B I"]:
    """What all blocks see: the layers of deter and stoch after norm and activation, and that of the action."""
    if fuses(moved):
        return kernels.share(deter_pre, stoch_pre, moved, deter_gain, stoch_gain, eps)
    layers = ((deter_pre, deter_gain), (stoch_pre, stoch_gain))
    return torch.cat([*(norm_silu(x, gain, eps, moved.dtype) for x, gain in layers), moved], dim=-1)


def gru(
    gates: Float[Tensor, "G B Y"],
    bias: Float[Tensor, "G 1 Y"] | None,
    before: Float[Tensor, "B D"],
    into: Float[Tensor, "B D"] | None = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """The next deter, of reset, candidate and update, each of X units of a block; again in the precision of `gates`.

    It is also written `into` memory in any precision; each result may be a view of that.
    """
    if fuses(gates):
        return kernels.gru(gates, bias, before, into)
    reset, candidate, update = _gates(gates, bias, before)
    deter = update * torch.tanh(reset * candidate) + (1 - update) * before
    if into is not None:
        into.copy_(deter)
    return deter, deter.to(gates.dtype)


def gru_backward(
    g: Float[Tensor, "B D"],
    gates: Float[Tensor, "G B Y"],
    bias: Float[Tensor, "G 1 Y"] | None,
    before: Float[Tensor, "B D"],
) -> tuple[Float[Tensor, "G B Y"], Float[Tensor, "B D"]]:
    """Gradients of `gates` and `before`, each in its precision, of `g`, that of the next deter."""
    if fuses(gates):
        return kernels.gru_backward(g, gates, bias, before)
    reset, candidate, update = _gates(gates, bias, before)
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
    log_probs = torch.log(((1 - unimix) * probs + unimix / noise.shape[-1]).clamp_min(TINY))
    best = (log_probs + noise).argmax(-1, keepdim=True)
    return torch.zeros_like(noise, dtype=dtype).scatter_(-1, best, 1.0).flatten(1), log_probs


def draw_into(
    into: Float[Tensor, "B Z"],
    logits: Float[Tensor, "B Z"],
    noise: Float[Tensor, "B K C"],
    unimix: float,
    dtype: torch.dtype,
) -> Float[Tensor, "B Z"]:
    """The samples of `draw` alone, also written `into` memory in any precision; they may be a view of that."""
    if fuses(logits):
        return kernels.draw_into(into, logits, noise, unimix, dtype)
    stoch, _ = draw(logits, noise, unimix, dtype)
    into.copy_(stoch)
    return stoch


def draw_backward(
    g_stoch: Float[Tensor, "B Z"], g: Float[Tensor, "B K C"], logits: Float[Tensor, "B Z"], unimix: float
) -> Float[Tensor, "B Z"]:
    """The gradient of `logits`; that of a sample counts as one of the mixed probabilities (straight-through)."""
    if fuses(logits):
        return kernels.draw_backward(g_stoch, g, logits, unimix)
    probs = logits.view(g.shape).softmax(-1)
    mixed = ((1 - unimix) * probs + unimix / g.shape[-1]).clamp_min(TINY)
    slope = (1 - unimix) * (g / mixed + g_stoch.view(g.shape))
    return (probs * (slope - (probs * slope).sum(-1, keepdim=True))).flatten(1)


def cast_weights(w: BlockWeights, bf16: bool) -> BlockWeights:
    """Weights of products in bf16, once for all steps; the logits' layer, gains and their biases stay as they are."""
    names = (
        "deter", "deter_bias", "stoch", "stoch_bias", "own", "shared", "hidden_bias", "gates", "gates_bias", "posterior"
    )  # fmt: skip
    return w._replace(**{name: getattr(w, name).bfloat16() for name in names}) if bf16 else w


def by_block(x: Float[Tensor, "B D"], w: BlockWeights) -> Float[Tensor, "G B X"]:
    """The units of each block, a view."""
    return x.unflatten(-1, (len(w.own), -1)).transpose(0, 1)


def _from_blocks(x: Float[Tensor, "G B X"], dtype: torch.dtype) -> Float[Tensor, "B D"]:
    return x.transpose(0, 1).flatten(1).to(dtype)


def _added_bias(w: BlockWeights, x: Tensor) -> Float[Tensor, "G 1 Y"] | None:
    """The gates' bias where the kernel of `gru` adds it: in a batched product it would be copied to every row first."""
    return w.gates_bias if fuses(x) else None


def _gates(
    gates: Float[Tensor, "G B Y"], bias: Float[Tensor, "G 1 Y"] | None, before: Float[Tensor, "B D"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Reset, candidate and update [B, D] each, after their activations but for the candidate's."""
    if bias is not None:
        gates = gates.to(before.dtype) + bias
    reset, candidate, update = (_from_blocks(gate, before.dtype) for gate in gates.chunk(3, dim=-1))
    return torch.sigmoid(reset), candidate, torch.sigmoid(update - 1)
