"""The state of the training loop apart from its counters."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreamer_mpc.training.schedule import Pace, Schedule
from dreamer_mpc.util.counters import Counters


class MetricMeans:
    """Means of the metrics of several updates, summed on the device and read once."""

    def __init__(self):
        self._updates, self._names, self._total = 0, [], None

    def add(self, metrics: dict[str, Tensor]) -> None:
        self._names, values = list(metrics), torch.stack(list(metrics.values()))
        self._total = values if self._total is None else self._total + values
        self._updates += 1

    def read(self) -> dict[str, float]:
        """The means for logging; waits for the device."""
        if self._total is None:
            return {}
        means = dict(zip(self._names, (self._total / self._updates).tolist(), strict=True))
        skipped = round(means.pop("skipped") * self._updates)
        return {f"train/{name}": value for name, value in means.items()} | {"train/skipped_updates": skipped}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "names": self._names, "total": self._total}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._updates, self._names, self._total = state["updates"], list(state["names"]), state["total"]
        if self._total is not None:
            self._total = self._total.to(device)


@dataclass
class TrainingState:
    """The state of a run's loop between two actions, apart from its counters."""

    schedule: Schedule
    returns: list[float] = field(default_factory=list)  # of the seed episodes, or of this round's
    seeds: int = 0  # seed episodes that were over when more of them were asked for
    metrics: MetricMeans = field(default_factory=MetricMeans)  # of this round's updates
    best_return: float | None = None  # mean return of the best evaluation
    terminates: bool = False  # an episode of this run was terminated, and the user was told what that means

    def resumed(self, counters: Counters, seed_episodes: int, can_update: bool) -> None:
        """Resume the run at `counters`, possibly with another schedule.

        Before any update, there are more seed episodes if more are asked for, or replay has no sequence for an update.
        """
        self.schedule.resumed(counters.env_steps)
        more = seed_episodes > counters.episodes or not can_update
        if not (self.schedule.seeding or counters.updates) and more:
            self.schedule.seeding, self.schedule.updates_left, self.seeds = True, 0, counters.episodes

    def state_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "schedule"}
        plain |= {"returns": list(self.returns), "metrics": self.metrics.state_dict()}
        return plain | self.schedule.state_dict()

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], pace: Pace, device: torch.device) -> "TrainingState":
        metrics, own = MetricMeans(), {name for name in cls.__dataclass_fields__ if name in state}
        metrics.load_state_dict(state["metrics"], device)
        schedule = Schedule.from_state_dict({name: state[name] for name in state.keys() - own}, pace)
        plain = {name: state[name] for name in own}
        return cls(schedule, **{**plain, "metrics": metrics, "returns": list(state["returns"])})
