"""Steps of DreamerV3's model without images, along given actions or with any rule for them in the loop.

`block_cell.py` has the step of the GRU. The weights are constants: the way back goes to actions and the state before.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.block_cell import (
    BlockWeights,
    Inputs,
    Recurrent,
    cast_weights,
    draw_backward,
    draw_into,
    enter,
    norm_back,
    recur,
    recur_back,
)
from dreamer_mpc.kernels.norm import fuses, norm_silu

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import row_layers_triton as kernels
except ImportError:
    kernels = None


class PriorWeights(NamedTuple):
    """The parameters of the prior: two layers with norm and activation, then logits."""

    first: Float[Tensor, "h D"]
    first_bias: Float[Tensor, " h"]
    first_gain: Float[Tensor, " h"]
    second: Float[Tensor, "h h"]
    second_bias: Float[Tensor, " h"]
    second_gain: Float[Tensor, " h"]
    logits: Float[Tensor, "Z h"]
    logits_bias: Float[Tensor, " Z"]


class ActionWeights(NamedTuple):
    """The parameters of the action's layer."""

    weight: Float[Tensor, "h A"]
    bias: Float[Tensor, " h"]
    gain: Float[Tensor, " h"]


def _cast_prior(w: PriorWeights, bf16: bool) -> PriorWeights:
    """Weights of products in bf16, but for the logits' layer; gains stay as they are."""
    names = ("first", "first_bias", "second", "second_bias")
    return w._replace(**{name: getattr(w, name).bfloat16() for name in names}) if bf16 else w


class WalkWeights(NamedTuple):
    """The weights of a walk in the precision of products."""

    cell: BlockWeights
    prior: PriorWeights
    action: ActionWeights  # as parameters
    joined: tuple[Float[Tensor, "h2 D"], Float[Tensor, " h2"]] | None  # what reads the same deter, on a GPU


def walk_weights(cell: BlockWeights, prior: PriorWeights, action: ActionWeights, bf16: bool) -> WalkWeights:
    """Of the parameters; on a GPU the prior's first layer and the GRU's layer of deter are also one layer."""
    w, prior = cast_weights(cell, bf16), _cast_prior(prior, bf16)
    if not fuses(w.deter):
        return WalkWeights(w, prior, action, None)
    joined = torch.cat([prior.first, w.deter]), torch.cat([prior.first_bias, w.deter_bias])
    return WalkWeights(w, prior, action, joined)


class Prepared(NamedTuple):
    """What a walk needs but its start: Gumbel noise and weights."""

    noise: Float[Tensor, "T M K C"]
    weights: WalkWeights


class PriorStep(NamedTuple):
    """What the way back needs of a step."""

    recurrent: Recurrent
    first_pre: Float[Tensor, "M h"]  # before norm and activation
    second_pre: Float[Tensor, "M h"]
    logits: Float[Tensor, "M Z"]


class Walk(NamedTuple):
    """The states from the start to that after the last step, and the steps themselves where they are kept."""

    path: Float[Tensor, "T1 M S"]
    steps: list[PriorStep]

    @property
    def states(self) -> Float[Tensor, "T M S"]:
        """States after each step."""
        return self.path[1:]


@torch.no_grad()
def walk(
    deter: Float[Tensor, "M D"],
    stoch: Float[Tensor, "M Z"],
    act: Callable[[int, Float[Tensor, "M S"]], Float[Tensor, "M A"]],
    layer: Callable[[Float[Tensor, "M A"]], Float[Tensor, "M h"]],
    prepared: Prepared,
    unimix: float,
    eps: float,
    save: bool,
    path: Float[Tensor, "T1 M S"] | None = None,
) -> Walk:
    """Walk T steps; `act(k, state)` gives the action of step k in a state, `layer` its layer. `save` keeps the steps.

    States are given in the precision of `path`, memory for them that is filled step by step, by default in that of
    `deter`, which the walk itself keeps. On a GPU kept steps may be views of the states.
    """
    noise, (w, prior, *_) = prepared
    dtype, sizes = w.own.dtype, [deter.shape[1], stoch.shape[1]]
    deter = deter.contiguous()
    path = deter.new_empty(len(noise) + 1, len(deter), sum(sizes)) if path is None else path
    state, steps = path[0], []
    state[:, : sizes[0]], state[:, sizes[0] :] = deter, stoch
    given, stoch = deter.to(dtype), stoch.to(dtype)
    layers = _layers_of_deter(prepared.weights)
    _, deter_pre = layers(given)
    for k in range(len(noise)):
        action = act(k, state)
        state = path[k + 1]
        deter_into, stoch_into = state.split(sizes, dim=-1)
        inputs = _enter(deter_pre, stoch, action, layer, prepared.weights, eps, save)
        recurrent, given = recur(deter, given, stoch, inputs, w, eps, deter_into, save)
        deter = recurrent.deter
        first_pre, deter_pre = layers(given)
        stoch, second_pre, logits = draw_prior(first_pre, prior, noise[k], unimix, eps, stoch_into, save)
        if save:
            steps.append(PriorStep(recurrent, first_pre, second_pre, logits))
    return Walk(path, steps)


def _enter(
    deter_pre: Float[Tensor, "M h"],
    stoch: Float[Tensor, "M Z"],
    action: Float[Tensor, "M A"],
    layer: Callable[[Float[Tensor, "M A"]], Float[Tensor, "M h"]],
    weights: WalkWeights,
    eps: float,
    save: bool,
) -> Inputs:
    """`enter` after an action; where it fits, one kernel on a GPU, which gives the product of stoch only to `save`."""
    w = weights.cell
    if fuses(stoch) and kernels.fits_inputs(deter_pre):
        layers = (w.deter_gain, w.stoch, w.stoch_bias, w.stoch_gain, *weights.action)
        return Inputs(deter_pre, *kernels.inputs(deter_pre, stoch, action, *layers, eps, save))
    return enter(deter_pre, stoch, layer(action).to(stoch.dtype), w, eps)


def draw_prior(
    first_pre: Float[Tensor, "M h"],
    prior: PriorWeights,
    noise: Float[Tensor, "M K C"],
    unimix: float,
    eps: float,
    into: Float[Tensor, "M Z"],
    save: bool,
) -> tuple[Float[Tensor, "M Z"], Float[Tensor, "M h"] | None, Float[Tensor, "M Z"] | None]:
    """A sample of the prior from the product of its first layer; for the way back the second one's, and the logits.

    The sample is in the precision of products; it is also written `into` memory in any, and may be a view of that.
    Where it fits, one kernel on a GPU computes all of it, and gives products only to `save`.
    """
    if fuses(first_pre) and kernels.fits_prior(first_pre, noise):
        return kernels.prior(first_pre, prior.first_gain, *prior[3:], noise, unimix, eps, into, save)
    dtype = prior.second.dtype
    second_pre = F.linear(norm_silu(first_pre, prior.first_gain, eps, dtype), prior.second, prior.second_bias)
    hidden = norm_silu(second_pre, prior.second_gain, eps, prior.logits.dtype)
    logits = F.linear(hidden, prior.logits, prior.logits_bias)
    return draw_into(into, logits, noise, unimix, dtype), second_pre, logits


def _layers_of_deter(
    weights: WalkWeights,
) -> Callable[[Float[Tensor, "M D"]], tuple[Float[Tensor, "M h"], Float[Tensor, "M h"]]]:
    """The prior's first layer and the GRU's layer of deter, both before norm and activation; on a GPU one product."""
    w, prior, _, joined = weights
    if joined is None:
        return lambda deter: (F.linear(deter, prior.first, prior.first_bias), F.linear(deter, w.deter, w.deter_bias))
    return lambda deter: F.linear(deter, *joined).split([len(prior.first), len(w.deter)], dim=-1)


class WalkBack(torch.autograd.Function):
    """The states of a saved walk, differentiable in deter and stoch before it and in the action's layer [T, M, h]."""

    @staticmethod
    def forward(ctx, deter, stoch, moved, walked, weights, classes, unimix, eps):
        ctx.walked, ctx.weights, ctx.settings = walked, weights, (classes, unimix, eps)
        return walked.states.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (w, prior, *_), (classes, unimix, eps) = ctx.weights, ctx.settings
        g_deter, g_stoch = g.split([w.deter.shape[1], w.stoch.shape[1]], dim=-1)
        deter, stoch, moved = g.new_zeros(g_deter[0].shape), g.new_zeros(g_stoch[0].shape), []
        unread = g.new_zeros(len(stoch), *classes)  # nothing reads a draw's log-probabilities
        for k in reversed(range(len(g))):
            step = ctx.walked.steps[k]
            logits = draw_backward(g_stoch[k] + stoch, unread, step.logits, unimix)
            second = norm_back(logits @ prior.logits, step.second_pre, prior.second_gain, eps)
            first = norm_back(second @ prior.second, step.first_pre, prior.first_gain, eps)
            grads, deter, stoch = recur_back(g_deter[k] + deter + first @ prior.first, step.recurrent, w, eps)
            moved.append(grads.shared[:, -len(w.deter) :])
        return deter, stoch, torch.stack(moved[::-1]).to(deter.dtype), *[None] * 5
