"""The table of targets: required and measured values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE_RUN = 1_000_000  # env steps
Results = dict[str, dict[str, Any]]  # records by benchmark name; a failed one is {"error": reason}


@dataclass(frozen=True)
class Target:
    """A target: `floor` is the required value, `aim` the desired one (None: no such value)."""

    name: str
    part: str  # the benchmark that measures it
    unit: str
    measured: Callable[[Results], float | None]
    floor: float
    aim: float | None = None
    peer: Callable[[Results], float | None] = lambda results: None
    at_least: bool = False  # more is better

    def reached(self, value: float, goal: float) -> bool:
        """Whether `value` is as good as `goal`."""
        return value >= goal if self.at_least else value <= goal

    def row(self, results: Results) -> dict[str, str]:
        """Its line of the table; a text in place of a missing number."""
        try:
            value, peer = self.measured(results), self.peer(results)
        except (KeyError, IndexError, TypeError):
            value = peer = None
        error = results.get(self.part, {"error": "not run"}).get("error")
        if error or value is None:
            text, met = error or "not measured", "-"
        else:
            text = f"{value:.3g} {self.unit}"
            reached = self.reached(value, self.floor)
            met = "aim" if self.aim is not None and self.reached(value, self.aim) else "yes" if reached else "no"
        sign = ">=" if self.at_least else "<="
        goals = [f"{sign} {goal:g} {self.unit}" if goal is not None else "" for goal in (self.floor, self.aim)]
        return {
            "what": self.name, "peer": "" if peer is None else f"{peer:.3g} {self.unit}", "floor": goals[0],
            "aim": goals[1], "measured": text, "met": met,
        }  # fmt: skip


def find(record: dict[str, Any], key: str, **wanted: Any) -> float:
    """`key` of the first row that has all of `wanted`; KeyError if there is none."""
    for row in record["rows"]:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row[key]
    raise KeyError(wanted)


def _update(results: Results, name: str = "default") -> float:
    return find(results["update"], "ms", name=name)


def _plan(results: Results, planner: str, batch: int) -> float:
    return find(results["plan"], "ms", planner=planner, batch=batch, kernels="auto")


def _peer(results: Results, part: str, **name: str) -> float | None:
    try:
        return find(results[part], "ms", **name)
    except KeyError:
        return None


def _set_up(results: Results) -> float:
    """The larger set-up time: of the agent alone with an empty kernel cache, or of the whole program."""
    alone = find(results["update"], "set_up_s", name="default")
    runs = results.get("end_to_end", {}).get("rows", [])
    return max([alone, *(row["set_up_s"] for row in runs if "set_up_s" in row)])


def _whole_run(results: Results) -> float | None:
    row = results["end_to_end"]["rows"][0]
    return row["wall_min"] if row["env_steps"] >= WHOLE_RUN else None


PAPER = "dream-mpc-paper"
GPU = [
    Target("one update, 50x50x64x64x3", "update", "ms", _update, 12, 6.5,
           lambda r: _peer(r, "update", name="peer, update")),
    Target("Dream-MPC plan, batch 1", "plan", "ms", lambda r: _plan(r, "dream-mpc", 1), 2.5, 1.5),
    Target("Dream-MPC plan, the paper's settings, batch 1", "plan", "ms", lambda r: _plan(r, PAPER, 1), 2, 1),
    Target("Dream-MPC plan, the paper's settings, batch 8", "plan", "ms", lambda r: _plan(r, PAPER, 8), 2.5, 1.3),
    Target("CEM plan, batch 1", "plan", "ms", lambda r: _plan(r, "cem", 1), 6, 4,
           lambda r: _peer(r, "plan", planner="peer, cem plan, batch 1")),
    Target("whole run, 1M env steps of cheetah-run with Dream-MPC, evaluations and checkpoints", "end_to_end", "min",
           _whole_run, 30, 20),
    Target("set-up before the first update (compile, capture)", "update", "s", _set_up, 60, 20),
    Target("four runs on one GPU, updates/s together over one alone", "update", "x",
           lambda r: r["update"]["several"].get("ratio"), 1.8, 2.5, at_least=True),
]  # fmt: skip
CPU = [
    Target("one update, 50x50x64x64x3: times as fast as the peer's", "update", "x",
           lambda r: _update(r, "peer, update") / _update(r), 1.5, at_least=True),
    Target("Dream-MPC plan, settings for CPUs, batch 1", "plan", "ms", lambda r: _plan(r, "dream-mpc-cpu", 1), 60),
    Target("Dream-MPC plan, the paper's settings, batch 1", "plan", "ms", lambda r: _plan(r, PAPER, 1), 20),
]  # fmt: skip


def table(results: Results, targets: Sequence[Target]) -> list[dict[str, str]]:
    """A line for each target."""
    return [target.row(results) for target in targets]


def markdown(rows: Sequence[dict[str, str]], title: str, notes: Sequence[str]) -> str:
    """The table as Markdown for a README."""
    columns = list(rows[0])
    lines = [f"# {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])
