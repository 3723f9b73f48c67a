"""bad-model: does planning still beat the policy with a world model that is wrong, and where does it turn?"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.analysis.bench import POLICY, Bench
from dreamer_mpc.analysis.estimate import ALL, grouped, of_line, scoped, summarised
from dreamer_mpc.analysis.finite_differences import paired
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import SUFFIX, Line, Measure, name_of
from dreamer_mpc.config import AnalyzeConfig
from dreamer_mpc.evaluation.episodes import evaluate
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.planners import Plan, Planner
from dreamer_mpc.planners.protocol import LatentModel
from dreamer_mpc.planners.shooting import Shooting
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.errors import UserError

WORLD = "world_model."  # of the names of its weights
Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)  # equal by identity: an agent keeps a graph for each planner
class PlansIn:
    """A planner that imagines in another model than the agent's own."""

    planner: Planner
    model: LatentModel
    candidates: int = 1  # of the planner, by which the agent decides on threads

    def plan(self, model: LatentModel, state: Float[Tensor, "B S"], memory: Any = None) -> Plan:
        """The planner's plan in the other model; `model` is not used."""
        return self.planner.plan(self.model, state, memory)


@dataclass(frozen=True)
class BadModel(Measure):
    """Returns of planning in a model whose world model is not the agent's.

    What is wrong is the imagination of the planner alone: the step and the reward of a copy of the model. The agent
    still infers its state with its own world model, and the copy has its own actor and critic, so that the policy that
    is planned from, and that planning is compared with, plays the same episodes at every level.
    """

    usual: ClassVar[str] = "dream-mpc-default"
    ascents_alone: ClassVar[bool] = False
    reads_models: ClassVar[bool] = True
    caption: ClassVar[str] = (
        "differences of returns to the policy, paired by episode; turns at: the noise at which the mean difference "
        "first falls to 0"
    )

    models: dict[str, float | Weights]  # label -> level of noise, or another world model

    @classmethod
    def make(
        cls, config: AnalyzeConfig, subject: Subject, planners: dict[str, Planner], models: dict[str, Subject]
    ) -> "BadModel":
        """See `Measure.make`."""
        wrong: dict[str, float | Weights] = {f"noise {level:g}": level for level in config.levels}
        unfit = []
        for path, other in models.items():
            if not fits(other, subject):
                unfit.append(path)
            elif other.path != subject.path:
                label = f"model of {called(path)}"
                if label in wrong:
                    raise UserError(
                        f"--models {path}: another of them is called {called(path)}, too: plan with one of them at a "
                        "time, each with an --out of its own"
                    )
                wrong[label] = world_of(other)
        if unfit:
            print(f"left out, world models of other sizes than that of {subject.path}: {', '.join(unfit)}")
        return cls(planners, wrong)

    def settings(self) -> dict[str, Any]:
        """None: more models may be added to a folder."""
        return {}

    @property
    def parts(self) -> Sequence[str]:
        """The policy, and each planner in each model."""
        return ("policy", *(f"{name}, {model}" for name in self.planners for model in self.models))

    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """A row for each episode."""
        planner, model = POLICY, ""
        if part != "policy":
            name, model = part.split(", ", 1)
            planner = self.planners[name]
            candidates = planner.candidates if isinstance(planner, Shooting) else 1
            planner = PlansIn(planner, self._model(bench, model), candidates)
        result = evaluate(bench.agent, planner, bench.envs, count, seed)
        return [
            {"episode": row, "method": part.split(", ", 1)[0], "model": model, "return": float(total)}
            for row, total in enumerate(result.returns)
        ]

    def _model(self, bench: Bench, label: str) -> LatentModel:
        wrong = self.models[label]
        return with_world(bench.agent, wrong) if isinstance(wrong, dict) else perturbed(bench.agent, wrong)

    def summary(self, rows: list[Measured]) -> list[Line]:
        """Over all checkpoints, then each: means and paired differences in each model, and where the latter turn."""
        lines = summarised(scoped(paired(rows, "policy")), ("scope", "method", "model"), ("return", "difference"))
        curves = grouped(lines, "scope", "method")
        return [line | {"turns_at": turning_point(curves[line["scope"], line["method"]])} for line in lines]

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """A row for each planner and model."""
        return [
            {
                "planner": line["method"], "model": line["model"] or "–", "return": str(of_line(line, "return")),
                "difference to policy": str(of_line(line, "difference") or "–"),
                "turns at": "–" if line["turns_at"] is None else f"{line['turns_at']:.2g}",
            }
            for line in summary if line["scope"] == ALL
        ]  # fmt: skip

    def panels(self, summary: list[Line]) -> list[Panel]:
        """Differences by model, over all checkpoints and of each."""
        names = list(dict.fromkeys(line["model"] for line in summary if line["model"]))
        axes = {"xlabel": "world model that is planned in", "ylabel": "return minus the policy's"}
        every, each = (
            Panel(title, **axes, names=names, joined=False, reference=0.0)
            for title in ("all checkpoints that fit the model", "each checkpoint")
        )
        for line in summary:
            if line["model"]:
                panel, label = (every, line["method"]) if line["scope"] == ALL else (each, self._agent(line))
                panel.add(label, names.index(line["model"]), of_line(line, "difference"))
        return [every, each]

    def _agent(self, line: Line) -> str:
        """A checkpoint's label in the picture; with several planners, the planner too."""
        planner = "" if len(self.planners) == 1 else f", {line['method']}"
        return f"{name_of(line['scope'])}{planner}"


def perturbed(agent: Agent, level: float) -> LatentModel:
    """The agent's model with noise on every weight of its world model, of `level` times its tensor's rms.

    The same noise at each level, so that levels are one direction at several lengths.
    """
    model = copy.deepcopy(agent.model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.world_model.parameters():
            noise = torch.randn(weight.shape, generator=draw).to(weight)
            weight += level * weight.square().mean().sqrt() * noise
    return model


def with_world(agent: Agent, weights: Weights) -> LatentModel:
    """The agent's model with another world model, whose weights must have the shapes of its own."""
    model = copy.deepcopy(agent.model)
    model.world_model.load_state_dict(weights)
    return model


def world_of(subject: Subject) -> Weights:
    """The weights of an agent's world model."""
    weights = subject.checkpoint.agent["model"]
    return {name.removeprefix(WORLD): weight for name, weight in weights.items() if name.startswith(WORLD)}


def called(path: str) -> str:
    """The name of another agent: that of its run folder; and of the file, where one is named, as a run has several."""
    return f"{name_of(path)} {Path(path).stem}" if Path(path).suffix == SUFFIX else name_of(path)


def fits(other: Subject, subject: Subject) -> bool:
    """Whether the world model of `other` has the shapes of that of `subject`."""
    sizes = [{name: weight.shape for name, weight in world_of(each).items()} for each in (other, subject)]
    return sizes[0] == sizes[1] and other.trained.world_model.kind == subject.trained.world_model.kind


def turning_point(lines: list[Line]) -> float | None:
    """The noise at which the mean difference first falls from above to 0, on straight lines between levels."""
    levels = sorted(
        (float(line["model"].removeprefix("noise ")), line["difference"])
        for line in lines
        if line["model"].startswith("noise ") and line["difference"] is not None
    )
    for (low, above), (high, below) in zip(levels, levels[1:], strict=False):
        if above > 0 >= below:
            return low + (high - low) * above / (above - below)
    return None
