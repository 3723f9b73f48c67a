"""model-error: what the model predicts along the plans that are executed, against what comes of them, by depth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agents.protocol import Carry
from dreamer_mpc.analysis.bench import POLICY, Bench, Executed
from dreamer_mpc.analysis.estimate import grouped, of_line, summarised
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import Line, Measure
from dreamer_mpc.planners import Ascent, Planner
from dreamer_mpc.planners.objective import ensemble_std
from dreamer_mpc.planners.rollout import draw_noise, rollout
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.device import preserved_rng

ERRORS = {
    "reward_error": "|predicted − real reward|, an agent step's",
    "return_error": "|predicted − real return of k steps|",
    "value_error": "|predicted − inferred value|, return units",
    "image_error": "image's RMSE, grey levels of 255",
}
QUANTITIES = (*ERRORS, "return_bias", "value_bias", "spread")
BINS = 5  # of the spread, for its calibration
SHOWN = (1, 3, 5, 10, 15)  # depths of the table


class Predicted(NamedTuple):
    """What the model says of B plans."""

    reward: Float[np.ndarray, "B H"]  # means over draws
    value: Float[np.ndarray, "B H"]
    spread: Float[np.ndarray, "B H"]  # of the value heads
    image: np.ndarray  # uint8 [B, H, X, Y, 3], of the prior's mean


@dataclass(frozen=True)
class ModelError(Measure):
    """Plans of `depth` actions, each executed to its end before the next is made, by weight of the penalty."""

    usual: ClassVar[str] = "dream-mpc-default"
    caption: ClassVar[str] = (
        "means of absolute errors along executed plans; calibration: rank correlation of the value heads' spread with "
        "the error of the value, at equal depth; plans: those whose episode went on to that depth"
    )

    plans: int
    depth: int
    draws: int
    weights: tuple[float, ...]
    discount: float

    @classmethod
    def make(cls, config: Any, subject: Any, planners: dict[str, Planner], models: Any) -> "ModelError":
        """See `Measure.make`."""
        discount = next(iter(planners.values())).discount
        return cls(planners, config.states, config.depth or 15, config.draws, tuple(config.weights), discount)

    @property
    def parts(self) -> Sequence[str]:
        """Each planner with each weight."""
        return tuple(self._variants())

    def settings(self) -> dict[str, Any]:
        """Each agent has a discount of its own, which is recorded with the planners."""
        return {key: value for key, value in super().settings().items() if key not in ("discount", "weights")}

    def _variants(self) -> dict[str, Ascent]:
        several = len(self.planners) > 1
        return {
            f"{f'{name}, ' if several else ''}penalty {weight:g}": replace(
                planner, uncertainty=weight, horizon=self.depth
            )
            for name, planner in self.planners.items()
            for weight in self.weights
        }

    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """One row for each plan and depth, as far as the episode went."""
        with preserved_rng(bench.agent.device):
            torch.manual_seed(seed)
            return self._measure(bench, part, count, seed)

    @torch.no_grad()
    def _measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        planner, model, rows = self._variants()[part], bench.agent.model, []
        image, _ = bench.envs.reset(seed=[seed + row for row in range(bench.envs.num_envs)])
        carry, _ = bench.act(POLICY, bench.agent.initial(len(image)), image, first=True)
        alive = np.ones(len(image), dtype=bool)
        for number in range(self.plans):
            actions = planner.plan(model, carry.state).actions
            predicted = predict(model, carry.state, actions, self.draws)
            executed = bench.execute(carry.state, actions, seed=seed + number, alive=alive)
            rows += [
                {"episode": row, "method": part, "plan": number} | line
                for row in range(min(count, len(alive)))
                for line in errors(predicted, executed, bench.value(executed), row, self.discount)
            ]
            alive = executed.going
            carry = Carry(executed.state[:, -1], actions[:, -1], None)
            if not alive.any():
                break
        return rows

    def summary(self, rows: list[Measured]) -> list[Line]:
        """By group of tasks, method and depth; behind them the calibration, by bin of the spread."""
        plans = {key: len(own) for key, own in grouped(rows, "group", "method", "depth").items()}
        summary = [
            line | {"plans": plans[line["group"], line["method"], line["depth"]]}
            for line in summarised(rows, ("group", "method", "depth"), QUANTITIES)
        ]
        pairs = calibration(rows)
        calibrated = summarised(pairs, ("group", "method", "bin"), ("relative_error",))
        calibrated += summarised(pairs, ("group", "method"), ("rank_correlation",))
        empty = dict.fromkeys(key for line in ({"part": ""}, *summary, *calibrated) for key in line)
        return [empty | {"part": "error"} | line for line in summary] + [
            empty | {"part": "calibration"} | line for line in calibrated
        ]

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """A row for each group, method and some depths."""
        depths = [k for k in SHOWN if k <= self.depth]
        depths += [self.depth] if self.depth not in depths else []
        ranks = {
            (line["group"], line["method"]): of_line(line, "rank_correlation")
            for line in _of(summary, "calibration") if line["bin"] is None
        }  # fmt: skip
        return [
            {
                "tasks": line["group"], "method": line["method"], "depth": str(line["depth"]),
                "plans": str(line["plans"]),
                **{name.replace("_", "\n"): str(of_line(line, name)) for name in (*ERRORS, "return_bias")},
                "calibration": str(ranks.get((line["group"], line["method"]), "–")),
            }
            for line in _of(summary, "error") if line["depth"] in depths
        ]  # fmt: skip

    def panels(self, summary: list[Line]) -> list[Panel]:
        """A row of panels for each group: every error by depth, the bias of the return, and the calibration."""
        panels = []
        for group in dict.fromkeys(line["group"] for line in summary):
            titles = ERRORS | {"return_bias": "predicted − real return of k steps"}
            own = {name: Panel(f"{group} tasks", "depth k, agent steps", words) for name, words in titles.items()}
            own["return_bias"].reference = 0.0
            for line in _of(summary, "error"):
                for name, panel in own.items():
                    if line["group"] == group:
                        panel.add(line["method"], line["depth"], of_line(line, name))
            binned = Panel(
                f"{group} tasks: calibration", "fifth of the value heads' spread, at equal depth",
                "value error relative to its mean", reference=1.0,
                empty=f"too few plans: {BINS} of a checkpoint are needed at a depth",
            )  # fmt: skip
            for line in _of(summary, "calibration"):
                if line["group"] == group and line["bin"] is not None:
                    binned.add(line["method"], line["bin"], of_line(line, "relative_error"))
            panels += [*own.values(), binned]
        return panels


def _of(summary: list[Line], part: str) -> list[Line]:
    return [line for line in summary if line["part"] == part]


def predict(model: Any, state: Float[Tensor, "B S"], actions: Float[Tensor, "B H A"], draws: int) -> Predicted:
    """Means over draws of reward, value and spread on the way; the image is that of a rollout without noise."""
    states = rollout(model, state, actions[:, None].expand(-1, draws, -1, -1))  # [B, M, H, S]
    values = model.value(states)  # [K, B, M, H]
    still = rollout(model, state, actions[:, None], draw_noise(model, state[:, None], actions.shape[1], "mean"))
    found = (model.reward(states).mean(1), values.mean((0, 2)), ensemble_std(values).mean(1))
    image = model.world_model.decode(still[:, 0])
    return Predicted(*(x.double().cpu().numpy() for x in found), image.cpu().numpy())


def errors(
    predicted: Predicted, executed: Executed, value: Float[np.ndarray, "B H"], row: int, discount: float
) -> list[dict[str, Any]]:
    """A dict for each depth that the plan of `row` reached."""
    difference = predicted.reward[row] - executed.reward[row]
    returns = np.cumsum(discount ** np.arange(len(difference)) * difference)
    pixels = predicted.image[row].astype(np.float64) - executed.image[row]
    rmse = np.sqrt(np.square(pixels).mean((1, 2, 3)))
    of_value = predicted.value[row] - value[row]
    return [
        {
            "depth": k + 1, "reward_error": abs(difference[k]), "return_error": abs(returns[k]),
            "value_error": abs(of_value[k]), "image_error": rmse[k], "return_bias": returns[k],
            "value_bias": of_value[k], "spread": predicted.spread[row, k],
        }
        for k in range(int(executed.reached[row]))
    ]  # fmt: skip


def calibration(rows: list[Measured]) -> list[Measured]:
    """Whether the value heads disagree where the value is wrong: a row for each plan and depth.

    Ranks of spread and error are among all plans of a checkpoint and method at one depth, so that both growing with
    depth is no agreement. The mean of `rank_correlation` over them is Spearman's; `bin` is the fifth of the spread.
    """
    found = []
    for own in grouped(rows, "checkpoint", "method", "depth").values():
        if len(own) < BINS:
            continue
        spread, error = (np.array([row[name] for row in own], dtype=float) for name in ("spread", "value_error"))
        ranks = [ranked(x) for x in (spread, error)]
        scores = [(x - x.mean()) / x.std() if x.std() > 0 else 0.0 * x for x in ranks]
        bins = spread.argsort(kind="stable").argsort() * BINS // len(own) + 1
        relative = error / error.mean() if error.mean() > 0 else np.ones_like(error)
        found += [
            {key: row[key] for key in ("group", "checkpoint", "episode", "method")}
            | {"bin": int(place), "rank_correlation": float(product), "relative_error": float(size)}
            for row, place, product, size in zip(own, bins, scores[0] * scores[1], relative, strict=True)
        ]
    return found


def ranked(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Ranks from 1, those of equal values the same."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
