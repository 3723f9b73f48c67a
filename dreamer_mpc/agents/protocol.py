"""What collecting, training and evaluating need of an agent; any object with these members plugs in."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dreamer_mpc.planners import Planner, reset_memory
from dreamer_mpc.planners.protocol import LatentDynamics
from dreamer_mpc.world_model import Batch, WorldModelKind

AgentKind = Literal["dreamer", "planet"]


class Carry(NamedTuple):
    """What acting hands from one step to the next, for B environments."""

    state: Float[Tensor, "B S"]
    action: Float[Tensor, "B A"]  # the action that was executed last
    memory: Any  # the planner's

    def reset(self, done: Bool[Tensor, " B"]) -> "Carry":
        """Rows where an episode ended start over."""
        return self._replace(memory=reset_memory(self.memory, done))


class Act(NamedTuple):
    """One step of acting."""

    action: Float[Tensor, "B A"]  # to execute
    carry: Carry  # for the next call
    model_evaluations: int  # of the plan, per environment
    value: Float[Tensor, " B"]  # J of the plan


class SkippedUpdates(NamedTuple):
    """Updates that changed nothing, as a loss or gradient was not finite."""

    in_a_row: int  # up to the last update
    index: Int64[Tensor, "T B"] | None  # frames of replay of the first one since this was last asked; None: no such


@runtime_checkable
class Agent(Protocol):
    """Observes, plans and learns, for B environments at once, on one device.

    Which optimizers, targets and normalisers it has is its own affair: nobody sees them but in `state_dict`.
    """

    kind: AgentKind  # a checkpoint names both, so that what it holds is known before it is loaded
    world_model_kind: WorldModelKind
    device: torch.device
    model: LatentDynamics  # what planners see; its weights are `state_dict()["model"]`
    notes: tuple[str, ...]  # lines that a user should read before training, such as why a fast form does not fit

    def initial(self, batch: int) -> Carry:
        """What acting starts from."""

    def act(
        self,
        planner: Planner,
        carry: Carry,
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        action_noise: float = 0.0,
    ) -> Act:
        """Observe an image and plan; the action that is executed has noise of standard deviation `action_noise`.

        Where `is_first`, an episode starts and what was carried is forgotten.
        """

    def update(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Learn from a batch; metrics, which stay on the device. Means of them are logged as `train/NAME`.

        `skipped` is 1 where a loss or gradient was not finite and nothing was changed, else 0.
        """

    def skipped_updates(self) -> SkippedUpdates:
        """Updates that were skipped, since this was last asked; waits for the device."""

    def state_dict(self) -> dict[str, Any]:
        """All that acting and learning go on from: nested dicts and lists of tensors, numbers and strings."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, or its `model` alone: then learning starts afresh.

        RuntimeError, ValueError, KeyError, TypeError or AttributeError where it does not fit.
        """
