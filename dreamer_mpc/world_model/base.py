"""What the two world models share: the size of a state, what the heads say of it, and the sum of a loss's terms."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamer_mpc.networks.heads import Bernoulli, Prediction
from dreamer_mpc.world_model.config import WorldModelConfig
from dreamer_mpc.world_model.protocol import ImageForm


class WorldModelBase(nn.Module):
    """A world model whose parts a subclass makes: `rssm`, `encoder`, `decoder` and heads; see `WorldModelProtocol`.

    The subclass has `noise_dim` and `predict_reward`; with `config.continuation` it makes `continue_head`, which gives
    the logit that the episode goes on.
    """

    rssm: nn.Module
    continue_head: nn.Module
    noise_dim: int

    def __init__(self, config: WorldModelConfig, images: ImageForm):
        super().__init__()
        self.images = images
        self.config = config

    @property
    def state_dim(self) -> int:
        """S, the size of a state: that of `deter` and `stoch` together."""
        return self.rssm.state_dim

    @property
    def continuation(self) -> bool:
        """Whether there is a continue head."""
        return self.config.continuation

    def initial(self, batch: int) -> Float[Tensor, "B S"]:
        """The state before an episode's first image: zeros."""
        return self.rssm.initial(batch)

    def noise(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b Z"]:
        """Standard normal draws for `step`."""
        return torch.randn_like(state[..., : self.noise_dim])

    def predict_reward(self, state: Float[Tensor, "*b S"]) -> Prediction:
        """The reward received on arriving in `state`."""
        raise NotImplementedError

    def reward(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Mean of the reward received on arriving in `state`."""
        return self.predict_reward(state).mean

    def predict_continue(self, state: Float[Tensor, "*b S"]) -> Prediction:
        """Whether the episode goes on after `state`; needs the continue head."""
        return Bernoulli(self.continue_head(state).squeeze(-1))

    def continues(self, state: Float[Tensor, "*b S"]) -> Float[Tensor, "*b"]:
        """Probability that the episode goes on after `state`; 1 without a continue head."""
        return self.predict_continue(state).mean if self.continuation else torch.ones_like(state[..., 0])


def weighed(
    losses: dict[str, Tensor], scales: dict[str, float]
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The sum of the means of a loss's terms, each by its weight; and each mean as `<name>_loss`, without gradient."""
    assert losses.keys() == scales.keys()
    total = sum(scales[name] * losses[name].mean() for name in losses)
    return total, {f"{name}_loss": loss.mean().detach() for name, loss in losses.items()}
