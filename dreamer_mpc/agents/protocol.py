"""The interface of an agent for collecting, training and evaluating; any object with these members can be used."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dreamer_mpc.planners import Planner, reset_memory
from dreamer_mpc.planners.protocol import LatentDynamics
from dreamer_mpc.world_model import Batch, WorldModelKind

AgentKind = Literal["dreamer", "planet"]


class Carry(NamedTuple):
    """What an agent carries from one step to the next, for B environments."""

    state: Float[Tensor, "B S"]
    action: Float[Tensor, "B A"]  # the action that was executed last
    memory: Any  # the planner's memory

    def reset(self, done: Bool[Tensor, " B"]) -> "Carry":
        """Reset the rows where an episode ended."""
        return self._replace(memory=reset_memory(self.memory, done))


class Act(NamedTuple):
    """One step of acting."""

    action: Float[Tensor, "B A"]  # to execute
    carry: Carry  # for the next call
    model_evaluations: int  # of the plan, per environment
    value: Float[Tensor, " B"]  # J of the plan


class SkippedUpdates(NamedTuple):
    """Updates that changed nothing, as a loss or gradient was not finite."""

    in_a_row: int  # consecutive skipped updates, up to the last update
    index: Int64[Tensor, "T B"] | None  # replay frames of the first skipped update since the last call; None: none


class Update(NamedTuple):
    """What an update gives; everything stays on the device."""

    metrics: dict[str, Float[Tensor, ""]]  # their means are logged as `train/NAME`
    states: Float[Tensor, "T B S"]  # the latent states of the batch's frames


@runtime_checkable
class Agent(Protocol):
    """Observes, plans and learns, for B environments at once, on one device.

    Its optimizers, target networks and normalisers are private; they appear only in `state_dict`.
    """

    kind: AgentKind  # a checkpoint stores both, so that its content is known before it is loaded
    world_model_kind: WorldModelKind
    device: torch.device
    state_dim: int  # S, of the latent states in `Carry` and `Update`
    model: LatentDynamics  # what planners see; its weights are `state_dict()["model"]`
    notes: tuple[str, ...]  # lines that a user should read before training, such as why a fast form does not fit

    def initial(self, batch: int) -> Carry:
        """The carry before the first step."""

    def act(
        self,
        planner: Planner,
        carry: Carry,
        image: UInt8[Tensor, "B H W C"],
        is_first: Bool[Tensor, " B"],
        action_noise: float = 0.0,
    ) -> Act:
        """Observe an image and plan; the action that is executed has noise of standard deviation `action_noise`.

        Where `is_first`, an episode starts and the carry of the last one is dropped.
        """

    def update(self, batch: Batch) -> Update:
        """Learn from a batch.

        The metric `skipped` is 1 where a loss or gradient was not finite and nothing was changed, else 0.
        """

    def skipped_updates(self) -> SkippedUpdates:
        """Updates that were skipped since the last call; waits for the device."""

    def state_dict(self) -> dict[str, Any]:
        """The state for acting and learning: nested dicts and lists of tensors, numbers and strings."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, or its `model` alone; in that case the optimizers start from their initial state.

        RuntimeError, ValueError, KeyError, TypeError or AttributeError where it does not fit.
        """
