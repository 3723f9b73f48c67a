"""Settings of the world models."""

from dataclasses import dataclass
from typing import Literal

from dreamer_mpc.networks.two_hot import Readout
from dreamer_mpc.util.checks import WIDEST, check_kinds, check_most, check_ranges
from dreamer_mpc.world_model.protocol import WorldModelKind

Downsampling = Literal["max-pool", "strided"]
Representation = Literal["decoder", "barlow"]


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and loss of the world model. Where a setting is read by one kind alone, its description begins with it."""

    kind: WorldModelKind = "gaussian"
    """gaussian: the paper's RSSM; categorical: DreamerV3's, with a block GRU and categorical states."""
    continuation: bool = False
    """Predict whether an episode goes on after a state (v3: true; the paper: false). Imagination, J and the critic's
    targets then stop where it ends."""
    deter: int = 200
    """Size of the deterministic (GRU) part of the state (paper: 200)."""
    stoch: int = 30
    """Size of the stochastic (Gaussian) part of the state (paper: 30); categorical: number of variables (v3: 32)."""
    classes: int = 16
    """Categorical: classes of each stochastic variable (v3, 12M: 16)."""
    blocks: int = 8
    """Categorical: blocks of the GRU and of the decoder's first layer, which divide deter (v3: 8)."""
    unimix: float = 0.01
    """Categorical: the share of the uniform distribution in every probability of prior and posterior (v3: 0.01)."""
    hidden: int = 200
    """Hidden size of the RSSM's layers (paper: 200; v3, 12M: 256)."""
    min_std: float = 0.1
    """Gaussian: smallest standard deviation of prior and posterior (paper: 0.1)."""
    encoder_channels: tuple[int, int, int, int] = (32, 64, 128, 256)
    """Channels of the encoder's four convolutions (paper: 32 64 128 256; v3, 12M: 32 48 64 64)."""
    downsampling: Downsampling = "max-pool"
    """Categorical: how the encoder halves its maps. max-pool (v3): pooling after each convolution; strided:
    convolutions of stride 2, a quarter of the work."""
    decoder_dense: int = 1024
    """Size of the decoder's dense layer (paper: 1024); categorical: of its first map, 4x4 pixels (v3, 12M: 1024)."""
    decoder_channels: tuple[int, int, int] = (128, 64, 32)
    """Channels of the decoder's first three convolutions, the paper's transposed (paper: 128 64 32; v3, 12M:
    64 48 32)."""
    reward_layers: int = 2
    """Hidden layers of the reward head (paper: 2; v3: 1), and of the continue head."""
    reward_hidden: int = 200
    """Hidden size of the reward head (paper: 200; v3, 12M: 256), and of the continue head."""
    reward_readout: Readout = "real"
    """Categorical: how a reward is read from its bins. real (v3): their expectation; symlog: the expectation in symlog
    space, whose gradient the outermost bins cannot dominate."""
    free_nats: float = 3.0
    """Free nats of the KL: below this it is not penalised (paper: 3); categorical: of each of its two terms (v3: 1)."""
    image_scale: float = 1.0
    """Weight of half the squared error of the image, the log-likelihood that the paper's Table 18 names. Its base code
    defaults to the whole squared error: 2, as in the preset paper-base-loss. Categorical: of the whole squared error
    (v3: 1)."""
    reward_scale: float = 1.0
    """Weight of half the squared error of the reward, likewise; the paper's base code: 2. Categorical: of the
    cross-entropy (v3: 1)."""
    continue_scale: float = 1.0
    """Weight of the cross-entropy of the continuation, where it is predicted (v3: 1)."""
    kl_scale: float = 1.0
    """Gaussian: weight of max(KL, free nats); also 1 in the paper's base code, where the squared errors have twice our
    weight."""
    dyn_scale: float = 1.0
    """Categorical: weight of the KL that trains the prior towards the posterior (v3: 1)."""
    rep_scale: float = 0.1
    """Categorical: weight of the KL that trains the posterior towards the prior (v3: 0.1)."""
    representation: Representation = "decoder"
    """Categorical: what the states learn of the images from. decoder (v3): from reconstructing them; barlow
    (R2-Dreamer): from the correlation of states and embeddings, where the decoder learns only to show pictures."""
    barlow_scale: float = 0.05
    """Categorical: weight of the Barlow Twins loss of the representation barlow (R2-Dreamer: 0.05)."""
    barlow_lambda: float = 5e-4
    """Categorical: weight, in that loss, of the correlations that are to vanish (R2-Dreamer: 5e-4)."""

    def __post_init__(self):
        check_kinds(self)
        sizes = ("deter", "stoch", "hidden", "classes", "encoder_channels", "decoder_dense", "decoder_channels")
        sizes += ("blocks", "reward_hidden", "reward_layers")
        check_ranges(self, **dict.fromkeys(sizes, (1, None)), unimix=(0, 1))
        check_most(self, WIDEST, *sizes)
        scales = ("min_std", "free_nats", "image_scale", "reward_scale", "continue_scale", "kl_scale")
        scales += ("dyn_scale", "rep_scale", "barlow_scale", "barlow_lambda")
        check_ranges(self, **dict.fromkeys(scales, (0, None)))
        if self.kind == "categorical":
            self._check_blocks()
        elif self.representation != "decoder":
            raise ValueError(f"representation {self.representation} needs kind categorical, got {self.kind}")

    def _check_blocks(self):
        """ValueError unless the block-linear layers' sizes are multiples of `blocks`."""
        if self.deter % self.blocks:
            raise ValueError(f"deter must be divisible by blocks, got deter {self.deter} and blocks {self.blocks}")
        if self.decoder_dense % (16 * self.blocks):  # 4x4 pixels
            sizes = f"decoder_dense {self.decoder_dense} and blocks {self.blocks}"
            raise ValueError(f"decoder_dense must be divisible by 16 * blocks, got {sizes}")
