"""Settings of the world models."""

from dataclasses import dataclass

from dreamer_mpc.util.checks import WIDEST, check_most, check_ranges
from dreamer_mpc.world_model.protocol import WorldModelKind


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and loss of the world model."""

    kind: WorldModelKind = "gaussian"
    """gaussian: the paper's RSSM; categorical: DreamerV3's, with a block GRU and categorical states."""
    continuation: bool = False
    """Predict whether an episode goes on after a state (v3: true; the paper: false). Imagination, J and the critic's
    targets then stop where it ends."""
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
    """Free nats of the KL: below this it is not penalised (paper: 3)."""
    image_scale: float = 1.0
    """Weight of half the squared error of the image, the log-likelihood that the paper's Table 18 names. Its base code
    defaults to the whole squared error: 2, as in the preset paper-base-loss."""
    reward_scale: float = 1.0
    """Weight of half the squared error of the reward, likewise; the paper's base code: 2."""
    kl_scale: float = 1.0
    """Weight of max(KL, free nats); also 1 in the paper's base code, where the squared errors have twice our weight."""

    def __post_init__(self):
        sizes = ("deter", "stoch", "hidden", "encoder_channels", "decoder_dense", "decoder_channels", "reward_hidden")
        check_ranges(self, **dict.fromkeys(sizes, (1, None)), reward_layers=(1, None))
        check_most(self, WIDEST, *sizes, "reward_layers")
        scales = ("min_std", "free_nats", "image_scale", "reward_scale", "kl_scale")
        check_ranges(self, **dict.fromkeys(scales, (0, None)))
