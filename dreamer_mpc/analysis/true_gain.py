"""true-gain: what the ascent adds to a plan in the real environment, from copied states, against what J promised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreamer_mpc.analysis.bench import POLICY, Bench, Executed, Visit
from dreamer_mpc.analysis.estimate import grouped, of_line, summarised
from dreamer_mpc.analysis.gradient_snr import policy_plan
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import Line, Measure, visited
from dreamer_mpc.planners import Ascent, Planner
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.device import preserved_rng

GAINS = {"promised": "J", "predicted": "return + value, predicted", "real": "return + value, real"}
QUANTITIES = (*GAINS, "real_rewards", "moved", "improved")
ENDS = ("cut_off", "terminated")  # flags of a row
STATES = "states,\ncut off,\nterminated"  # a column of the table
BINS = 5  # of the promise
LEAST_MOVE = 1e-6  # of an entry of the plan


@dataclass(frozen=True)
class TrueGain(Measure):
    """Policy's plan and refined plan, each executed from the same state of the simulator."""

    usual: ClassVar[str] = "dream-mpc-default,dream-mpc-paper"
    caption: ClassVar[str] = (
        "refined plan minus the policy's; moved: share of plans that the ascent changed; improved: share of those "
        "whose real return + value rose; realised: real gain over predicted gain; cut off: states left out, as the "
        "time limit comes before a plan's end; terminated: states where a plan ended the episode, which has no value"
    )
    copies_states: ClassVar[bool] = True

    steps: tuple[int, ...]
    draws: int

    @classmethod
    def make(cls, config: Any, subject: Any, planners: dict[str, Planner], models: Any) -> "TrueGain":
        """See `Measure.make`."""
        return cls(planners, visited(config), config.draws)

    @property
    def parts(self) -> Sequence[str]:
        """The planners."""
        return tuple(self.planners)

    @torch.no_grad()
    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """One row for each visited state; without gains where the time limit cut one of the plans off."""
        rows = []
        for visit in bench.visit(POLICY, seed, self.steps, snapshots=True):
            gains, ends = self._gains(bench, self.planners[part], visit, seed + visit.step)
            rows += [
                {"episode": row, "method": part, "step": visit.step}
                | {name: None if ends["cut_off"][row] else float(values[row]) for name, values in gains.items()}
                | {name: int(flags[row]) for name, flags in ends.items()}
                for row in np.flatnonzero(visit.alive).tolist()
                if row < count
            ]
        return rows

    def _gains(
        self, bench: Bench, planner: Ascent, visit: Visit, seed: int
    ) -> tuple[dict[str, Float[np.ndarray, " B"]], dict[str, Bool[np.ndarray, " B"]]]:
        """The quantities, and whether an end of the episode interfered, each for all rows."""
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
        before, after = (self._executed(bench, planner, visit, plan, seed) for plan in (start, refined))
        moved = ((refined - start).abs().amax((1, 2)) > LEAST_MOVE).cpu().numpy()
        real = bench.worth(after, planner.discount) - bench.worth(before, planner.discount)
        weights = planner.discount ** np.arange(planner.horizon)
        gains = {
            "promised": promised.double().cpu().numpy(), "predicted": predicted.double().cpu().numpy(),
            "real": real, "real_rewards": (after.reward - before.reward) @ weights, "moved": moved.astype(float),
            "improved": np.where(moved, real > 0, np.nan),
        }  # fmt: skip
        flags = ~(before.whole & after.whole), before.terminated | after.terminated
        return gains, dict(zip(ENDS, flags, strict=True))

    def _judged(
        self, planner: Ascent, model: Any, state: Float[Tensor, "B S"], plan: Float[Tensor, "B h A"], seed: int
    ) -> Float[Tensor, " B"]:
        torch.manual_seed(seed)  # plans are judged on the same draws
        return planner.judge(model, state, plan, self.draws)[0].mean(1)

    def _executed(
        self, bench: Bench, planner: Ascent, visit: Visit, plan: Float[Tensor, "B h A"], seed: int
    ) -> Executed:
        """What comes of a plan of `horizon` actions from the visited states."""
        bench.envs.go_to(visit.snapshots)
        answers = plan[:, -1:].expand(-1, planner.horizon - plan.shape[1], -1)  # the policy's, once it acts
        return bench.execute(visit.state, torch.cat([plan, answers], dim=1), plan.shape[1], seed)

    def summary(self, rows: list[Measured]) -> list[Line]:
        """Means by method; and by the fifth of what was promised, among the plans of a method that moved.

        `states` are those in the means, `cut_off` those that were left out, `terminated` those of the former where a
        plan ended the episode; the last two are None where some rows are of before they were recorded.
        """
        if all(row.get("cut_off") for row in rows):
            return []
        means = []
        for own in grouped(rows, "method").values():
            measured = [row for row in own if not row.get("cut_off")]
            (line,) = summarised(measured or own, ("method",), QUANTITIES)
            line["realised"] = line["real"] / line["predicted"] if line["predicted"] else None
            line["correlation"] = correlation([row for row in measured if row["moved"]])
            line |= {"states": len(measured), "cut_off": counted(own, "cut_off")}
            line["terminated"] = counted(measured, "terminated")
            means.append(line)
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
            | {STATES: ", ".join("–" if line[name] is None else str(line[name]) for name in ("states", *ENDS))}
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


def counted(rows: list[Measured], flag: str) -> int | None:
    """How many rows have the flag; None where some are of before it was recorded."""
    flags = [row.get(flag) for row in rows]
    return None if None in flags else sum(flags)


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
