"""Actor and critic, learned in latent imagination: their settings, and the interface of what trains them."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.kernels.graphs import Mark
from dreamer_mpc.util.checks import WIDEST, check_most, check_ranges
from dreamer_mpc.world_model import Batch

BehaviorKind = Literal["dreamer", "v3"]


@dataclass(frozen=True)
class BehaviorConfig:
    """Actor, critic and the returns they learn from."""

    kind: BehaviorKind = "dreamer"
    """dreamer: the actor follows gradients through the world model (paper); v3: the score function (REINFORCE), with
    two-hot value heads, a slow copy of them and values learned from replay too (DreamerV3)."""
    exploration: Literal["noise", "policy"] = "noise"
    """What is added to planned actions while collecting. noise: N(0, --train.action-noise) (paper); policy: noise of
    the policy's standard deviation in that state, so that the bare policy executes its own samples (v3)."""
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
    """Initial standard deviation of the actor, before the tanh (paper: 5); read only with kind dreamer."""
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
    own: one target per head, bootstrapped from that head's values, so that heads can disagree where the model errs.
    Read only with kind dreamer."""
    entropy_scale: float = 3e-4
    """Weight of the policy's entropy in the actor's loss (v3: 3e-4); read only with kind v3, like all below."""
    slow_rate: float = 0.02
    """Share of the way to the value heads that their slow copy goes in each update (v3: 0.02)."""
    slow_scale: float = 1.0
    """Weight of the slow copy's values as targets of the value heads, a regulariser (v3: 1)."""
    replay_scale: float = 0.3
    """Weight of the value loss on replayed sequences, whose gradient reaches the world model (v3: 0.3)."""
    return_rate: float = 0.01
    """Rate of the moving quantiles of returns, whose distance scales advantages (v3: 0.01)."""

    def __post_init__(self):
        check_ranges(
            self, discount=(0, 1), return_lambda=(0, 1), actor_layers=(1, None), actor_hidden=(1, None),
            actor_init_std=(1e-3, None), value_heads=(1, None), value_layers=(1, None), value_hidden=(1, None),
            bootstrap=(0, 1), horizon=(None, None), entropy_scale=(0, None), slow_rate=(0, 1), slow_scale=(0, None),
            replay_scale=(0, None), return_rate=(0, 1),
        )  # fmt: skip
        check_most(self, WIDEST, "actor_layers", "actor_hidden", "value_heads", "value_layers", "value_hidden")
        if self.horizon < 2:
            raise ValueError(f"horizon must be at least 2 (a return needs a next value), got {self.horizon}")


class Learned(NamedTuple):
    """What a batch says about actor and critic."""

    gradients: dict[str, tuple[Tensor, ...]]  # of "actor" and "critic", in the order of their parameters
    metrics: dict[str, Float[Tensor, ""]]
    states_gradient: Float[Tensor, "T B S"] | None = None  # of the loss in the batch's states, for the world model
    ready: Mark | None = None  # where `states_gradient` is there before the rest: the work to join for it


@runtime_checkable
class Behavior(Protocol):
    """Trains actor and critic of a model; `state_dict` is what it needs beside their weights to go on.

    `lane` names the stream of `learn` on a GPU, see `kernels.graphs.Aside`.
    """

    lane: str

    def prepare(self, batch: Batch) -> Any:
        """What `learn` needs and what does not depend on the batch's states; None if there is nothing."""

    def learn(self, states: Float[Tensor, "T B S"], batch: Batch, prepared: Any = None) -> Learned:
        """Gradients from imagination that starts in the inferred `states` of a batch."""

    def commit(self, skipped: Bool[Tensor, ""]) -> None:
        """After the optimizers' step, which changed nothing where `skipped`; does not wait for the device."""

    def state_dict(self) -> dict[str, Any]:
        """Empty where there is nothing but the weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, after the weights; {} for a checkpoint without it."""
