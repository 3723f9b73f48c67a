"""The policy network."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamer_mpc.kernels.policy import PolicyWeights, tanh_normal_mode
from dreamer_mpc.networks.mlp import MLP


class TanhNormal(NamedTuple):
    """tanh of a diagonal Gaussian: actions [*, A] in [-1, 1]. `mean` and `std` are those before the tanh."""

    mean: Tensor
    std: Tensor

    @property
    def mode(self) -> Float[Tensor, "*b A"]:
        """Where the density is highest."""
        return tanh_normal_mode(self.mean, self.std)

    def rsample(self) -> Float[Tensor, "*b A"]:
        """A reparameterised sample."""
        return torch.tanh(self.mean + self.std * torch.randn_like(self.mean))

    def around(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b A"]:
        """A sample with this spread around another `action` in place of the mean, in [-1, 1]."""
        edge = 1 - torch.finfo(action.dtype).eps
        return torch.tanh(torch.atanh(action.clamp(-edge, edge)) + self.std * torch.randn_like(self.std))

    def log_prob(self, action: Float[Tensor, "*b A"]) -> Float[Tensor, "*b"]:
        """Log-density of actions inside (-1, 1); those at a bound count as just inside it."""
        edge = 1 - torch.finfo(action.dtype).eps
        return self._log_prob_before(torch.atanh(action.clamp(-edge, edge)))

    def entropy(self) -> Float[Tensor, "*b"]:
        """Differential entropy, estimated from one reparameterised sample: it has no closed form."""
        return -self._log_prob_before(self.mean + self.std * torch.randn_like(self.mean))

    def _log_prob_before(self, x: Float[Tensor, "*b A"]) -> Float[Tensor, "*b"]:
        """Log-density of tanh(x). log(1 - tanh(x)^2) is written in a form that keeps its precision for large |x|."""
        normal = -0.5 * ((x - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return (normal - 2 * (math.log(2) - x - F.softplus(-2 * x))).sum(-1)


class Actor(nn.Module):
    """Tanh-Normal policy (Dreamer; paper, Table 18): mean scaled 5 tanh(. / 5), initial std 5."""

    def __init__(
        self,
        state: int,
        action_dim: int,
        layers: int = 4,
        hidden: int = 200,
        init_std: float = 5.0,
        min_std: float = 1e-4,
        mean_scale: float = 5.0,
    ):
        super().__init__()
        self.layers = MLP(state, hidden, layers, 2 * action_dim)
        self.raw_init_std = math.log(math.expm1(init_std))  # the softplus of this is init_std
        self.min_std, self.mean_scale = min_std, mean_scale

    def forward(self, state: Float[Tensor, "*b S"]) -> TanhNormal:
        return self.distribution(self.layers(state))

    def weights(self) -> PolicyWeights:
        """The layers' parameters and the constants, for code that runs the policy in its own loop."""
        weights, biases = zip(*((layer.weight, layer.bias) for layer in self.layers.linear), strict=True)
        return PolicyWeights(weights, biases, self.raw_init_std, self.min_std, self.mean_scale)

    def distribution(self, output: Float[Tensor, "*b A2"]) -> TanhNormal:
        """The distribution that the layers' output parameterises."""
        mean, std = output.chunk(2, dim=-1)
        mean = self.mean_scale * torch.tanh(mean / self.mean_scale)
        return TanhNormal(mean, F.softplus(std + self.raw_init_std) + self.min_std)
