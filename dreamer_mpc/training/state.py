"""What the training loop knows beside its counters: where its round stands, and what is due."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreamer_mpc.training.ratio import UpdateRatio


class MetricMeans:
    """Means of the metrics of several updates, summed on the device and read once."""

    def __init__(self):
        self._updates, self._names, self._total = 0, [], None

    def add(self, metrics: dict[str, Tensor]) -> None:
        self._names, values = list(metrics), torch.stack(list(metrics.values()))
        self._total = values if self._total is None else self._total + values
        self._updates += 1

    def read(self) -> dict[str, float]:
        """As they are logged; waits for the device."""
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
    """Where the loop of a run stands between two updates or steps."""

    seeding: bool = True  # the seed episodes are not over
    returns: list[float] = field(default_factory=list)  # of the seed episodes, or of this round's
    metrics: MetricMeans = field(default_factory=MetricMeans)  # of this round's updates
    round_end: int = 0  # env steps
    updates_left: int = 0  # to make before the next step: a round's, or with several environments the first round's
    ratio: UpdateRatio | None = None  # once the seed episodes are over
    evaluated_at: int = 0  # env steps
    evaluation_due: bool = False
    best_return: float | None = None  # mean return of the best evaluation
    finished: bool = False  # evaluated at its end
    terminates: bool = False  # an episode of this run was terminated, and the user told what that means

    def state_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name not in ("metrics", "ratio")}
        ratio = None if self.ratio is None else asdict(self.ratio)
        return plain | {"returns": list(self.returns), "metrics": self.metrics.state_dict(), "ratio": ratio}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "TrainingState":
        metrics = MetricMeans()
        metrics.load_state_dict(state["metrics"], device)
        ratio = None if state["ratio"] is None else UpdateRatio(**state["ratio"])
        return cls(**{**state, "metrics": metrics, "ratio": ratio, "returns": list(state["returns"])})
