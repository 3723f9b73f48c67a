"""What runs are called: task, method and seed, from their settings and from those that a resume has changed."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from dreamer_mpc.config import Config, load_saved
from dreamer_mpc.report.rows import DRAWN_WITH, drawn_by
from dreamer_mpc.runs.folder import RunFolder, family_of

# Names in papers of agents that are trained and evaluated with the same planner.
METHODS = {"policy": "dreamer", "cem": "planet"}
# Settings that a name depends on and that a resume may change.
NAMED = ("planner", "train_planner", "policy.sample", "render_quality", "eval.render_quality", "seed")
# Settings that make another task of an environment.
OF_TASK = ("env_args", "camera", "image_size", "grayscale", "frame_stack", "max_env_steps")
MARK = "changed/"  # of a record of metrics, with a setting behind it


class Called(NamedTuple):
    """A run in curves, tables and pages."""

    task: str
    method: str
    seed: int


def method_of(config: Config) -> str:
    """The method's name: the planner's, but `dreamer` for the bare policy and `planet` for CEM without an actor.

    Another planner in training is part of it, and so are the policy's samples, pictures by warp and another render
    quality in evaluations.
    """
    return f"{_acts_by(config)}{drawn_by(config.evaluated_in, config.render_quality)}"


def _acts_by(config: Config) -> str:
    name = METHODS.get(config.planner, config.planner)
    if config.planner == "cem" and config.agent == "dreamer":
        name = "cem"
    name += ", by samples" if config.planner == "policy" and config.policy.sample else ""
    return name + ("" if config.trained_by == config.planner else f", trained with {config.trained_by}")


@dataclass(frozen=True)
class Stretch:
    """A part of a run with the same settings: from `start` env steps on, with so many evaluations."""

    start: int
    config: Config | None  # None: not known
    evaluations: int


@dataclass(frozen=True)
class History:
    """The settings of a run from its start to its last evaluation, and those that it has now."""

    config: Config
    stretches: tuple[Stretch, ...]
    lost: int | None = None  # env steps, where settings changed from what is not known
    changes: tuple[str, ...] = ()  # in words

    @classmethod
    def read(cls, folder: Path, records: Sequence[dict[str, Any]]) -> "History":
        """Of a run with these records of metrics.jsonl, in which a resume marks the settings that it changes.

        UserError where config.yaml cannot be read. versions.json has the settings before; they are not known where it
        lacks them.
        """
        config = load_saved(RunFolder(folder).config)
        marks: list[tuple[int, set[str]]] = [(0, set())]
        evaluations = [0]
        for record in records:
            if names := {key.removeprefix(MARK) for key in record if key.startswith(MARK)}:
                marks.append((int(record["env_steps"]), names))
                evaluations.append(0)
            evaluations[-1] += "eval/return_mean" in record
        entries, known, lost, stretches, words = _changes(folder), config, None, [], []
        for (start, names), count in zip(reversed(marks), reversed(evaluations), strict=True):
            if count or stretches:  # what came after the last evaluation is not seen
                stretches.append(Stretch(start, known, count))
            if names:
                values = next((entry for at, entry in entries if (at, entry.keys()) == (start, names)), {})
                before = known and _before(known, names, values)
                lost = start if known and not before else lost
                known = before
                changed = ", ".join(f"{name}: {values[name]}" if values else name for name in sorted(names))
                words.append(f"after {start:,} env steps, {changed}")
        return cls(config, tuple(reversed(stretches)), lost, tuple(reversed(words)))

    def called(self, of_agent: str = "", of_task: str = "") -> Called:
        """The name of its evaluations, with these ends of method and task.

        Where a resume changed what is in the name, it says from which env step on.
        """
        task, parts = f"{self.config.env}{of_task}", _as_evaluated(self.stretches)
        if any(config is None for _, config in parts):
            name = f"{_acts_by(self.config)}{of_agent}, settings changed at {self.lost:,} env steps"
            return Called(task, name, self.config.seed)
        parts = parts or [(0, self.config)]
        acts = _then([(start, _acts_by(config) + of_agent) for start, config in parts])
        seeds = _then([(start, f"seed {config.seed}") for start, config in parts])
        first = f"seed {parts[0][1].seed}"
        return Called(task, f"{acts}{seeds.removeprefix(first)}{_drawn(parts)}", parts[0][1].seed)


def call(histories: Sequence[History]) -> list[Called]:
    """The names of runs that are shown together.

    Where they are of several base agents or action repeats, methods name those that are not the paper's; where an
    environment is there as several tasks, tasks name what is not usual.
    """
    usual, configs = Config(), [history.config for history in histories]
    families, repeats = {family_of(config) for config in configs}, {config.action_repeat for config in configs}
    tasks = Counter(config.env for config in {_task(config): config for config in configs}.values())
    called = []
    for history, config in zip(histories, configs, strict=True):
        agent = f", {family_of(config)}" if len(families) > 1 and family_of(config) else ""
        if len(repeats) > 1 and config.action_repeat != usual.action_repeat:
            agent += f", action repeat {config.action_repeat}"
        task = ""
        if tasks[config.env] > 1:
            task = "".join(_in_words(key, getattr(config, key)) for key in OF_TASK if _differs(key, config, usual))
        called.append(history.called(agent, task))
    return called


def _task(config: Config) -> tuple[Any, ...]:
    return config.env, *(getattr(config, key) for key in OF_TASK)


def _differs(key: str, one: Config, other: Config) -> bool:
    return getattr(one, key) != getattr(other, key)


def _in_words(key: str, value: Any) -> str:
    """`, image size 84`, `, grayscale`, `, gravity=2`: a setting at the end of a task's name."""
    if isinstance(value, tuple):
        return f", {' '.join(value)}"
    return f", {key.replace('_', ' ')}" + ("" if value is True else f" {value}")


def _changes(folder: Path) -> list[tuple[Any, dict[str, str]]]:
    """Env steps and `old -> new` by setting, of each start of a run that changed settings; the last one first."""
    try:
        last = json.loads(RunFolder(folder).versions.read_text(encoding="utf-8"))
        starts = [start["changed"] for start in [last, *reversed(last.get("earlier", []))] if "changed" in start]
        return [
            (start["env_steps"], {key: value for key, value in start.items() if key != "env_steps"}) for start in starts
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _before(config: Config, names: set[str], changes: dict[str, str]) -> Config | None:
    """`config` before `changes` of the settings `names`, as far as names of runs depend on it.

    None if that fails, or if they made another task of the environment, which one name of a run cannot say.
    """
    if names.intersection(OF_TASK):
        return None
    for name in names.intersection(NAMED):
        old, _, new = str(changes.get(name)).partition(" -> ")
        if new != str(attrgetter(name)(config)):
            return None
        group, _, setting = name.rpartition(".")
        try:
            inner = dataclasses.replace(attrgetter(group)(config) if group else config, **{setting: _value(old)})
            config = dataclasses.replace(config, **{group: inner}) if group else inner
        except (TypeError, ValueError):
            return None
    return config


def _value(text: str) -> Any:
    words = {"None": None, "True": True, "False": False}
    return words.get(text, int(text) if text.isdecimal() else text)


def _as_evaluated(stretches: Sequence[Stretch]) -> list[tuple[int, Config | None]]:
    """Start and settings of each; a stretch without an evaluation counts as evaluated like the one after it."""
    parts: list[tuple[int, Config | None]] = []
    for stretch in reversed(stretches):
        config, after = stretch.config, parts[-1][1] if parts else None
        if not stretch.evaluations and config and after:
            drawn = dataclasses.replace(config.eval, render_quality=after.evaluated_in)
            config = dataclasses.replace(
                config, planner=after.planner, train_planner=config.trained_by, policy=after.policy, eval=drawn
            )
        parts.append((stretch.start, config))
    return parts[::-1]


def _then(names: Sequence[tuple[int, str]]) -> str:
    """The first name, and each that differs from the one before it with its env step."""
    changed = [one for before, one in zip(names, names[1:], strict=False) if before[1] != one[1]]
    return names[0][1] + "".join(f", from {start:,} env steps {name}" for start, name in changed)


def _drawn(parts: Sequence[tuple[int, Config]]) -> str:
    """The end of a method's name that says what drew its evaluations, as `drawn_by` does, and where that changed."""
    ends = [(start, drawn_by(config.evaluated_in, config.render_quality)) for start, config in parts]
    pairs = {(config.evaluated_in, config.render_quality) for _, config in parts}
    if len(pairs) == 1:
        return ends[0][1]
    named = [
        (start, f"with {config.evaluated_in}{end.partition(config.evaluated_in)[2]}")
        for (start, config), (_, end) in zip(parts, ends, strict=True)
    ]
    return DRAWN_WITH.removesuffix("with ") + _then(named)


def named_apart(called: Sequence[Called], folders: Sequence[Path]) -> list[Called]:
    """These names, with the folder behind the method of a run that would have the name of one before it."""
    apart: list[Called] = []
    for name, folder in zip(called, folders, strict=True):
        again = [name, name._replace(method=f"{name.method}, {folder.name}")]
        again.append(name._replace(method=f"{name.method}, {os.fspath(folder)}"))
        apart.append(next((one for one in again if one not in apart), again[-1]))
    return apart
