"""Encoder, latent dynamics and decoder."""

from dreamer_mpc.world_model.categorical import CategoricalWorldModel
from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.gaussian import GaussianWorldModel
from dreamer_mpc.world_model.protocol import Batch, ImageForm, WorldModelKind, WorldModelProtocol

WORLD_MODELS = {"gaussian": GaussianWorldModel, "categorical": CategoricalWorldModel}


def make_world_model(
    config: WorldModelConfig, action_dim: int, kernels: bool, bf16: bool, images: ImageForm = ImageForm()
) -> WorldModelProtocol:
    """The world model of the kind that `config` names, for images of the form `images`."""
    return WORLD_MODELS[config.kind](config, action_dim, kernels, bf16, images)


__all__ = [
    "WORLD_MODELS",
    "Batch",
    "CategoricalWorldModel",
    "GaussianWorldModel",
    "ImageForm",
    "WorldModelConfig",
    "WorldModelKind",
    "WorldModelProtocol",
    "make_world_model",
]
