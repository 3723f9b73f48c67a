"""Encoder, latent dynamics and decoder."""

from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.gaussian import GaussianWorldModel
from dreamer_mpc.world_model.protocol import Batch, WorldModelKind, WorldModelProtocol

__all__ = ["Batch", "GaussianWorldModel", "WorldModelConfig", "WorldModelKind", "WorldModelProtocol"]
