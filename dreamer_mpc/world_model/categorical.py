"""DreamerV3's world model: encoder, RSSM with categorical states, decoder and heads, and their loss."""

import contextlib
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from dreamer_mpc.networks.heads import Prediction
from dreamer_mpc.networks.mlp import full_precision
from dreamer_mpc.networks.norm_mlp import NormMLP, init_weight
from dreamer_mpc.networks.two_hot import TwoHot, symexp_bins
from dreamer_mpc.world_model.base import WorldModelBase, weighed
from dreamer_mpc.world_model.block_rssm import BlockRSSM, categorical_kl
from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.norm_decoder import NormDecoder
from dreamer_mpc.world_model.norm_encoder import NormEncoder
from dreamer_mpc.world_model.protocol import Batch, ImageForm, WorldModelKind


class Inference(NamedTuple):
    """The inference of the world model on a batch; the posterior is log-probabilities."""

    embed: Float[Tensor, "T B E"]
    states: Float[Tensor, "T B S"]
    posterior: Float[Tensor, "T B K C"]


class CategoricalWorldModel(WorldModelBase):
    """Encoder, RSSM with categorical states, decoder, reward and continue head of DreamerV3 (Hafner et al. 2023).

    See `WorldModelProtocol`. With `kernels`, sequences are inferred by `kernels/block_scan.py`. With `bf16`, `step`
    multiplies in bf16, as the other functions do under their `amp`; norms, gates, distributions and losses are in the
    parameters' precision always. With `config.representation` "barlow" (R2-Dreamer), the images train encoder and RSSM
    by `barlow_loss` in place of the reconstruction.
    """

    kind: ClassVar[WorldModelKind] = "categorical"
    bins: Float[Tensor, " N"]  # of the reward head

    def __init__(
        self,
        config: WorldModelConfig,
        action_dim: int,
        kernels: bool = True,
        bf16: bool = False,
        images: ImageForm = ImageForm(),
    ):
        super().__init__(config, images)
        self.bf16 = bf16
        self.encoder = NormEncoder(config.encoder_channels, config.downsampling, images)
        self.rssm = BlockRSSM(
            action_dim, self.encoder.outputs, config.deter, config.stoch, config.classes, config.hidden, config.blocks,
            config.unimix, kernels, bf16,
        )  # fmt: skip
        width = 2 * config.hidden
        self.decoder = NormDecoder(
            config.deter, self.noise_dim, width, config.blocks, config.decoder_dense, config.decoder_channels, images
        )
        head = (self.state_dim, config.reward_hidden, config.reward_layers)
        self.register_buffer("bins", symexp_bins(), persistent=False)
        self.reward_head = NormMLP(*head, len(self.bins), scale=0.0, filled=True)
        if config.continuation:
            self.continue_head = NormMLP(*head, 1)
        if config.representation == "barlow":
            self.projector = nn.Linear(self.state_dim, self.encoder.outputs, bias=False)
            init_weight(self.projector.weight, self.state_dim)

    @property
    def noise_dim(self) -> int:
        """Z, the size of the noise of one step: stoch * classes, one for each class."""
        return self.rssm.noise_dim

    def observe_step(
        self,
        state: Float[Tensor, "B S"],
        action: Float[Tensor, "B A"],
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        amp: torch.autocast,
        noise: Float[Tensor, "B Z"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """The posterior's sample after `action` led from `state` to `image`."""
        with amp:
            return self.rssm.posterior_step(state, action, self.encode(image), is_first, noise)

    def step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """One sample of the prior; with `noise` zero its mode, which takes the place of a mean."""
        kind = state.device.type
        with torch.autocast(kind, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return self.rssm.prior_step(state, action, noise)

    def predict_reward(self, state: Float[Tensor, "*b S"]) -> Prediction:
        """The reward received on arriving in `state`."""
        return TwoHot(self.reward_head(state), self.bins, self.config.reward_readout)

    def encode(self, image: UInt8[Tensor, "*b H W C"]) -> Float[Tensor, "*b E"]:
        """Embed images."""
        return self.encoder(image)

    def decode(self, state: Float[Tensor, "*b S"]) -> UInt8[Tensor, "*b H W C"]:
        """Mean images of latent states."""
        return (self.decoder(state).movedim(-3, -1) * 255).round().to(torch.uint8)

    def infer(self, batch: Batch, amp: torch.autocast) -> Inference:
        """The posterior of a batch; see the protocol."""
        with amp:
            unseen = self.rssm.before_images(batch.action, batch.is_first)
            embed = self.encoder(batch.image)
            return Inference(embed, *self.rssm.scan(embed, unseen, batch.state))

    def loss(
        self, batch: Batch, inference: Inference, amp: torch.autocast
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """DreamerV3's loss of a batch (its Eq. 4 and 5): scalar, and mean of each term before its weight.

        image: squared error, summed over a frame; reward and continue: cross-entropies. A reward is scored at an
        episode's first image too, where replay has 0, as in DreamerV3's code. dyn and rep: the KL from posterior to
        prior with one of the two as a constant, each clipped below at the free nats of a frame; kl: unclipped.
        """
        embed, states, posterior = inference
        config, barlow = self.config, self.config.representation == "barlow"
        with amp:
            prior = self.rssm.prior(states[..., : self.rssm.deter])
            error = self.decoder.error(states.detach() if barlow else states, self._scaled(batch.image))
            reward = self.predict_reward(states)
            losses = {"image": error, "reward": reward.loss(batch.reward)}
            scales = {"image": config.image_scale, "reward": config.reward_scale}
            if self.continuation:
                losses["continue"] = self.predict_continue(states).loss((~batch.is_terminal).to(states.dtype))
                scales["continue"] = config.continue_scale
            if barlow:
                losses["barlow"] = barlow_loss(self.projector(states), embed.detach(), config.barlow_lambda)
                scales["barlow"] = config.barlow_scale
        dyn, rep = categorical_kl(posterior.detach(), prior), categorical_kl(posterior, prior.detach())
        losses |= {"dyn": dyn.clamp_min(config.free_nats), "rep": rep.clamp_min(config.free_nats)}
        scales |= {"dyn": config.dyn_scale, "rep": config.rep_scale}
        total, metrics = weighed(losses, scales)
        return total, metrics | {"kl": dyn.mean().detach()}

    def _scaled(self, image: UInt8[Tensor, "*b H W C"]) -> Float[Tensor, "*b C H W"]:
        """Pixels in [0, 1]."""
        return image.movedim(-1, -3).to(self.bins.dtype) / 255


def barlow_loss(x: Float[Tensor, "*b E"], y: Float[Tensor, "*b E"], weight: float) -> Float[Tensor, ""]:
    """Barlow Twins of two views (Zbontar et al. 2021, Eq. 1): their correlations over a batch, towards the identity.

    The distance of the diagonal from 1 is squared and summed, the rest, squared and summed, counts `weight` times.
    """
    with full_precision(x):
        x, y = (_standardise(view.flatten(0, -2)) for view in (x, y))
        correlation = x.T @ y / len(x)  # [E, E]
    same = correlation.diagonal()
    return (same - 1).square().sum() + weight * (correlation.square().sum() - same.square().sum())


def _standardise(x: Float[Tensor, "M E"]) -> Float[Tensor, "M E"]:
    """Every column with mean 0 and unbiased variance 1; a constant column becomes 0."""
    x = x.float() if x.dtype == torch.bfloat16 else x
    return (x - x.mean(0)) / (x.std(0) + 1e-8)
