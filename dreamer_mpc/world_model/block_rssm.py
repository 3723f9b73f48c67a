"""DreamerV3's recurrent state-space model (Hafner et al. 2023): a GRU in blocks and categorical stochastic states.

A state is cat(deter, stoch), [*, S], where stoch are K one-hot vectors of C classes, flattened: S = deter + K * C.
Distributions of stoch are tensors of log-probabilities [*, K, C].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels import block_cell
from dreamer_mpc.kernels.block_cell import BlockWeights
from dreamer_mpc.kernels.block_scan import Ready, ready, scan
from dreamer_mpc.kernels.block_walk import (
    ActionWeights,
    Prepared,
    PriorWeights,
    Walk,
    WalkBack,
    WalkWeights,
    walk,
    walk_weights,
)
from dreamer_mpc.kernels.blocks import product_dtype
from dreamer_mpc.kernels.deferred import Deferred, Linear
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.kernels.norm import fuses
from dreamer_mpc.networks.block_linear import BlockLinear
from dreamer_mpc.networks.mlp import full_precision
from dreamer_mpc.networks.norm_mlp import NORM_EPS, NormLayer, NormMLP, norm_linear, norm_silu

FARTHEST = 10.0  # standard deviations; beyond 13, Gumbel noise in float32 is infinite


def mixed_log_probs(logits: Float[Tensor, "*b K C"], unimix: float) -> Float[Tensor, "*b K C"]:
    """Log-probabilities of softmax(logits), mixed with a share `unimix` of the uniform distribution."""
    if unimix == 0:
        return F.log_softmax(logits, dim=-1)
    return torch.log((1 - unimix) * F.softmax(logits, dim=-1) + unimix / logits.shape[-1])


def categorical_kl(p: Float[Tensor, "*b K C"], q: Float[Tensor, "*b K C"]) -> Float[Tensor, "*b"]:
    """KL(p || q) in nats of log-probabilities, summed over the K variables."""
    return (p.exp() * (p - q)).sum(dim=(-2, -1))


@torch.no_grad()
def gumbel(noise: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Standard normal draws to Gumbel draws, number by number: -log(-log Phi(x)), x cut at 10 standard deviations."""
    if fuses(noise):
        return block_cell.kernels.gumbel(noise, FARTHEST)
    return -torch.log(-torch.special.log_ndtr(noise.clamp(-FARTHEST, FARTHEST)))


def sample(log_probs: Float[Tensor, "*b K C"], noise: Float[Tensor, "*b K C"]) -> Float[Tensor, "*b K C"]:
    """One-hot samples, argmax(log-probability + Gumbel noise), with straight-through gradients: those of the
    probabilities (Bengio et al. 2013)."""
    probs = log_probs.exp()
    best = (log_probs.detach() + noise).argmax(dim=-1, keepdim=True)
    one_hot = torch.zeros_like(probs).scatter_(-1, best, 1.0)
    return one_hot + (probs - probs.detach())


class Unseen(NamedTuple):
    """What the inference of a sequence needs beside its images and the state before: see `BlockRSSM.before_images`."""

    aside: Aside
    is_first: Bool[Tensor, "T B"]
    embed_weight: Float[Tensor, "hidden E"]  # of the posterior's first layer, in the precision of products
    embed_bias: Float[Tensor, " hidden"]
    embed_box: list[Any] | None  # where their gradients are computed in `aside`, see `Deferred`
    scan: Ready | None  # with kernels; without, the rest
    moved: Float[Tensor, "T B hidden"] | None = None  # the action's layer
    noise: Float[Tensor, "T B K C"] | None = None
    deter_weight: Float[Tensor, "hidden D"] | None = None


class BlockRSSM(nn.Module):
    """One-step functions with and without an image, and the sequence function that scans the first.

    Alignment everywhere: action[t] led into image[t], and is_first[t] marks an episode's first image, before which
    there is neither state nor action. Prior: 2 layers on deter; posterior: 1 layer on cat(deter, embed). `noise` is
    standard normal [*, K * C] and is turned into Gumbel noise, so that zeros give the most probable classes. With
    `kernels`, sequences have their own backward pass (`block_scan.py`); else they use autograd, the reference. `bf16`
    is for kernels on a GPU: products of bf16 numbers.
    """

    def __init__(
        self,
        action_dim: int,
        embed: int,
        deter: int = 2048,
        stoch: int = 32,
        classes: int = 16,
        hidden: int = 256,
        blocks: int = 8,
        unimix: float = 0.01,
        kernels: bool = True,
        bf16: bool = False,
    ):
        super().__init__()
        self.deter, self.stoch, self.classes = deter, stoch, classes
        self.kernels, self.bf16 = kernels, bf16
        self.blocks, self.unimix = blocks, unimix
        self.noise_dim = stoch * classes
        self.state_dim = deter + self.noise_dim
        own = deter // blocks
        self.deter_input = NormLayer(deter, hidden)
        self.stoch_input = NormLayer(self.noise_dim, hidden)
        self.action_input = NormLayer(action_dim, hidden)
        self.hidden = BlockLinear(blocks, own + 3 * hidden, own)
        self.hidden_norm = nn.RMSNorm(deter, eps=NORM_EPS)
        self.gates = BlockLinear(blocks, own, 3 * own)
        self.prior_logits = NormMLP(deter, hidden, 2, self.noise_dim)
        self.posterior_hidden = NormLayer(deter + embed, hidden)
        self.posterior_logits = norm_linear(hidden, self.noise_dim)

    def initial(self, batch: int) -> Float[Tensor, "B S"]:
        """The state before an episode's first image: zeros."""
        return self.hidden.weight.new_zeros(batch, self.state_dim)

    def prior_step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """Imagine one step: sample the next state from the prior. `noise` is drawn here if None."""
        rows = state.reshape(-1, self.state_dim)
        deter = self._recur(rows, self._see_action(action.reshape(-1, action.shape[-1])))
        noise = torch.randn_like(rows[:, : self.noise_dim]) if noise is None else noise.reshape(-1, self.noise_dim)
        stoch = sample(self.prior(deter), gumbel(self._by_variable(noise)))
        return torch.cat([deter, stoch.flatten(-2)], dim=-1).view(state.shape)

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
    ) -> tuple[Float[Tensor, "T B S"], Float[Tensor, "T B K C"]]:
        """Infer states over a sequence that begins after `state`: samples and posterior."""
        return self.scan(embed, self.before_images(action, is_first, noise), state)

    def scan(
        self, embed: Float[Tensor, "T B E"], unseen: Unseen, state: Float[Tensor, "B S"] | None = None
    ) -> tuple[Float[Tensor, "T B S"], Float[Tensor, "T B K C"]]:
        """`observe` with what is there before the images; later work here waits for that."""
        layer = unseen.embed_weight, unseen.embed_bias
        unseen.aside.join(*layer)
        if unseen.embed_box is None:
            images = F.linear(embed, *layer)
        else:
            images = Linear.apply(embed.to(layer[0].dtype), *layer, unseen.embed_box)
        state = self.initial(images.shape[1]) if state is None else state
        if unseen.scan is not None:
            deter, stoch = state.split([self.deter, self.noise_dim], dim=-1)
            with full_precision(state):  # it chooses the precision of its products itself
                found = scan(deter, stoch, images.to(state.dtype), self.unimix, NORM_EPS, unseen.scan)
            deter, stoch, posterior = found
            return torch.cat([deter, stoch], dim=-1), posterior
        states, posteriors, norm, is_first = [], [], self.posterior_hidden.norm, unseen.is_first
        for t in range(len(images)):
            deter = self._recur(torch.where(is_first[t, :, None], 0.0, state), unseen.moved[t])
            hidden = norm_silu(norm, images[t] + F.linear(deter, unseen.deter_weight))
            posterior = self._posterior(hidden)
            state = torch.cat([deter, sample(posterior, unseen.noise[t]).flatten(-2)], dim=-1)
            states.append(state)
            posteriors.append(posterior)
        return torch.stack(states), torch.stack(posteriors)

    def before_images(
        self,
        action: Float[Tensor, "T B A"],
        is_first: Bool[Tensor, "T B"],
        noise: Float[Tensor, "T B Z"] | None = None,
    ) -> Unseen:
        """What `observe` needs beside images and state, on a GPU on a stream of its own."""
        weight = self.posterior_hidden.linear.weight
        aside = Aside(weight.device, "weights")
        with aside:
            if noise is None:
                noise = torch.randn(*is_first.shape, self.noise_dim, device=weight.device, dtype=weight.dtype)
            noise = gumbel(self._by_variable(noise))  # [T, B, K, C]
            # What does not depend on the state is computed for all steps at once: the action's layer, and in `observe`
            # the product of the posterior's first layer with the embedding.
            moved = self._see_action(torch.where(is_first[..., None], 0.0, action))  # [T, B, hidden]
            deter_weight, embed_weight = weight.split([self.deter, weight.shape[1] - self.deter], dim=1)
            dtype = product_dtype(weight)
            box, embed = None, (embed_weight.to(dtype), self.posterior_hidden.linear.bias.to(dtype))
            if self.kernels and fuses(weight):
                box = []
                embed = Deferred.apply(box, *embed)
            if not self.kernels:
                return Unseen(aside, is_first, *embed, box, None, moved, noise, deter_weight)
            weights = self._weights(deter_weight)
            with full_precision(weight):
                scan = ready(moved.to(weight.dtype), noise, is_first, weights, self.bf16, aside)
        return Unseen(aside, is_first, *embed, box, scan)

    def _weights(self, deter_weight: Float[Tensor, "hidden D"]) -> BlockWeights:
        units = self.deter // self.blocks
        own, shared = self.hidden.weight[:, :units], self.hidden.weight[:, units:]
        deter, stoch = self.deter_input, self.stoch_input
        return BlockWeights(
            deter.linear.weight, deter.linear.bias, deter.norm.weight,
            stoch.linear.weight, stoch.linear.bias, stoch.norm.weight,
            own, shared.transpose(1, 2).flatten(0, 1), self.hidden.bias, self.hidden_norm.weight,
            self.gates.weight, self.gates.bias, deter_weight, self.posterior_hidden.norm.weight,
            self.posterior_logits.weight, self.posterior_logits.bias,
        )  # fmt: skip

    @torch.no_grad()
    def walk(
        self,
        state: Float[Tensor, "M S"],
        act: Callable[[int, Float[Tensor, "M S"]], Float[Tensor, "M A"]],
        noise: Float[Tensor, "T M Z"] | Prepared,
        save: bool,
        path: Float[Tensor, "T1 M S"] | None = None,
    ) -> tuple[Float[Tensor, "T M A"], Walk]:
        """T times `prior_step` with any rule `act(step, state)` in the loop: its actions in [-1, 1], and the walk.

        `save` keeps what `differentiable_states` needs. `path` is memory for the states, the one before included, which
        are given in its precision, to the rule too. `noise` may be `prepared`.
        """
        taken, kind = [], state.device.type
        outside = torch.is_autocast_enabled(kind)

        def acted(k: int, now: Float[Tensor, "M S"]) -> Float[Tensor, "M A"]:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=outside):
                taken.append(act(k, now))
            return taken[-1]

        deter, stoch = state.split([self.deter, self.noise_dim], dim=-1)
        prepared = noise if isinstance(noise, Prepared) else self.prepared(noise)
        with full_precision(state):  # the walk chooses the precision of its products itself
            walked = walk(deter, stoch, acted, self._moved, prepared, self.unimix, NORM_EPS, save, path)
        return torch.stack(taken).clamp(-1, 1), walked  # the action's layer brings them to the border by itself

    def prepared(self, noise: Float[Tensor, "T M Z"]) -> Prepared:
        """What a walk along standard normal draws needs but its start."""
        return Prepared(gumbel(self._by_variable(noise)), self._constants())

    def differentiable_states(
        self, state: Float[Tensor, "M S"], action: Float[Tensor, "T M A"], walked: Walk
    ) -> Float[Tensor, "T M S"]:
        """The states of a saved walk, differentiable in state and actions; the weights are constants."""
        deter, stoch = state.split([self.deter, self.noise_dim], dim=-1)
        moved, classes = self._moved(action).to(state.dtype), (self.stoch, self.classes)
        return WalkBack.apply(deter, stoch, moved, walked, self._constants(), classes, self.unimix, NORM_EPS)

    def _moved(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b hidden"]:
        """The action's layer as a walk computes it; without gradients one kernel on a GPU."""
        if fuses(action) and not torch.is_grad_enabled():
            linear, gain = self.action_input.linear, self.action_input.norm.weight
            rows, dtype = action.reshape(-1, action.shape[-1]), torch.bfloat16 if self.bf16 else linear.weight.dtype
            moved = block_cell.kernels.action_layer(rows, linear.weight, linear.bias, gain, NORM_EPS, dtype)
            return moved.view(*action.shape[:-1], -1)
        with torch.autocast(action.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self._see_action(action)

    @torch.no_grad()
    def _constants(self) -> WalkWeights:
        """The weights of a walk in the precision of products."""
        posterior = self.posterior_hidden.linear.weight[:, : self.deter]
        (first, second), last = self.prior_logits.hidden, self.prior_logits.last
        linear, norm = self.action_input.linear, self.action_input.norm
        action = ActionWeights(linear.weight, linear.bias, norm.weight)
        prior = PriorWeights(
            first.linear.weight, first.linear.bias, first.norm.weight,
            second.linear.weight, second.linear.bias, second.norm.weight, last.weight, last.bias,
        )  # fmt: skip
        return walk_weights(self._weights(posterior), prior, action, self.bf16)

    def prior(self, deter: Float[Tensor, "*b D"]) -> Float[Tensor, "*b K C"]:
        """p(stoch | deter), before the image is seen."""
        return mixed_log_probs(self._by_variable(self.prior_logits(deter)), self.unimix)

    def _posterior(self, hidden: Float[Tensor, "*b hidden"]) -> Float[Tensor, "*b K C"]:
        with full_precision(hidden):
            logits = self.posterior_logits(hidden.to(self.posterior_logits.weight.dtype))
        return mixed_log_probs(self._by_variable(logits), self.unimix)

    def _see_action(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b hidden"]:
        """The action's layer; an action outside [-1, 1] is brought to its border, with a gradient."""
        return self.action_input(action / action.detach().abs().clamp_min(1.0))

    def _recur(self, state: Float[Tensor, "M S"], moved: Float[Tensor, "M hidden"]) -> Float[Tensor, "M D"]:
        """The GRU: every block of deter sees itself and the layers of deter, stoch and action."""
        deter, stoch = state.split([self.deter, self.noise_dim], dim=-1)
        shared = torch.cat([self.deter_input(deter), self.stoch_input(stoch), moved], dim=-1)
        shared = shared[:, None].expand(-1, self.blocks, -1)  # [M, G, 3 * hidden]
        own = deter.to(shared.dtype).unflatten(-1, (self.blocks, -1))  # [M, G, D / G]
        x = norm_silu(self.hidden_norm, self.hidden(torch.cat([own, shared], dim=-1)).flatten(-2))
        gates = self.gates(x.unflatten(-1, (self.blocks, -1))).to(deter.dtype)
        reset, candidate, update = (gate.flatten(-2) for gate in gates.chunk(3, dim=-1))
        update = torch.sigmoid(update - 1)
        return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter

    def _by_variable(self, x: Float[Tensor, "*b Z"]) -> Float[Tensor, "*b K C"]:
        return x.unflatten(-1, (self.stoch, self.classes))
