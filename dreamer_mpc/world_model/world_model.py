"""The world model: encoder, RSSM, decoder and reward head, and their loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dreamer_mpc.networks.mlp import MLP
from dreamer_mpc.util.checks import WIDEST, check_most, check_ranges
from dreamer_mpc.world_model.decoder import Decoder
from dreamer_mpc.world_model.encoder import Encoder, preprocess, to_image
from dreamer_mpc.world_model.rssm import RSSM, Gaussian, gaussian_kl


class SquaredError(torch.autograd.Function):
    """Half the squared distance of images [*, C, H, W] of any precision to fp32 targets: [*]. One pass each way."""

    @staticmethod
    def forward(ctx, image, target):
        error = image - target
        ctx.save_for_backward(error)
        ctx.dtype = image.dtype
        return 0.5 * torch.linalg.vector_norm(error.flatten(-3), dim=-1).square()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (error,) = ctx.saved_tensors
        return torch.mul(error, g[..., None, None, None], out=torch.empty_like(error, dtype=ctx.dtype)), None


class Batch(NamedTuple):
    """Sequences from replay. action[t] led into image[t]; reward[t] was paid on arriving there.

    is_terminal[t]: the environment ended its episode there, so that nothing follows; where one was cut short, or goes
    on, it is false.
    """

    image: UInt8[Tensor, "T B H W C"]
    action: Float[Tensor, "T B A"]
    reward: Float[Tensor, "T B"]
    is_first: Bool[Tensor, "T B"]
    is_terminal: Bool[Tensor, "T B"]
    index: Int64[Tensor, "T B"]  # the frame's place in replay, its identity for the bootstrap masks


class Inference(NamedTuple):
    """What a world model makes of a batch."""

    target: Float[Tensor, "T B C H W"]  # the images as the decoder is to give them
    states: Float[Tensor, "T B S"]
    posterior: Gaussian
    prior: Gaussian


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and loss of the world model."""

    deter: int = 200
    """Size of the deterministic (GRU) part of the state (paper: 200)."""
    stoch: int = 30
    """Size of the stochastic (Gaussian) part of the state (paper: 30)."""
    hidden: int = 200
    """Hidden size of the RSSM's layers (paper: 200)."""
    min_std: float = 0.1
    """Smallest standard deviation of prior and posterior (paper: 0.1)."""
    encoder_channels: tuple[int, int, int, int] = (32, 64, 128, 256)
    """Channels of the encoder's four convolutions (paper: 32 64 128 256)."""
    decoder_dense: int = 1024
    """Size of the decoder's dense layer (paper: 1024)."""
    decoder_channels: tuple[int, int, int] = (128, 64, 32)
    """Channels of the decoder's first three transposed convolutions (paper: 128 64 32)."""
    reward_layers: int = 2
    """Hidden layers of the reward head (paper: 2)."""
    reward_hidden: int = 200
    """Hidden size of the reward head (paper: 200)."""
    free_nats: float = 3.0
    """Nats of KL that cost nothing (paper: 3)."""
    image_scale: float = 1.0
    """Weight of half the squared error of the image, the log-likelihood that the paper's Table 18 names. Its base code
    defaults to the whole squared error: 2, as in the preset paper-base-loss."""
    reward_scale: float = 1.0
    """Weight of half the squared error of the reward, likewise; the paper's base code: 2."""
    kl_scale: float = 1.0
    """Weight of max(KL, free nats); 1 in the paper's base code too, but beside errors that weigh twice ours."""

    def __post_init__(self):
        sizes = ("deter", "stoch", "hidden", "encoder_channels", "decoder_dense", "decoder_channels", "reward_hidden")
        check_ranges(self, **dict.fromkeys(sizes, (1, None)), reward_layers=(1, None))
        check_most(self, WIDEST, *sizes, "reward_layers")
        scales = ("min_std", "free_nats", "image_scale", "reward_scale", "kl_scale")
        check_ranges(self, **dict.fromkeys(scales, (0, None)))


class WorldModel(nn.Module):
    """Encoder, RSSM, decoder and reward head (paper, Table 18)."""

    def __init__(self, config: WorldModelConfig, action_dim: int, kernels: bool = True, bf16: bool = False):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder_channels, kernels)
        self.rssm = RSSM(
            action_dim, self.encoder.outputs, config.deter, config.stoch, config.hidden, config.min_std, kernels, bf16
        )
        self.decoder = Decoder(self.rssm.state_dim, config.decoder_dense, config.decoder_channels, kernels)
        self.reward_head = MLP(self.rssm.state_dim, config.reward_hidden, config.reward_layers, 1)

    def reward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Mean of the reward received on arriving in `state`."""
        return self.reward_head(state).squeeze(-1)

    def encode(self, image: UInt8[Tensor, "*b H W C"]) -> Float[Tensor, "*b E"]:
        """Embed images for acting: no dequantisation noise."""
        return self.encoder(preprocess(image)).float()

    def decode(self, state: Float[Tensor, "*b S"]) -> UInt8[Tensor, "*b H W C"]:
        """Mean images of latent states."""
        return to_image(self.decoder(state).float())

    def infer(self, batch: Batch, amp: torch.autocast) -> Inference:
        """Posterior and prior of a batch; `amp` covers the convolutions."""
        target = preprocess(batch.image, dequantize=True)  # [T, B, C, H, W]
        with amp:
            embed = self.encoder(target)
        states, posterior, prior = self.rssm.observe(embed.to(batch.action.dtype), batch.action, batch.is_first)
        return Inference(target, states, posterior, prior)

    def loss(
        self, batch: Batch, inference: Inference, amp: torch.autocast
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Negative evidence lower bound of a batch (Dreamer, Eq. 10): scalar, and mean of each term.

        image and reward: unit-variance Gaussian log-likelihoods without their constants. A reward is scored only
        where one was paid, so not at an episode's first image. `amp` covers the convolutions; losses are in fp32.
        """
        target, states, posterior, prior = inference
        with amp:
            decoded = self.decoder(states)
        kl = gaussian_kl(posterior, prior)
        losses = {
            "image": SquaredError.apply(decoded, target),  # each [T, B]
            "reward": torch.where(batch.is_first, 0.0, 0.5 * (self.reward(states) - batch.reward).square()),
            "kl": kl.clamp_min(self.config.free_nats),
        }
        scales = {"image": self.config.image_scale, "reward": self.config.reward_scale, "kl": self.config.kl_scale}
        assert losses.keys() == scales.keys() and all(loss.shape == kl.shape for loss in losses.values())
        total = sum(scales[name] * losses[name].mean() for name in losses)
        metrics = {f"{name}_loss": loss.mean().detach() for name, loss in losses.items()}
        return total, metrics | {"kl": kl.mean().detach()}
