"""true-gain: what the ascent adds to a plan in the real environment, from copied states, against what J promised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.analysis.bench import POLICY, Bench, Visit
from dreamer_mpc.analysis.estimate import grouped, of_line, summarised
from dreamer_mpc.analysis.gradient_snr import policy_plan
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import Line, Measure, visited
from dreamer_mpc.planners import Ascent, Planner
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.device import preserved_rng

GAINS = {"promised": "J", "predicted": "return + value, predicted", "real": "return + value, real"}
QUANTITIES = (*GAINS, "real_rewards", "moved", "improved")
BINS = 5  # of the promise
LEAST_MOVE = 1e-6  # of an entry of the plan


@dataclass(frozen=True)
class TrueGain(Measure):
    """Policy's plan and refined plan, each executed from the same state of the simulator."""

    usual: ClassVar[str] = "dream-mpc-default,dream-mpc-paper"
    caption: ClassVar[str] = (
        "refined plan minus the policy's; moved: share of plans that the ascent changed; improved: share of those "
        "whose real return + value rose; realised: real gain over predicted gain"
    )
    copies_states: ClassVar[bool] = True

    steps: tuple[int, ...]
    draws: int

    @classmethod
    def make(cls, config: Any, subject: Any, planners: dict[str, Planner]) -> "TrueGain":
        """See `Measure.make`."""
        return cls(planners, visited(config), config.draws)

    @property
    def parts(self) -> Sequence[str]:
        """The planners."""
        return tuple(self.planners)

    @torch.no_grad()
    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """One row for each visited state."""
        rows = []
        for visit in bench.visit(POLICY, seed, self.steps, snapshots=True):
            gains = self._gains(bench, self.planners[part], visit, seed + visit.step)
            whole = gains.pop("whole")
            rows += [
                {"episode": row, "method": part, "step": visit.step}
                | {name: float(values[row]) for name, values in gains.items()}
                for row in np.flatnonzero(visit.alive & whole).tolist()
                if row < count
            ]
        return rows

    def _gains(self, bench: Bench, planner: Ascent, visit: Visit, seed: int) -> dict[str, Float[np.ndarray, " B"]]:
        model, ascended = bench.agent.model, planner.ascended
        with preserved_rng(bench.agent.device):
            torch.manual_seed(seed)
            start = policy_plan(planner, model, visit.state)
            refined = planner.plan(model, visit.state).actions[:, :ascended]
            plain = replace(planner, objective="return", uncertainty=0.0, habits=())
            promised, predicted = (
                self._judged(judge, model, visit.state, refined, seed)
                - self._judged(judge, model, visit.state, start, seed)
                for judge in (planner, plain)
            )
        before, after = (self._real(bench, planner, visit, plan, seed) for plan in (start, refined))
        moved = ((refined - start).abs().amax((1, 2)) > LEAST_MOVE).cpu().numpy()
        real = after[0] - before[0]
        return {
            "promised": promised.double().cpu().numpy(), "predicted": predicted.double().cpu().numpy(),
            "real": real, "real_rewards": after[1] - before[1], "moved": moved.astype(float),
            "improved": np.where(moved, real > 0, np.nan), "whole": before[2] & after[2],
        }  # fmt: skip

    def _judged(
        self, planner: Ascent, model: Any, state: Float[Tensor, "B S"], plan: Float[Tensor, "B h A"], seed: int
    ) -> Float[Tensor, " B"]:
        torch.manual_seed(seed)  # plans are judged on the same draws
        return planner.judge(model, state, plan, self.draws)[0].mean(1)

    def _real(
        self, bench: Bench, planner: Ascent, visit: Visit, plan: Float[Tensor, "B h A"], seed: int
    ) -> tuple[np.ndarray, ...]:
        """Return and value of a plan of `horizon` actions, the return alone, and where nothing cut it off."""
        bench.envs.go_to(visit.snapshots)
        answers = plan[:, -1:].expand(-1, planner.horizon - plan.shape[1], -1)  # the policy's, once it acts
        executed = bench.execute(visit.state, torch.cat([plan, answers], dim=1), plan.shape[1], seed)
        weights = planner.discount ** np.arange(planner.horizon)
        gains = executed.reward.copy()
        gains[:, -1] = bench.value(executed)[:, -1]  # it includes the last reward
        return (weights * gains).sum(1), (weights * executed.reward).sum(1), executed.whole

    def summary(self, rows: list[Measured]) -> list[Line]:
        """Means by method; and by the fifth of what was promised, among the plans of a method that moved."""
        means = summarised(rows, ("method",), QUANTITIES)
        for line in means:
            own = [row for row in rows if row["method"] == line["method"] and row["moved"]]
            line["realised"] = line["real"] / line["predicted"] if line["predicted"] else None
            line["correlation"] = correlation(own)
        binned = summarised(by_prediction(rows), ("method", "bin"), ("predicted", "real"))
        empty = dict.fromkeys(key for line in ({"part": ""}, *means, *binned) for key in line)
        return [empty | {"part": "means"} | line for line in means] + [
            empty | {"part": "predicted"} | line for line in binned
        ]

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """A row for each planner."""
        return [
            {"plans of": line["method"]}
            | {name: "–" if line[name] is None else str(of_line(line, name)) for name in ("moved", "improved", *GAINS)}
            | {name: "–" if line[name] is None else f"{line[name]:.2f}" for name in ("realised", "correlation")}
            for line in summary if line["part"] == "means"
        ]  # fmt: skip

    def panels(self, summary: list[Line]) -> list[Panel]:
        """Gains, shares, and the real gain by what was predicted."""
        gains = Panel("mean gain of a plan by the ascent", "", "gain, return units", names=tuple(GAINS), joined=False)
        shares = Panel(
            "how often", "", "share of plans", names=("moved", "improved, of those"), joined=False, reference=0.5
        )
        fifths = Panel("moved plans, by fifths of the prediction", "predicted gain, return units", "real gain",
                       diagonal=True)  # fmt: skip
        gains.reference = fifths.reference = 0.0
        for line in summary:
            if line["part"] == "means":
                for place, name in enumerate(GAINS):
                    gains.add(line["method"], place, of_line(line, name))
                for place, name in enumerate(("moved", "improved")):
                    shares.add(line["method"], place, of_line(line, name))
            else:
                fifths.add(line["method"], line["predicted"], of_line(line, "real"))
        return [gains, shares, fifths]


def correlation(rows: list[Measured]) -> float | None:
    """Correlation of predicted and real gain over the states of a checkpoint, mean over checkpoints."""
    found = []
    for own in grouped(rows, "checkpoint").values():
        pairs = np.array([(row["predicted"], row["real"]) for row in own])
        if len(pairs) > 2 and (pairs.std(0) > 0).all():
            found.append(np.corrcoef(pairs.T)[0, 1])
    return float(np.mean(found)) if found else None


def by_prediction(rows: list[Measured]) -> list[Measured]:
    """The plans that moved, with the fifth of the predicted gain among those of the same checkpoint and method."""
    found = []
    for own in grouped([row for row in rows if row["moved"]], "checkpoint", "method").values():
        order = np.argsort([row["predicted"] for row in own], kind="stable").argsort()
        found += [row | {"bin": int(place) * BINS // len(own) + 1} for row, place in zip(own, order, strict=True)]
    return found
