"""Recurrent state-space model (PlaNet, Hafner et al. 2019): state = cat(deter, stoch), [*, S]."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from dreamer_mpc.kernels import kl
from dreamer_mpc.kernels.cell import Acting, Cell, Observe, Rollout, Trace, products, unroll
from dreamer_mpc.kernels.deferred import Deferred
from dreamer_mpc.kernels.graphs import Aside


class Gaussian(NamedTuple):
    """Mean and standard deviation of a diagonal Gaussian, [*, stoch] each."""

    mean: Tensor
    std: Tensor


def gaussian_kl(p: Gaussian, q: Gaussian) -> Float[Tensor, "*b"]:
    """KL(p || q) in nats, summed over the last dimension."""
    if kl.fuses(p.mean):
        return kl.GaussianKL.apply(*p, *q)
    ratio = (p.std / q.std).square()
    distance = ((p.mean - q.mean) / q.std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


class Unseen(NamedTuple):
    """The weights for the inference of a sequence, made on a stream of their own: see `RSSM.before_images`."""

    aside: Aside
    deter_weight: Float[Tensor, "hidden D"]  # of the posterior's first layer
    embed_weight: Float[Tensor, "hidden E"]
    cell: Cell | None  # with kernels, like the rest
    box: list[Any]  # where the gradients of the cell are left, see `Deferred`
    products: Any  # see `kernels.cell.products`


class RSSM(nn.Module):
    """One-step functions with and without an image, and the sequence functions that scan them.

    Alignment everywhere: action[t] led into image[t], and is_first[t] marks an episode's first image, before which
    there is neither state nor action. With `kernels`, sequences have their own backward pass (`cell.py`); else they use
    autograd, the reference. `bf16` is for kernels on a GPU: products of bf16 numbers, summed in fp32.
    """

    def __init__(
        self,
        action_dim: int,
        embed: int,
        deter: int = 200,
        stoch: int = 30,
        hidden: int = 200,
        min_std: float = 0.1,
        kernels: bool = True,
        bf16: bool = False,
    ):
        super().__init__()
        self.deter, self.stoch, self.min_std = deter, stoch, min_std
        self.kernels, self.bf16 = kernels, bf16
        self.state_dim = deter + stoch
        self.input = nn.Linear(stoch + action_dim, hidden)
        self.cell = nn.GRUCell(hidden, deter)
        self.prior_hidden = nn.Linear(deter, hidden)
        self.prior_out = nn.Linear(hidden, 2 * stoch)
        self.posterior_hidden = nn.Linear(deter + embed, hidden)
        self.posterior_out = nn.Linear(hidden, 2 * stoch)

    def initial(self, batch: int) -> Float[Tensor, "B S"]:
        """The state before an episode's first image: zeros."""
        return self.input.weight.new_zeros(batch, self.state_dim)

    def prior_step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """Imagine one step: sample the next state from the prior. `noise` is standard normal, drawn here if None."""
        rows = self._recur(state.reshape(-1, self.state_dim), action.reshape(-1, action.shape[-1]))
        deter = rows.view(*state.shape[:-1], self.deter)
        prior = self.prior(deter)
        noise = torch.randn_like(prior.mean) if noise is None else noise
        return torch.cat([deter, prior.mean + prior.std * noise], dim=-1)

    def posterior_step(
        self,
        state: Float[Tensor, "B S"],
        action: Float[Tensor, "B A"],
        embed: Float[Tensor, "B E"],
        is_first: Bool[Tensor, " B"],
        noise: Float[Tensor, "B Z"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """Observe one image: the posterior's sample after `action` led from `state` into the image."""
        noise = None if noise is None else noise[None]
        return self.observe(embed[None], action[None], is_first[None], state, noise)[0][0]

    def observe(
        self,
        embed: Float[Tensor, "T B E"],
        action: Float[Tensor, "T B A"],
        is_first: Bool[Tensor, "T B"],
        state: Float[Tensor, "B S"] | None = None,
        noise: Float[Tensor, "T B Z"] | None = None,
        unseen: Unseen | None = None,
    ) -> tuple[Float[Tensor, "T B S"], Gaussian]:
        """Infer states over a sequence: samples [T, B, S] and the posterior [T, B, stoch].

        `unseen` is what `before_images` gave; later work here waits for it.
        """
        aside, deter_weight, embed_weight, cell, box, ready = self.before_images() if unseen is None else unseen
        state = self.initial(embed.shape[1]) if state is None else state
        keep = (~is_first)[..., None].to(action.dtype)  # [T, B, 1]
        action = action * keep
        if noise is None:
            noise = torch.randn(*embed.shape[:2], self.stoch, device=embed.device, dtype=action.dtype)
        aside.join(*(() if ready is None else pytree.tree_leaves(ready)))
        images = self._seen(embed, embed_weight, action.dtype)  # not recurrent: one product for all steps
        if cell is not None:
            settings = (keep[..., 0], self.min_std, self.bf16, box, ready)
            deter, stoch, stats = Observe.apply(state, action, images, noise, *settings, *cell)
            return torch.cat([deter, stoch], dim=-1), self._gaussian(stats)
        deters, stochs, posteriors = [], [], []
        for t in range(len(images)):
            deter = self._recur(state * keep[t], action[t])
            hidden = F.elu(torch.addmm(images[t], deter, deter_weight.t()))
            posterior = self._gaussian(self.posterior_out(hidden))
            stoch = posterior.mean + posterior.std * noise[t]
            state = torch.cat([deter, stoch], dim=-1)
            deters.append(deter)
            stochs.append(stoch)
            posteriors.append(posterior)
        mean, std = (torch.stack(part) for part in zip(*posteriors, strict=True))
        return torch.cat([torch.stack(deters), torch.stack(stochs)], dim=-1), Gaussian(mean, std)

    def before_images(self) -> Unseen:
        """What `observe` needs of weights, on a GPU on a stream of its own, where their gradients are computed too.

        So what goes on before the scan need not wait for these.
        """
        weight = self.posterior_hidden.weight
        aside, box, cell, ready = Aside(weight.device, "weights"), [], None, None
        with aside:
            deter_weight, embed_weight = weight.split([self.deter, weight.shape[1] - self.deter], dim=1)
            if self.kernels:
                cell = Cell(*Deferred.apply(box, *self._cell(deter_weight, self.posterior_out)))
                ready = products(cell, self.bf16)
        return Unseen(aside, deter_weight, embed_weight, cell, box, ready)

    def _seen(
        self, embed: Float[Tensor, "T B E"], weight: Float[Tensor, "X E"], dtype: torch.dtype
    ) -> Float[Tensor, "T B X"]:
        bias = self.posterior_hidden.bias
        if not (self.kernels and self.bf16):
            return F.linear(embed.to(dtype), weight, bias)
        with torch.autocast(embed.device.type, dtype=torch.bfloat16):
            return bias + F.linear(embed, weight)  # the sum is fp32

    @torch.no_grad()
    def unroll(
        self,
        state: Float[Tensor, "M S"],
        action: Float[Tensor, "T M A"] | Acting,
        noise: Float[Tensor, "T M Z"],
        save: bool,
    ) -> tuple[Float[Tensor, "T M A"], Trace]:
        """`prior_step` for each action in turn, or with the policy in the loop: the actions taken, and the trace.

        `save` keeps the tensors that `differentiable_states` needs.
        """
        cell, bias = self._prior_cell(), self.prior_hidden.bias
        return unroll(cell, state, action, bias, noise, None, self.min_std, save, self.bf16)

    def differentiable_states(
        self,
        state: Float[Tensor, "M S"],
        action: Float[Tensor, "T M A"],
        noise: Float[Tensor, "T M Z"],
        trace: Trace,
        rounded: bool = False,
    ) -> Float[Tensor, "T M P"]:
        """The states of a saved `trace`, differentiable in state and actions; the weights are constants.

        `rounded`: in bf16 for products, see `kernels.cell.joined_states`.
        """
        return Rollout.apply(state, action, noise, self._prior_cell(), trace, self.bf16, rounded)

    def _prior_cell(self) -> Cell:
        return self._cell(self.prior_hidden.weight, self.prior_out)

    def _cell(self, w_hidden: Float[Tensor, "X D"], out: nn.Linear) -> Cell:
        gru = self.cell
        return Cell(
            self.input.weight, self.input.bias, gru.weight_ih, gru.bias_ih, gru.weight_hh, gru.bias_hh, w_hidden,
            out.weight, out.bias,
        )  # fmt: skip

    def prior(self, deter: Float[Tensor, "*b D"]) -> Gaussian:
        """p(stoch | deter), before the image is seen."""
        return self._gaussian(self.prior_out(F.elu(self.prior_hidden(deter))))

    def _recur(self, state: Float[Tensor, "M S"], action: Float[Tensor, "M A"]) -> Float[Tensor, "M D"]:
        deter, stoch = state.split([self.deter, self.stoch], dim=-1)
        return self.cell(F.elu(self.input(torch.cat([stoch, action], dim=-1))), deter)

    def _gaussian(self, stats: Float[Tensor, "*b stats"]) -> Gaussian:
        mean, std = stats.chunk(2, dim=-1)
        return Gaussian(mean, F.softplus(std) + self.min_std)
