"""Actor and critic, learned in latent imagination."""

from dataclasses import dataclass
from typing import Literal

from dreamer_mpc.networks import Actor, Critic
from dreamer_mpc.util.checks import WIDEST, check_most, check_ranges


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor, critic and the returns they learn from."""

    horizon: int = 15
    """Steps of imagination (paper: 15)."""
    discount: float = 0.99
    """Discount per agent step (paper: 0.99)."""
    return_lambda: float = 0.95
    """Lambda of the lambda-return (paper: 0.95)."""
    actor_layers: int = 4
    """Hidden layers of the actor (paper: 4)."""
    actor_hidden: int = 200
    """Hidden size of the actor (paper: 200)."""
    actor_init_std: float = 5.0
    """Initial standard deviation of the actor, before the tanh (paper: 5)."""
    value_heads: int = 5
    """Value heads of the critic, K (paper: 5)."""
    value_layers: int = 3
    """Hidden layers of each value head (paper: 3)."""
    value_hidden: int = 200
    """Hidden size of each value head (paper: 200)."""
    bootstrap: float = 0.8
    """Share of the frames that each value head learns from (ours)."""
    head_targets: Literal["shared", "own"] = "shared"
    """Returns that the value heads are fitted to (ours). shared: one target, bootstrapped from the mean over heads;
    own: one target per head, bootstrapped from that head's values, so that heads can disagree where the model errs."""

    def __post_init__(self):
        check_ranges(
            self, discount=(0, 1), return_lambda=(0, 1), actor_layers=(1, None), actor_hidden=(1, None),
            actor_init_std=(1e-3, None), value_heads=(1, None), value_layers=(1, None), value_hidden=(1, None),
            bootstrap=(0, 1), horizon=(None, None),
        )  # fmt: skip
        check_most(self, WIDEST, "actor_layers", "actor_hidden", "value_heads", "value_layers", "value_hidden")
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2 (a return needs a next value), got {self.horizon}")


def make_behavior(config: BehaviorConfig, state: int, action_dim: int) -> tuple[Actor, Critic]:
    """Actor and critic for states of size `state`."""
    actor = Actor(state, action_dim, config.actor_layers, config.actor_hidden, init_std=config.actor_init_std)
    return actor, Critic(state, config.value_heads, config.value_layers, config.value_hidden, config.bootstrap)
