"""gradient-snr: how much of a gradient of J is signal, by horizon and by the number of draws that it is the mean of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

from dreamer_mpc.analysis.bench import POLICY, Bench
from dreamer_mpc.analysis.estimate import of_line, summarised
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import Line, Measure, visited
from dreamer_mpc.planners import Ascent, Planner
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.device import preserved_rng

SHOWN = (1, 2, 3, 5, 10, 15, 20)  # horizons of the table
QUANTITIES = ("snr", "snr_first")


@dataclass(frozen=True)
class GradientSNR(Measure):
    """The ratio of mean to standard deviation of dJ/da over draws, at the sequences that each planner starts from."""

    usual: ClassVar[str] = "dream-mpc-default,dream-mpc-paper,grad-mpc"
    caption: ClassVar[str] = "|mean| over standard deviation of an entry of dJ/da, mean over entries; columns: horizon"

    steps: tuple[int, ...]
    depth: int
    draws: int
    averaged: tuple[int, ...]

    @classmethod
    def make(cls, config: Any, subject: Any, planners: dict[str, Planner], models: Any) -> "GradientSNR":
        """See `Measure.make`."""
        return cls(planners, visited(config), config.depth or 20, config.draws, tuple(config.averaged))

    @property
    def parts(self) -> Sequence[str]:
        """The planners."""
        return tuple(self.planners)

    def measure(self, bench: Bench, part: str, count: int, seed: int) -> list[Measured]:
        """Ratios at each visited state, their mean over the states of an episode."""
        found: dict[tuple[int, int, int], list[tuple[float, float]]] = {}
        for visit in bench.visit(POLICY, seed, self.steps):
            for horizon in range(1, self.depth + 1):
                grad = self._gradients(bench, self.planners[part], visit.state, horizon, seed + visit.step)
                for averaged in self.averaged:
                    ratios = ratio(grad, averaged)  # [B, h, A]
                    each = zip(ratios.nanmean((1, 2)).tolist(), ratios[:, 0].nanmean(1).tolist(), strict=True)
                    for row, both in enumerate(each):
                        if row < count and visit.alive[row]:
                            found.setdefault((row, horizon, averaged), []).append(both)
        return [
            {"episode": row, "method": part, "horizon": horizon, "averaged": averaged}
            | dict(zip(QUANTITIES, np.mean(both, axis=0).tolist(), strict=True))
            for (row, horizon, averaged), both in found.items()
        ]

    @torch.no_grad()
    def _gradients(
        self, bench: Bench, planner: Ascent, state: Float[Tensor, "B S"], horizon: int, seed: int
    ) -> Float[Tensor, "B M h A"]:
        """The gradient under each draw, at the sequence from which the ascent would start."""
        planner = replace(planner, horizon=horizon)
        with preserved_rng(bench.agent.device):
            torch.manual_seed(seed)
            actions = start_of(planner, bench.agent.model, state)
            _, grad = planner.judge(bench.agent.model, state, actions, self.draws, climbs=True)
        return grad

    def summary(self, rows: list[Measured]) -> list[Line]:
        """See `Measure.summary`."""
        return summarised(rows, ("method", "averaged", "horizon"), QUANTITIES)

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """A row for each planner and number of draws, a column for each of some horizons."""
        horizons = [h for h in SHOWN if h <= self.depth]
        horizons += [self.depth] if self.depth not in horizons else []
        cells = {(line["method"], line["averaged"], line["horizon"]): of_line(line, "snr") for line in summary}
        pairs = dict.fromkeys((line["method"], line["averaged"]) for line in summary)
        return [
            {"start of": method, "draws": str(averaged)}
            | {str(h): f"{cells[method, averaged, h].mean:.2f}" for h in horizons if (method, averaged, h) in cells}
            for method, averaged in pairs
        ]

    def panels(self, summary: list[Line]) -> list[Panel]:
        """By horizon for one draw, all actions and the first; and by number of draws at the longest horizon."""
        least = min(self.averaged)
        words = f"mean of {least} draw{'s' * (least > 1)}"
        ratio_of = "signal to noise ratio of an entry of dJ/da"
        every = Panel(f"all actions, {words}", "horizon H, agent steps", ratio_of, log=(False, True))
        first = Panel(f"first action, {words}", "horizon H, agent steps", ratio_of, log=(False, True))
        draws = Panel(f"first action, H = {self.depth}", "draws that are averaged", ratio_of, log=(True, True))
        for line in summary:
            if line["averaged"] == least:
                every.add(line["method"], line["horizon"], of_line(line, "snr"))
                first.add(line["method"], line["horizon"], of_line(line, "snr_first"))
            if line["horizon"] == self.depth:
                draws.add(line["method"], line["averaged"], of_line(line, "snr_first"))
        for panel in (every, first, draws):
            panel.reference = 1.0
        return [every, first, draws]


def start_of(planner: Ascent, model: Any, state: Float[Tensor, "B S"]) -> Float[Tensor, "B h A"]:
    """The first of the sequences from which `planner` would start, as far as it is ascended."""
    start = replace(planner, iterations=0, candidates=1, reuse=0.0).plan(model, state)
    return start.actions[:, : planner.ascended]


def policy_plan(planner: Ascent, model: Any, state: Float[Tensor, "B S"]) -> Float[Tensor, "B h A"]:
    """The policy's mode along the prior's mean, as far as `planner` ascends."""
    still = replace(planner, mode_candidate=True, draws=1, latent_noise="mean", line_search=(), habits=())
    return start_of(still, model, state)


def ratio(grad: Float[Tensor, "B M h A"], averaged: int) -> Float[Tensor, "B h A"]:
    """|mean| over the standard deviation of a mean of `averaged` draws, estimated from M / averaged such means.

    The inverse of a standard deviation that is estimated from few of them is too large on average, by a factor that is
    known for normal ones: it is divided by that. Where nothing varies it is 0 if the mean is 0, else NaN.
    """
    blocks = grad.shape[1] // averaged
    means = grad[:, : blocks * averaged].unflatten(1, (blocks, averaged)).double().mean(2)
    freedom = blocks - 1
    too_large = np.sqrt(freedom / 2) * np.exp(special.gammaln((freedom - 1) / 2) - special.gammaln(freedom / 2))
    signal, noise = means.mean(1).abs(), means.std(1)
    return torch.where(noise > 0, signal / noise / too_large, torch.where(signal > 0, torch.nan, 0.0))
