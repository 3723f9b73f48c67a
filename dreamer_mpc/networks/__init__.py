"""Building blocks, actor and critic."""

from dreamer_mpc.networks.actor import Actor, TanhNormal
from dreamer_mpc.networks.critic import Critic
from dreamer_mpc.networks.mlp import MLP

__all__ = ["MLP", "Actor", "Critic", "TanhNormal"]
