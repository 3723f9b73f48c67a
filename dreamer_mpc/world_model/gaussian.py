"""The paper's world model: encoder, RSSM with Gaussian states, decoder and heads, and their loss."""

import contextlib
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from dreamer_mpc.networks import MLP
from dreamer_mpc.networks.heads import Prediction, UnitNormal
from dreamer_mpc.world_model.base import WorldModelBase, weighed
from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.decoder import Decoder
from dreamer_mpc.world_model.encoder import Encoder, preprocess, to_image
from dreamer_mpc.world_model.protocol import Batch, ImageForm, WorldModelKind
from dreamer_mpc.world_model.rssm import RSSM, Gaussian, gaussian_kl


class Inference(NamedTuple):
    """The inference of the world model on a batch."""

    target: Float[Tensor, "T B C H W"]  # the images as targets of the decoder
    states: Float[Tensor, "T B S"]
    posterior: Gaussian


class GaussianWorldModel(WorldModelBase):
    """Encoder, RSSM with Gaussian states, decoder and reward head (paper, Table 18); see `WorldModelProtocol`.

    With `config.continuation`, one more head of the reward head's sizes predicts whether the episode goes on.
    """

    kind: ClassVar[WorldModelKind] = "gaussian"

    def __init__(
        self,
        config: WorldModelConfig,
        action_dim: int,
        kernels: bool = True,
        bf16: bool = False,
        images: ImageForm = ImageForm(),
    ):
        super().__init__(config, images)
        self.encoder = Encoder(config.encoder_channels, kernels, images)
        self.rssm = RSSM(
            action_dim, self.encoder.outputs, config.deter, config.stoch, config.hidden, config.min_std, kernels, bf16
        )
        self.decoder = Decoder(self.rssm.state_dim, config.decoder_dense, config.decoder_channels, kernels, images)
        self.reward_head = MLP(self.rssm.state_dim, config.reward_hidden, config.reward_layers, 1)
        if config.continuation:
            self.continue_head = MLP(self.rssm.state_dim, config.reward_hidden, config.reward_layers, 1)

    @property
    def noise_dim(self) -> int:
        """Z, the size of the noise of one step: stoch."""
        return self.rssm.stoch

    def observe_step(
        self,
        state: Float[Tensor, "B S"],
        action: Float[Tensor, "B A"],
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        amp: torch.autocast,
        noise: Float[Tensor, "B Z"] | None = None,
    ) -> Float[Tensor, "B S"]:
        """The posterior's sample after `action` led from `state` to `image`; `amp` covers the convolutions."""
        with amp:
            embed = self.encode(image)
        return self.rssm.posterior_step(state, action, embed, is_first, noise)

    def step(
        self, state: Float[Tensor, "*b S"], action: Float[Tensor, "*b A"], noise: Float[Tensor, "*b Z"] | None = None
    ) -> Float[Tensor, "*b S"]:
        """One sample of the prior."""
        return self.rssm.prior_step(state, action, noise)

    def predict_reward(self, state: Float[Tensor, "*b S"]) -> Prediction:
        """The reward received on arriving in `state`."""
        return UnitNormal(self.reward_head(state).squeeze(-1))

    def encode(self, image: UInt8[Tensor, "*b H W C"]) -> Float[Tensor, "*b E"]:
        """Embed images for acting: no dequantisation noise."""
        return self.encoder(preprocess(image)).float()

    def decode(self, state: Float[Tensor, "*b S"]) -> UInt8[Tensor, "*b H W C"]:
        """Mean images of latent states."""
        return to_image(self.decoder(state).float())

    def infer(self, batch: Batch, amp: torch.autocast) -> Inference:
        """The posterior of a batch; see the protocol. `amp` covers the convolutions."""
        weights = self.rssm.before_images()
        target = preprocess(batch.image, dequantize=True)  # [T, B, C, H, W]
        with amp:
            embed = self.encoder(target)
        return Inference(target, *self.rssm.observe(embed, batch.action, batch.is_first, batch.state, None, weights))

    def loss(
        self, batch: Batch, inference: Inference, amp: torch.autocast
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Negative evidence lower bound of a batch (Dreamer, Eq. 10): scalar, and mean of each term.

        image and reward: unit-variance Gaussian log-likelihoods without their constants. A reward is scored only
        where one was paid, so not at an episode's first image. continue, if predicted: the log-likelihood of whether a
        frame is not terminal, of weight 1. `amp` covers the convolutions and, with kernels, the heads; losses are fp32.
        """
        target, states, posterior = inference
        prior = self.rssm.prior(states[..., : self.rssm.deter])
        with amp:
            image = self.decoder.error(states, target)
        kl = gaussian_kl(posterior, prior)
        heads = amp if self.rssm.kernels else contextlib.nullcontext()  # the plain form is the reference
        with heads:
            losses = {
                "image": image,  # each [T, B]
                "reward": torch.where(batch.is_first, 0.0, self.predict_reward(states).loss(batch.reward)),
                "kl": kl.clamp_min(self.config.free_nats),
            }
            if self.continuation:
                losses["continue"] = self.predict_continue(states).loss((~batch.is_terminal).to(kl.dtype))
        scales = {"image": self.config.image_scale, "reward": self.config.reward_scale, "kl": self.config.kl_scale}
        if self.continuation:
            scales["continue"] = 1.0
        assert all(loss.shape == kl.shape for loss in losses.values())
        total, metrics = weighed(losses, scales)
        return total, metrics | {"kl": kl.mean().detach()}
