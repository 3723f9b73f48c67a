"""Encoder, latent dynamics and decoder."""

from dreamer_mpc.world_model.categorical import CategoricalWorldModel
from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.gaussian import GaussianWorldModel
from dreamer_mpc.world_model.protocol import Batch, WorldModelKind, WorldModelProtocol

WORLD_MODELS = {"gaussian": GaussianWorldModel, "categorical": CategoricalWorldModel}


def make_world_model(config: WorldModelConfig, action_dim: int, kernels: bool, bf16: bool) -> WorldModelProtocol:
    """The world model of the kind that `config` names."""
    return WORLD_MODELS[config.kind](config, action_dim, kernels, bf16)


__all__ = [
    "WORLD_MODELS",
    "Batch",
    "CategoricalWorldModel",
    "GaussianWorldModel",
    "WorldModelConfig",
    "WorldModelKind",
    "WorldModelProtocol",
    "make_world_model",
]
