"""The recurrent cell over a whole sequence, with its own backward pass.

`RSSM.observe` and `prior_step` under autograd are the reference. Here the backward pass through time carries the
gradient of the state alone. Each weight's gradient then follows from one product over all steps, where autograd would
add up T products. On a GPU both passes are one Triton kernel each (`cell_triton.py`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dreamer_mpc.kernels.choice import misfit
from dreamer_mpc.kernels.deferred import leave, placeholders
from dreamer_mpc.kernels.policy import PolicyWeights, tanh_normal_mode

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import cell_triton
except ImportError:
    cell_triton = None


class Cell(NamedTuple):
    """Weights of one step: input layer, GRU, then the hidden and the output layer of prior or posterior."""

    w_in: Float[Tensor, "X ZA"]
    b_in: Float[Tensor, " X"]
    w_ih: Float[Tensor, "D3 X"]
    b_ih: Float[Tensor, " D3"]
    w_hh: Float[Tensor, "D3 D"]
    b_hh: Float[Tensor, " D3"]
    w_hidden: Float[Tensor, "X D"]
    w_out: Float[Tensor, "Z2 X"]
    b_out: Float[Tensor, " Z2"]


class Trace(NamedTuple):
    """A sequence's states, the first included, and the tensors for the backward pass (None where not needed)."""

    deter: Float[Tensor, "T1 M D"]
    stoch: Float[Tensor, "T1 M Z"]
    x: Float[Tensor, "T M X"]
    gates: Float[Tensor, "T M D4"] | None  # reset, update, candidate, and the hidden state's share of the candidate
    hidden: Float[Tensor, "T M X"]
    stats: Float[Tensor, "T M Z2"] | None  # mean and std before its softplus

    @property
    def states(self) -> Float[Tensor, "T M S"]:
        """The states after each step."""
        return joined_states(self.deter[1:], self.stoch[1:])


def joined_states(
    deter: Float[Tensor, "T M D"], stoch: Float[Tensor, "T M Z"], rounded: bool = False
) -> Float[Tensor, "T M P"]:
    """States of their parts, as many numbers; with `rounded` in bf16 for products.

    On a GPU those are filled up with zeros to whole 16 bytes: over 230 numbers a product takes slow kernels, for two
    numbers at a time, over 232 fast ones. `networks.mlp` fills up weights likewise. No gradient if rounded.
    """
    if not rounded:
        return torch.cat([deter, stoch], dim=-1)
    d, size = deter.shape[-1], deter.shape[-1] + stoch.shape[-1]
    width = size + (-size % 8 if deter.is_cuda else 0)
    out = deter.new_empty(*deter.shape[:-1], width, dtype=torch.bfloat16)
    out[..., :d], out[..., d:size] = deter, stoch
    out[..., size:].zero_()
    return out


class Acting(NamedTuple):
    """The policy in the loop: a_t = w_t p_t + (1 - w_t) tanh(mean + std noise_t), clamped to [-1, 1].

    Without noise the policy's mode replaces its sample.
    """

    actor: PolicyWeights
    noise: Float[Tensor, "T M A"] | None
    previous: Float[Tensor, "T M A"] | None = None  # p
    weight: Float[Tensor, "T M"] | None = None  # w


def unroll(
    cell: Cell,
    state: Float[Tensor, "M S"],
    action: Float[Tensor, "T M A"] | Acting,
    add: Float[Tensor, "..."],
    noise: Float[Tensor, "T M Z"],
    keep: Float[Tensor, "T M"] | None,
    min_std: float,
    save: bool = True,
    bf16: bool = False,
    given: "cell_triton.Products | None" = None,
) -> tuple[Float[Tensor, "T M A"], Trace]:
    """Roll the cell out from `state`; no autograd. `add` is added before the hidden layer: a bias [X], or [T, M, X].

    `bf16`: on a GPU, products of bf16 numbers, summed in fp32; the states are fp32. `given`: the cell's `products`.
    """
    acting = action if isinstance(action, Acting) else None
    steps, rows, z = noise.shape
    width, d = cell.w_hidden.shape
    kept = steps if save else 1
    deter, stoch = noise.new_empty(steps + 1, rows, d), noise.new_empty(steps + 1, rows, z)
    deter[0], stoch[0] = state.split([d, z], dim=-1)
    x, hidden = noise.new_empty(kept, rows, width), noise.new_empty(kept, rows, width)
    gates, stats = (noise.new_empty(steps, rows, size) if save else None for size in (4 * d, 2 * z))
    trace = Trace(deter, stoch, x, gates, hidden, stats)
    action = noise.new_empty(steps, rows, acting.actor.actions) if acting else action.contiguous()
    inputs = (cell, trace, action, acting, add, noise, keep, min_std)
    if _on_gpu(noise, d, z, width, action.shape[-1], acting.actor.units if acting else 0):
        _unroll_triton(*inputs, bf16, given)
    else:
        _unroll_torch(*inputs)
    return action, trace


def products(cell: Cell, bf16: bool) -> "cell_triton.Products | None":
    """The weights as the kernels multiply them, for several calls; without gradients for the way forward alone.

    None where the kernels do not run.
    """
    width, d = cell.w_hidden.shape
    z = len(cell.w_out) // 2
    if not _on_gpu(cell.w_in, d, z, width, cell.w_in.shape[1] - z):
        return None
    return cell_triton.products(tuple(w.detach() for w in cell), bf16, torch.is_grad_enabled())


def _on_gpu(like: Tensor, *sizes: int) -> bool:
    """Whether the kernel can run on the device of `like`; `sizes` as in `misfit`."""
    return has_triton() and misfit(*sizes) is None and like.is_cuda and like.dtype == torch.float32


def has_triton() -> bool:
    """Whether the kernels can be compiled on this machine."""
    return cell_triton is not None


def _unroll_triton(cell, trace, action, acting, add, noise, keep, min_std, bf16, given) -> None:
    policy = {}
    if acting:
        policy = {"actor": acting.actor, "previous": acting.previous, "weight": acting.weight}
        policy["actor_noise"] = None if acting.noise is None else acting.noise.contiguous()
    weights = tuple(w.detach() for w in cell)
    kept = (trace.x, trace.gates, trace.hidden, trace.stats)
    inputs = (action, add.contiguous(), noise.contiguous(), keep)
    cell_triton.forward(trace.deter, trace.stoch, *inputs, *kept, weights, min_std, bf16, given=given, **policy)


def _unroll_torch(cell, trace, action, acting, add, noise, keep, min_std) -> None:
    # On a CPU a plan costs mostly the overhead of its many small calls. So views of the buffers that steps fill are
    # made once, before the loop; and no step adds or multiplies by a Python number, which torch would first convert
    # to a tensor.
    (_, rows, z), d, save = noise.shape, trace.deter.shape[-1], trace.gates is not None
    deters, stochs, actions, draws, least = map(_steps, (trace.deter, trace.stoch, action, noise, min_std * noise))
    xs, hiddens = _steps(trace.x), _steps(trace.hidden)
    outs = _steps(trace.stats if save else noise.new_empty(1, rows, 2 * z))
    outs = [(out, *out.split(z, dim=-1)) for out in outs]
    gi, gh = noise.new_empty(2, rows, 3 * d)
    (gi_ru, gi_n), (gh_ru, gh_n) = gi.split([2 * d, d], dim=-1), gh.split([2 * d, d], dim=-1)
    gates = _steps(trace.gates if save else noise.new_empty(1, rows, 4 * d))
    gates = [(g[:, : 2 * d], *g.split(d, dim=-1)) for g in gates]
    deter, stoch = deters[0], stochs[0]
    w_in, w_ih, w_hh, w_hidden, w_out = (w.t() for w in _matrices(cell))
    policy = _Policy(acting) if acting else None
    for t, a in enumerate(actions):
        if policy:
            policy.act(torch.cat([deter, stoch], dim=-1), t, out=a)
        if keep is not None:
            deter, stoch, a = deter * keep[t, :, None], stoch * keep[t, :, None], a * keep[t, :, None]
        kept = t if save else 0
        x = F.elu_(torch.addmm(cell.b_in, torch.cat([stoch, a], dim=-1), w_in, out=xs[kept]))
        torch.addmm(cell.b_ih, x, w_ih, out=gi)
        torch.addmm(cell.b_hh, deter, w_hh, out=gh)
        ru, r, u, n, gh_kept = gates[kept]
        torch.sigmoid(gi_ru.add_(gh_ru), out=ru)
        torch.addcmul(gi_n, r, gh_n, out=n).tanh_()
        if save:
            gh_kept.copy_(gh_n)
        deter = torch.lerp(n, deter, u, out=deters[t + 1])
        joined = add[t] if add.dim() == 3 else add
        hidden = F.elu_(torch.addmm(joined, deter, w_hidden, out=hiddens[kept]))
        out, mean, raw = outs[kept]
        torch.addmm(cell.b_out, hidden, w_out, out=out)
        stoch = torch.addcmul(mean, F.softplus(raw), draws[t], out=stochs[t + 1]).add_(least[t])


def _steps(x: Float[Tensor, "T ..."]) -> tuple[Tensor, ...]:
    return x.unbind(0)


def _matrices(cell: Cell) -> tuple[Tensor, ...]:
    return cell.w_in, cell.w_ih, cell.w_hh, cell.w_hidden, cell.w_out


class _Policy:
    """The actor in the loop, its constants folded into the last layer and the noise."""

    def __init__(self, acting: Acting):
        actor, noise = acting.actor, acting.noise
        *self.hidden, (bias, weight) = [(b, w.t()) for b, w in zip(actor.biases, actor.weights, strict=True)]
        factor, shift = torch.ones_like(bias), torch.zeros_like(bias)  # for means and for standard deviations
        factor.chunk(2)[0].div_(actor.mean_scale)
        shift.chunk(2)[1].fill_(actor.raw_init_std)
        self.last = torch.addcmul(shift, bias, factor), weight * factor
        self.mean_scale, self.min_std = actor.mean_scale, actor.min_std
        self.noise = None  # use the mode
        if noise is not None:
            self.noise, self.least = _steps(noise), _steps(actor.min_std * noise)
        self.kept = None  # the previous plan's actions, weighted, and the policy's weight
        if acting.previous is not None:
            weight = acting.weight[..., None]
            self.kept, self.share = _steps(weight * acting.previous), _steps(1 - weight)

    def act(self, x: Float[Tensor, "M S"], t: int, out: Float[Tensor, "M A"]) -> None:
        """Write the actions of step t in states x to `out`."""
        for bias, weight in self.hidden:
            x = F.elu_(torch.addmm(bias, x, weight))
        mean, raw = torch.addmm(self.last[0], x, self.last[1]).chunk(2, dim=-1)
        if self.noise is None:
            action = tanh_normal_mode(self.mean_scale * mean.tanh_(), F.softplus(raw) + self.min_std)
        else:
            action = torch.addcmul(self.least[t], F.softplus(raw), self.noise[t])
            action = action.add_(mean.tanh_(), alpha=self.mean_scale).tanh_()
        if self.kept is None:
            out.copy_(action)
        else:
            torch.addcmul(self.kept[t], self.share[t], action, out=out).clamp_(-1, 1)


class _Deltas(NamedTuple):
    """Gradients at the inputs, and (with `g_stats`) at the layers' outputs before their activations."""

    action: Float[Tensor, "T M A"]
    deter: Float[Tensor, "M D"]
    stoch: Float[Tensor, "M Z"]
    x: Float[Tensor, "T M X"]
    gi: Float[Tensor, "T M D3"]
    gh: Float[Tensor, "T M D3"]
    hidden: Float[Tensor, "T M X"]
    stats: Float[Tensor, "T M Z2"]


def _backward(cell: Cell, trace: Trace, noise, keep, g_deter, g_stoch, g_stats=None, bf16=False, given=None) -> _Deltas:
    """Backpropagate through time; `g_*` [T, M, *] are gradients of the outputs of `unroll`. No weight gradients yet."""
    z, width, d = noise.shape[-1], trace.hidden.shape[-1], trace.deter.shape[-1]
    actions = cell.w_in.shape[1] - z
    if _on_gpu(noise, d, z, width, actions):
        saved = (trace.x, trace.gates, trace.hidden, trace.stats)
        weights = tuple(w.detach() for w in cell)
        inputs = (g_deter, g_stoch, g_stats, trace.deter, noise, keep)
        return _Deltas(*cell_triton.backward(*inputs, *saved, weights, actions, bf16, given))
    return _backward_torch(cell, trace, noise, keep, g_deter, g_stoch, g_stats)


def _backward_torch(cell, trace, noise, keep, g_deter, g_stoch, g_stats) -> _Deltas:
    steps, rows, z = noise.shape
    d = trace.deter.shape[-1]
    before = trace.deter[:-1] if keep is None else trace.deter[:-1] * keep[..., None]
    # Compute for all steps at once what does not depend on the gradient: slopes d gate / d deter, [T, M, 6, D].
    r, u, n, gh = trace.gates.split(d, dim=-1)
    slope_n = (1 - u) * (1 - n * n)
    slopes = [slope_n * gh * r * (1 - r), (before - n) * u * (1 - u)]
    to_gates = torch.stack([*slopes, slope_n, *slopes, slope_n * r], dim=2)  # of gi, of gh
    to_raw = noise * torch.sigmoid(trace.stats[..., z:])
    to_stats = torch.stack([torch.ones_like(to_raw), to_raw], dim=2)
    to_hidden, to_x = _elu_slope(trace.hidden), _elu_slope(trace.x)
    d_gates, d_stats = torch.empty_like(to_gates), torch.empty_like(to_stats)
    d_hidden, d_x = torch.empty_like(to_hidden), torch.empty_like(to_x)
    d_input = noise.new_empty(steps, rows, cell.w_in.shape[1])
    flat = d_stats.flatten(2), *d_gates.flatten(2).split(3 * d, dim=-1)
    given = _each(g_deter, g_stoch, to_stats, to_hidden, to_gates, u, to_x)
    filled = _each(d_stats, d_hidden, d_gates, d_x, d_input, d_input[..., :z], *flat)
    d_deter, d_stoch = torch.zeros_like(g_deter[-1]), torch.zeros_like(g_stoch[-1])
    for t in reversed(range(steps)):
        gd, gs, stats, hidden, gates, keep_old, x = given[t]
        o_stats, o_hidden, o_gates, o_x, o_input, o_stoch, flat_stats, flat_gi, flat_gh = filled[t]
        torch.mul((d_stoch + gs)[:, None], stats, out=o_stats)
        if g_stats is not None:
            flat_stats += g_stats[t]
        torch.mm(flat_stats, cell.w_out, out=o_hidden).mul_(hidden)
        d_deter = torch.addmm(d_deter + gd, o_hidden, cell.w_hidden)
        torch.mul(d_deter[:, None], gates, out=o_gates)
        torch.mm(flat_gi, cell.w_ih, out=o_x).mul_(x)
        d_deter = d_deter.mul_(keep_old).addmm_(flat_gh, cell.w_hh)
        torch.mm(o_x, cell.w_in, out=o_input)
        if keep is not None:
            d_deter = d_deter * keep[t, :, None]
            o_input *= keep[t, :, None]
        d_stoch = o_stoch
    d_stats, d_gi, d_gh = flat
    return _Deltas(d_input[..., z:], d_deter, d_stoch, d_x, d_gi, d_gh, d_hidden, d_stats)


def _each(*tensors: Float[Tensor, "T ..."]) -> list[tuple[Tensor, ...]]:
    """Views of all tensors for each step, made at once."""
    return list(zip(*map(_steps, tensors), strict=True))


def _elu_slope(y: Tensor) -> Tensor:
    """d elu / dx where elu(x) = y: 1, or y + 1 where y is negative."""
    return 1 + y.clamp_max(0)


class Observe(torch.autograd.Function):
    """`unroll` with gradients for all inputs except noise and keep; those of the cell are left to `Deferred`.

    apply(state [M, S], action [T, M, A], seen [T, M, X], noise, keep, min_std, bf16, box, given, *cell), with the cell
    that `Deferred` gives for `box`, and its `products` -> deter [T, M, D], stoch [T, M, Z], stats [T, M, 2Z].
    """

    @staticmethod
    def forward(ctx, state, action, seen, noise, keep, min_std, bf16, box, given, *cell):
        cell = Cell(*cell)
        action, trace = unroll(cell, state, action, seen, noise, keep, min_std, bf16=bf16, given=given)
        ctx.bf16, ctx.box, ctx.given = bf16, box, given
        ctx.save_for_backward(action, noise, keep, *cell, *trace)
        return trace.deter[1:], trace.stoch[1:], trace.stats

    @staticmethod
    @once_differentiable
    def backward(ctx, g_deter, g_stoch, g_stats):
        action, noise, keep, *saved = ctx.saved_tensors
        cell, trace = _restored(saved)
        g_deter, g_stoch, g_stats = (g.contiguous() for g in (g_deter, g_stoch, g_stats))
        delta = _backward(cell, trace, noise, keep, g_deter, g_stoch, g_stats, ctx.bf16, ctx.given)
        leave(ctx.box, _of_cell, delta, trace, action, keep)
        d_state = torch.cat([delta.deter, delta.stoch], dim=-1)
        return d_state, delta.action, delta.hidden, *[None] * 6, *placeholders(cell)


def _of_cell(delta: _Deltas, trace: Trace, action: Float[Tensor, "T M A"], keep: Float[Tensor, "T M"]) -> Cell:
    """Gradients of the weights, each in one product over all steps."""
    kept = keep[..., None]
    inputs = torch.cat([trace.stoch[:-1], action], dim=-1) * kept
    return Cell(
        *_linear_gradients(delta.x, inputs),
        *_linear_gradients(delta.gi, trace.x),
        *_linear_gradients(delta.gh, trace.deter[:-1] * kept),
        _linear_gradients(delta.hidden, trace.deter[1:])[0],
        *_linear_gradients(delta.stats, trace.hidden),
    )


def _restored(saved: list[Tensor]) -> tuple[Cell, Trace]:
    return Cell(*saved[: len(Cell._fields)]), Trace(*saved[len(Cell._fields) :])


def _linear_gradients(delta: Float[Tensor, "T M O"], x: Float[Tensor, "T M I"]) -> tuple[Tensor, Tensor]:
    """Gradients of weight [O, I] and bias [O], summed over all steps in one product."""
    delta = delta.flatten(0, 1)
    return delta.t() @ x.flatten(0, 1), delta.sum(0)


class Rollout(torch.autograd.Function):
    """States [T, M, S] from `unroll`, as a function of state [M, S] and actions [T, M, A].

    Weights are constants here: imagination and planning need no gradient of them. `rounded`: see `joined_states`.
    """

    @staticmethod
    def forward(ctx, state, action, noise, cell, trace, bf16, rounded):
        ctx.bf16 = bf16
        ctx.save_for_backward(noise, *cell, *trace)
        return joined_states(trace.deter[1:], trace.stoch[1:], rounded)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_states):
        noise, *saved = ctx.saved_tensors
        cell, trace = _restored(saved)
        d, size = trace.deter.shape[-1], trace.deter.shape[-1] + noise.shape[-1]
        g_deter, g_stoch = (g.to(noise.dtype).contiguous() for g in (g_states[..., :d], g_states[..., d:size]))
        delta = _backward(cell, trace, noise, None, g_deter, g_stoch, bf16=ctx.bf16)
        return torch.cat([delta.deter, delta.stoch], dim=-1), delta.action, None, None, None, None, None
