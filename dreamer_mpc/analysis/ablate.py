"""ablate: the settings of Dream-MPC taken away in turn, on the same episodes, over all checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dreamer_mpc.analysis.bench import Bench
from dreamer_mpc.analysis.estimate import ALL, grouped, of_line, per_episode, scoped, summarised
from dreamer_mpc.analysis.finite_differences import paired
from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.analysis.measure import POLICY, Line, Measure, name_of
from dreamer_mpc.config import AnalyzeConfig, CompareConfig, preset_kind, with_planners_of
from dreamer_mpc.evaluation.compare import Comparison
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.planners import Planner
from dreamer_mpc.report.panels import Panel
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.intervals import holm, p_value

WHOLE = "all settings"
PLANNING = "all of it (the policy)"
TAKEN_AWAY = {  # what is taken away -> the setting without it
    "shared draws": "draws=1",
    "line search": "line-search=none",
    "steps of unit length": "step-scale=gradient",
    "policy behind 5 actions": "open-loop=0",
    "caution": "caution=0",
    "lambda-return": "objective=return",
    "penalty": "uncertainty=0",
    "start at the mode": "mode-candidate=false",
    "second step": "iterations=1",
    "gradient (random direction)": "direction=random",
}


@dataclass(frozen=True)
class Ablate(Measure):
    """A comparison of one checkpoint, `run.py compare` in a folder of its own below that of the analysis."""

    usual: ClassVar[str] = "dream-mpc-default"
    caption: ClassVar[str] = (
        "each without one setting, beside the planner with all of them, paired by episode; *: decided after Holm's "
        "correction over all rows but the policy (5 %)"
    )
    plays_itself: ClassVar[bool] = True

    compare: CompareConfig
    subject: Subject

    @classmethod
    def make(
        cls, config: AnalyzeConfig, subject: Subject, planners: dict[str, Planner], models: Any
    ) -> "Ablate":
        """See `Measure.make`."""
        if len(planners) != 1:
            raise UserError(f"--planners {config.planners}: ablate takes the settings of one planner away; name one")
        name, planner = next(iter(planners.items()))
        kind = preset_kind(name).replace("-", "_")
        compare = CompareConfig(
            checkpoint=(str(subject.path),), planners=f"{POLICY},{name}",
            out=str(Path(config.out) / name_of(subject.path)),
            sweep=tuple(f"{name}.{setting}" for setting in TAKEN_AWAY.values()), overwrite=config.overwrite,
            **{key: getattr(config, key) for key in ("episodes", "seed", "num_envs", "render_quality", "device")},
            compile=config.compile,
        )  # fmt: skip
        compare = with_planners_of(config, compare)
        own = replace(getattr(compare, kind), discount=planner.discount)
        return cls({POLICY: compare.policy, **planners}, replace(compare, **{kind: own}), subject)

    def settings(self) -> dict[str, Any]:
        """None: the folders of the comparisons have them."""
        return {}

    def measure(self, bench: Bench | None, part: str, count: int, seed: int) -> list[Measured]:
        """Rows of every planner's episodes, those before `seed` played first."""
        first = seed - self.compare.seed
        again = self.compare.overwrite and first == 0
        compare = replace(self.compare, episodes=first + count, overwrite=again)
        comparison = Comparison.of_several(compare, [self.subject])
        comparison.play()
        labels = dict(zip(comparison.planners, (POLICY, WHOLE, *TAKEN_AWAY), strict=True))
        return [
            {"episode": row["episode"] - first, "method": labels[row["planner"]], "planner": row["planner"],
             "return": row["return"], "ms_per_action": row["ms_per_action"]}
            for planner in labels for name in comparison.subjects
            for row in comparison.record.of(planner, name, first + count)[first:]
        ]  # fmt: skip

    def summary(self, rows: list[Measured]) -> list[Line]:
        """Over all checkpoints, then each: means, and differences to the planner with all settings."""
        pairs = paired(rows, WHOLE)
        lines = summarised(scoped(pairs), ("scope", "method"), ("return", "difference"))
        tested = [line for line in lines if line["scope"] == ALL and line["method"] not in (POLICY, WHOLE)]
        rows_of = grouped(pairs, "method")
        p_values = [p_of(rows_of[(line["method"],)]) for line in tested]
        known = None not in p_values and bool(p_values)
        for line in lines:
            line |= {"p": None, "p_holm": None}
        for line, p, adjusted in zip(tested, p_values, holm(p_values) if known else p_values, strict=True):
            line |= {"p": p, "p_holm": adjusted}
        return lines

    def table(self, summary: list[Line]) -> list[dict[str, str]]:
        """A row for each setting, over all checkpoints."""
        return [
            {
                "without": _without(line["method"]), "return": str(of_line(line, "return")),
                "difference to all settings": ("* " if decided(line) else "") + str(of_line(line, "difference") or "–"),
                "p, Holm": "–" if line["p_holm"] is None else f"{line['p_holm']:.2g}",
            }
            for line in summary if line["scope"] == ALL
        ]  # fmt: skip

    def panels(self, summary: list[Line]) -> list[Panel]:
        """Differences over all checkpoints, and of each."""
        names = [line["method"] for line in summary if line["scope"] == ALL and line["method"] != WHOLE]
        words, shown = "return minus that with all settings", [_without(name) for name in names]
        every = Panel("all checkpoints", "taken away", words, names=shown, joined=False, reference=0.0)
        each = Panel("each checkpoint", "taken away", words, names=shown, joined=False, reference=0.0)
        for line in summary:
            if line["method"] != WHOLE:
                of_all = line["scope"] == ALL
                label = "all checkpoints" if of_all else name_of(line["scope"])
                (every if of_all else each).add(label, names.index(line["method"]), of_line(line, "difference"))
        return [every, each]


def _without(method: str) -> str:
    """What is taken away, in tables and pictures."""
    return {POLICY: PLANNING, WHOLE: f"nothing ({WHOLE})"}.get(method, method)


def p_of(rows: list[Measured]) -> float | None:
    """The p-value of the mean difference; None where checkpoints have too few episodes, or not as many."""
    strata = per_episode(rows, "difference")
    return p_value(np.stack(strata, axis=1)) if len(set(map(len, strata))) == 1 else None


def decided(line: Line) -> bool:
    """Whether a difference is one, at 5 % after the correction."""
    return line["p_holm"] is not None and line["p_holm"] <= 0.05
