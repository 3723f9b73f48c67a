"""The optimizers of an agent's parts."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from dreamer_mpc.agents.laprop import LaProp
from dreamer_mpc.util.checks import check_ranges


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer of world model, actor and critic."""

    kind: Literal["adam", "laprop"] = "adam"
    """adam: with a learning rate for each part, and gradients clipped by the norm of each part (paper); laprop: one
    learning rate, warm-up, and gradients clipped by the norm of each tensor relative to its weights (v3)."""
    world_model_lr: float = 1e-3
    """Learning rate of the world model (paper: 1e-3); read only with kind adam, like the next four."""
    actor_lr: float = 8e-5
    """Learning rate of the actor (paper: 8e-5)."""
    critic_lr: float = 8e-5
    """Learning rate of the critic (paper: 8e-5)."""
    eps: float = 1e-7
    """Adam's epsilon (paper: 1e-7)."""
    grad_clip: float = 100.0
    """Largest gradient norm of world model, actor and critic, each clipped alone (paper: 100)."""
    lr: float = 4e-5
    """Learning rate of all parts (v3: 4e-5); read only with kind laprop, like the next two."""
    relative_clip: float = 0.3
    """Largest norm of a tensor's gradient, relative to the norm of the tensor (v3: 0.3)."""
    warmup: int = 1000
    """Updates over which the learning rate rises from zero (v3: 1000)."""

    def __post_init__(self):
        rates = ("world_model_lr", "actor_lr", "critic_lr", "eps", "grad_clip", "lr", "warmup")
        check_ranges(self, **dict.fromkeys(rates, (0, None)), relative_clip=(1e-6, None))  # 0: a norm of 0 over 0


def make_optimizers(
    config: OptimizerConfig, parts: dict[str, nn.Module], device: torch.device
) -> dict[str, torch.optim.Optimizer]:
    """An optimizer for each of the `parts` world_model, actor and critic; each can be captured in a CUDA graph."""
    if config.kind == "laprop":
        settings = {"lr": config.lr, "clip": config.relative_clip, "warmup": config.warmup}
        return {name: LaProp(part.parameters(), **settings) for name, part in parts.items()}
    settings = {"eps": config.eps, "fused": True, "capturable": device.type == "cuda"}
    rates = {"world_model": config.world_model_lr, "actor": config.actor_lr, "critic": config.critic_lr}
    return {name: torch.optim.Adam(part.parameters(), lr=rates[name], **settings) for name, part in parts.items()}
