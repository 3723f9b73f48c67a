"""Encoder, latent dynamics and decoder."""

from dreamer_mpc.world_model.protocol import Batch, WorldModelKind, WorldModelProtocol
from dreamer_mpc.world_model.world_model import WorldModel, WorldModelConfig

__all__ = ["Batch", "WorldModel", "WorldModelConfig", "WorldModelKind", "WorldModelProtocol"]
