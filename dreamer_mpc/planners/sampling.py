"""Gaussians over action sequences and their refit to the best samples, for CEM and MPPI."""

import torch
from jaxtyping import Float
from torch import Tensor


def sample_actions(
    mean: Float[Tensor, "B 1 H A"], std: Float[Tensor, "B 1 H A"], samples: int
) -> Float[Tensor, "B N H A"]:
    """Independent Gaussian draws, clamped to [-1, 1]."""
    noise = torch.randn(len(mean), samples, *mean.shape[2:], dtype=mean.dtype, device=mean.device)
    return (mean + std * noise).clamp(-1, 1)


def select_elites(
    actions: Float[Tensor, "B N H A"], values: Float[Tensor, "B N"], elites: int
) -> tuple[Float[Tensor, "B E H A"], Float[Tensor, "B E"]]:
    """The sequences with the highest values, best first."""
    elite_values, index = values.topk(elites, dim=1)
    return actions.gather(1, index[:, :, None, None].expand(-1, -1, *actions.shape[2:])), elite_values


def refit(
    actions: Float[Tensor, "B E H A"], weights: Float[Tensor, "B E"]
) -> tuple[Float[Tensor, "B 1 H A"], Float[Tensor, "B 1 H A"]]:
    """Mean and standard deviation of `actions` under weights that sum to one (maximum likelihood)."""
    weights = weights[:, :, None, None]
    mean = (weights * actions).sum(1, keepdim=True)
    return mean, (weights * (actions - mean).square()).sum(1, keepdim=True).sqrt()


def softmax_weights(values: Float[Tensor, "B E"], temperature: float) -> Float[Tensor, "B E"]:
    """exp(temperature * value), normalised; values of -inf get weight 0, or equal weights if there are no others."""
    best = values.amax(dim=1, keepdim=True)
    gap = (values - best).clamp_min(torch.finfo(values.dtype).min)  # 0 for the best: products stay finite or -inf
    scaled = torch.where(values.isfinite(), temperature * gap, -torch.inf)
    return torch.softmax(torch.where(best.isfinite(), scaled, 0.0), dim=1)
