"""What a measure of `run.py analyze` is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from dreamer_mpc.analysis.bench import Bench
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.config import AnalyzeConfig, check_runs, planner_from, planner_names
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.planners import Ascent, Planner, Policy, make_planner
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.errors import UserError

POLICY, SUFFIX = "policy", ".safetensors"
Line = dict[str, Any]  # a row of summary.csv


@dataclass(frozen=True)
class Measure(ABC):
    """A measure of one checkpoint, with its settings. Each batch of episodes and each part of it is a unit of work."""

    usual: ClassVar[str]  # planners that are measured unless others are named
    ascents_alone: ClassVar[bool] = True  # whether all of them must climb J's gradient
    plays_itself: ClassVar[bool] = False  # whether it makes agent and environments on its own; `bench` is then None
    copies_states: ClassVar[bool] = False  # whether the environment must be `Restorable`
    reads_models: ClassVar[bool] = False  # whether the checkpoints of --models are loaded for it
    caption: ClassVar[str] = ""  # what the columns of the table are

    planners: dict[str, Planner]

    @classmethod
    @abstractmethod
    def make(
        cls, config: AnalyzeConfig, subject: Subject, planners: dict[str, Planner], models: dict[str, Subject]
    ) -> "Measure":
        """With the settings of the command, whose `out` is absolute; UserError where they do not fit.

        `models` has the checkpoints of --models by their names there, if the measure `reads_models`.
        """

    @property
    def parts(self) -> Sequence[str]:
        """Parts that can be measured apart from each other."""
        return ("",)

    def settings(self) -> dict[str, Any]:
        """What measurements depend on, apart from the planners."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "planners"}

    @abstractmethod
    def measure(self, bench: Bench | None, part: str, count: int, seed: int) -> list[Measured]:
        """Rows of a part, for `count` episodes from environment seed `seed`; `episode` counts from 0.

        All rows of a measure have the same columns. The caller adds `unit`, `checkpoint`, `task`, `group`, `env_seed`.
        """

    @abstractmethod
    def summary(self, rows: list[Measured]) -> list[Line]:
        """What the measurements of all checkpoints say."""

    @abstractmethod
    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """What of the summary is printed: a dict for each row, from title to cell."""

    @abstractmethod
    def panels(self, summary: list[Line]) -> list[Panel]:
        """What of the summary is drawn."""


def planners_of(config: AnalyzeConfig, kind: type[Measure], subject: Subject, first: Subject) -> dict[str, Planner]:
    """label -> planner, from --planners or the usual ones, with the discount that the subject was trained with.

    A discount that was given on the command line, so that it is not that of the `first` checkpoint, stays. The policy
    is its mode, as in the measures themselves; a measure that plays comparisons takes that of the settings.
    """
    config = config if kind.plays_itself else replace(config, policy=Policy())
    planners = {}
    for name in planner_names(config.planners or kind.usual):
        planner = planner_from(config, name)
        if kind.ascents_alone and not isinstance(planner, Ascent):
            raise UserError(f"--planners {name}: {config.what} measures planners that climb J's gradient: {kind.usual}")
        if isinstance(planner, Shooting) and planner.discount == planner_from(first.trained, name).discount:
            planner = replace(planner, discount=planner_from(subject.trained, name).discount)
        check_runs(name, planner, subject.trained, f"{subject.path} holds")
        planners[name] = planner
    check_runs(POLICY, make_planner(POLICY), subject.trained, f"{subject.path} holds")
    return planners


def visited(config: AnalyzeConfig) -> tuple[int, ...]:
    """The agent's steps at which states are visited."""
    return tuple(config.every * k for k in range(config.states))


def name_of(path: str | Path) -> str:
    """A short name of a checkpoint: that of its run folder."""
    path = Path(path)
    folder = path.parent if path.suffix == SUFFIX else path
    return folder.parent.name if folder.name == "checkpoints" else folder.name
