"""The lines of the table of targets: what is required, and where the measured value stands in the records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE_RUN = 1_000_000  # env steps
Results = dict[str, dict[str, Any]]  # records by name of the part; a failed one has an "error"
Found = float | str | None  # a text says why there is no number


@dataclass(frozen=True)
class Target:
    """A line: `floor` is the required value, `aim` the desired one; None: there is no such target."""

    name: str
    part: str  # whose record holds the value
    unit: str
    measured: Callable[[Results], Found]
    floor: float | None = None
    aim: float | None = None
    peer: Callable[[Results], Found] = lambda results: None
    at_least: bool = False  # more is better
    note: str = ""  # behind the value

    def reached(self, value: float, goal: float | None) -> bool:
        """Whether there is such a `goal`, and `value` is as good."""
        return goal is not None and (value >= goal if self.at_least else value <= goal)

    def value(self, results: Results) -> Found:
        """The measured value, or why there is none."""
        found = _try(self.measured, results)
        if found is not None:
            return found
        return results.get(self.part, {"error": "not run"}).get("error") or "not measured"

    def row(self, results: Results) -> dict[str, str]:
        """Its line of the table."""
        value, sign = self.value(results), ">=" if self.at_least else "<="
        met = ""
        if isinstance(value, str):
            met = "-"
        elif self.floor is not None or self.aim is not None:
            met = "aim" if self.reached(value, self.aim) else "yes" if self.reached(value, self.floor) else "no"
        goals = [f"{sign} {goal:g} {self.unit}" if goal is not None else "" for goal in (self.floor, self.aim)]
        now = value if isinstance(value, str) else self._text(value) + self.note
        return {
            "what": self.name, "now": now, "floor": goals[0], "aim": goals[1], "met": met,
            "peer": self._text(_try(self.peer, results)), "measured": made(results.get(self.part, {})),
        }  # fmt: skip

    def _text(self, value: Found) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return f"{value:,.0f} {self.unit}" if value >= 1000 else f"{value:.3g} {self.unit}"


def _try(function: Callable[[Results], Found], results: Results) -> Found:
    """None where a record, or a row of it, is missing."""
    try:
        return function(results)
    except (KeyError, IndexError, TypeError, ZeroDivisionError):
        return None


def made(record: dict[str, Any]) -> str:
    """Date and commit of a record."""
    commit = str(record.get("commit") or "")
    short = commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")
    return ", ".join(filter(None, (record.get("date"), short)))


def find(record: dict[str, Any], key: str, **wanted: Any) -> Any:
    """`key` of the first row that has all of `wanted`; KeyError if there is none."""
    for row in record["rows"]:
        if all(row.get(name) == value for name, value in wanted.items()):
            return row[key]
    raise KeyError(wanted)


# Where the values stand.

DEFAULT, PAPER = "dream-mpc", "dream-mpc-paper"
PAPER_EVALUATIONS = 75  # of the model, in a plan; the default had the paper's settings until these were a preset
GIB, MS, STEPS = "GiB", "ms", "env steps/s"


def _update(part: str, key: str = "ms", name: str = "default") -> Callable[[Results], Found]:
    return lambda results: find(results[part], key, name=name)


def _plan(part: str, planner: str, batch: int, key: str = "ms") -> Callable[[Results], Found]:
    def measured(results: Results) -> Found:
        rows = [row for row in results[part]["rows"] if row.get("kernels") == "auto" and row["batch"] == batch]
        named = {row["planner"]: row for row in rows}
        earlier = named.get(DEFAULT, {}).get("model_evaluations") == PAPER_EVALUATIONS
        if earlier and PAPER not in named and planner in (DEFAULT, PAPER):
            return named[DEFAULT][key] if planner == PAPER else None
        return named[planner][key]

    return measured


def _peer(*parts: str, **wanted: str) -> Callable[[Results], Found]:
    """ms of the paper's base code, in the first of `parts` that has it; beside ours its names begin with 'peer'."""

    def measured(results: Results) -> Found:
        for part in parts:
            for record in results.get(part, {}).get("rows", []):
                if record.get("name", record.get("planner", "")).removeprefix("peer, ") == wanted["name"]:
                    return record["ms"]
        return None

    return measured


def _r2dreamer(key: str, unit: str) -> Callable[[Results], Found]:
    """Its update, compiled where it could be, and how long its first calls took; then not compiled."""

    def measured(results: Results) -> Found:
        rows = [row for part in ("r2dreamer_compiled", "r2dreamer") for row in results.get(part, {}).get("rows", [])]
        rows = {row["name"]: row for row in rows if row["name"].startswith("update")}
        compiled, plain = rows.get("update"), rows.get("update, not compiled")
        words = []
        if compiled:
            time = f" (first calls {compiled['first_calls_s']:.0f} s)" if compiled["ms"] and key == "ms" else ""
            words.append(f"{compiled[key]:.3g} {unit}{time}" if compiled["ms"] else compiled["text"])
        elif error := results.get("r2dreamer_compiled", {}).get("error"):
            words.append(error)
        if plain:
            words.append(f"not compiled: {plain[key]:.3g} {unit}" if plain["ms"] else f"not compiled: {plain['text']}")
        return "; ".join(words) or results.get("r2dreamer", {}).get("error")

    return measured


def _acting(batch: int) -> Callable[[Results], Found]:
    return lambda results: find(results["r2dreamer"], "ms", name=f"acting step, batch {batch}")


def _phase(part: str, beside: str, key: str, factor: float = 1.0) -> Callable[[Results], Found]:
    return lambda results: factor * find(results[part], key, beside=beside)


def _first_run(part: str, key: str) -> Callable[[Results], Found]:
    """Of the run that began with an empty cache, wherever its evaluations were played."""
    return lambda results: find(results[part], key)


def _several(part: str, key: str, processes: int) -> Callable[[Results], Found]:
    def measured(results: Results) -> Found:
        several = results[part]["several"]
        return several[key] if several["processes"] == processes else None

    return measured


def _whole_run(results: Results) -> Found:
    row = results["end_to_end"]["rows"][0]
    return row["wall_min"] if row["env_steps"] >= WHOLE_RUN else f"not measured: {row['env_steps']:,} env steps"


def _of_runs(agent: str, suffix: str, ways: Sequence[str], goals: bool) -> list[Target]:
    """The lines of a short run and of what is extrapolated from it; `goals`: the floors and aims of the paper's agent.

    They are those of a run with the evaluations that are the better way, so that one of two lines may miss them.
    """

    def goal(floor: float, aim: float) -> tuple[float, ...]:
        return (floor, aim) if goals else ()

    part, whole, lines = f"phases{suffix}", "1M env steps of cheetah-run, 20 evaluations of 10 episodes", []
    lines.append(Target(f"{agent}: env steps a second in rounds", part, STEPS, _first_run(part, "env_steps_per_s"),
                        *goal(1100, 1500), at_least=True))  # fmt: skip
    lines.append(Target(f"{agent}: time of a round that its updates alone would take", part, "%",
                        lambda results: 0.1 * _update(f"update{suffix}")(results)
                        * _first_run(part, "updates_per_s")(results)))  # fmt: skip
    for way in ways:
        said = f"--eval.beside {way}"
        if way == "on":
            lines.append(Target(f"{agent}: the same during an evaluation, {said}", part, STEPS,
                                _phase(part, way, "beside_env_steps_per_s"), at_least=True))  # fmt: skip
        lines.append(Target(f"{agent}: time of a whole run in which no update runs, {said}", part, "%",
                            _phase(part, way, "idle", 100), *goal(25, 15), note=" (extrapolated)"))  # fmt: skip
        lines.append(Target(f"{agent}: whole run, {whole}, {said}", part, "min", _phase(part, way, "whole_run_min"),
                            *goal(16, 12), note=" (extrapolated)"))  # fmt: skip
    lines.append(Target(f"{agent}: set-up of a run before its first update, without a cache", part, "s",
                        _first_run(part, "set_up_s"), *(goal(40, 20) or (60,))))  # fmt: skip
    lines.append(Target(f"{agent}: peak GPU memory of a short run", part, GIB, _first_run(part, "memory_gib")))
    return lines


GPU = [
    Target("paper: one update, 50x50x64x64x3", "update", MS, _update("update"), 8, 6.5,
           _peer("update", "peers", name="update")),
    Target("v3: one update, 16x64 frames (peer: r2dreamer)", "update_v3", MS, _update("update_v3"), 8, 5,
           _r2dreamer("ms", MS)),
    Target("paper: peak memory of updates", "update", GIB, _update("update", "memory_gib")),
    Target("v3: peak memory of updates (peer: r2dreamer)", "update_v3", GIB, _update("update_v3", "memory_gib"),
           peer=_r2dreamer("memory_gib", GIB)),
    Target("paper: set-up of the agent before its first update, without a cache", "update", "s",
           _update("update", "set_up_s"), 40, 20),
    Target("v3: set-up of the agent before its first update, without a cache", "update_v3", "s",
           _update("update_v3", "set_up_s"), 60),
    Target("paper: two runs on one GPU, updates/s together", "update", "updates/s",
           _several("update", "together_per_s", 2), at_least=True),
    Target("paper: two runs on one GPU, updates/s together over one alone", "update", "x",
           _several("update", "ratio", 2), 1.2, 1.5, at_least=True),
    Target("v3: two runs on one GPU, updates/s together", "update_v3", "updates/s",
           _several("update_v3", "together_per_s", 2), at_least=True),
    Target("v3: two runs on one GPU, updates/s together over one alone", "update_v3", "x",
           _several("update_v3", "ratio", 2), at_least=True),
    Target("paper: Dream-MPC plan, batch 1", "plan", MS, _plan("plan", DEFAULT, 1), 2.5, 1.5),
    Target("paper: Dream-MPC plan, batch 16", "plan", MS, _plan("plan", DEFAULT, 16)),
    Target("paper: Dream-MPC plan, the paper's settings, batch 1", "plan", MS, _plan("plan", PAPER, 1), 2, 1),
    Target("paper: Dream-MPC plan, the paper's settings, batch 8", "plan", MS, _plan("plan", PAPER, 8), 2.5, 1.3),
    Target("paper: CEM plan, batch 1", "plan", MS, _plan("plan", "cem", 1), 6, 4,
           _peer("plan", "peers", name="cem plan, batch 1")),
    *[Target(f"v3: acting step of the policy, batch {n} (peer: r2dreamer)", "plan_v3", MS,
             _plan("plan_v3", "policy", n, "act_ms"), peer=_acting(n)) for n in (1, 16)],
    *[Target(f"v3: {words}, batch {n}", "plan_v3", MS, _plan("plan_v3", planner, n))
      for planner, words in ((DEFAULT, "Dream-MPC plan"), (PAPER, "Dream-MPC plan, the paper's settings"))
      for n in (1, 16)],
    *_of_runs("paper", "", ("off", "on"), goals=True),
    *_of_runs("v3", "_v3", ("on",), goals=False),
    Target("paper: whole run, 1M env steps of cheetah-run, measured", "end_to_end", "min", _whole_run, 16, 12),
]  # fmt: skip
# Lines of which there are earlier figures only.
ONCE = [
    Target("paper: four runs on one GPU, updates/s together over one alone", "update", "x",
           _several("update", "ratio", 4), 1.8, 2.5, at_least=True),
]  # fmt: skip
CPU = [
    Target("paper: one update, 50x50x64x64x3", "update", MS, _update("update"),
           peer=_peer("update", "peers", name="update")),
    Target("paper: one update, times as fast as the peer's", "update", "x",
           lambda r: _peer("update", "peers", name="update")(r) / _update("update")(r), 1.5, at_least=True),
    Target("paper: Dream-MPC plan, settings for CPUs, batch 1", "plan", MS, _plan("plan", "dream-mpc-cpu", 1), 60),
    Target("paper: Dream-MPC plan, the paper's settings, batch 1", "plan", MS, _plan("plan", PAPER, 1), 20),
    Target("v3: one update, 16x64 frames (peer: r2dreamer)", "update_v3", MS, _update("update_v3"),
           peer=_r2dreamer("ms", MS)),
    Target("v3: acting step of the policy, batch 1 (peer: r2dreamer)", "plan_v3", MS,
           _plan("plan_v3", "policy", 1, "act_ms"), peer=_acting(1)),
]  # fmt: skip


def table(results: Results, targets: Sequence[Target]) -> list[dict[str, str]]:
    """A line for each target."""
    return [target.row(results) for target in targets]
