"""The command that plays a comparison's episodes again, whatever settings its checkpoints have for the planners."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dreamer_mpc.config import PlannerSettings, completed_settings, planner_from, planner_presets, preset_kind
from dreamer_mpc.planners import PLANNERS
from dreamer_mpc.util.program import program


def compare_command(rows: Sequence[dict[str, Any]], made_with: dict[str, Any]) -> str:
    """The command line, for a shell.

    `rows` are those of compare.csv and `made_with` is compare.json. Every setting of a planner is in it, as `compare`
    takes those that are not given from the first checkpoint, which need not be there to be read.
    """
    names = [row["planner"] for row in rows]
    planners = ",".join(name for name in names if " " not in name)
    swept = [f"{name}.{':'.join(rest)}" for name, *rest in (n.split() for n in names) if rest]
    words = [*program("compare").split(), "--checkpoint", *made_with["checkpoints"]]
    words += ["--planners", planners] if planners else []
    words += ["--sweep", *swept] if swept else []
    words += ["--episodes", str(rows[0]["episodes"])]
    words += ["--seed", str(made_with["seed"])] if "seed" in made_with else []
    words += ["--num-envs", str(rows[0]["num_envs"]), "--render-quality", str(made_with.get("render_quality"))]
    for kind, group in _groups(_settings(names, made_with)).items():
        words += [word for key, value in group.items() for word in _flag(f"{kind}.{key}", value)]
    return shlex.join(words)


def changed_presets(rows: Sequence[dict[str, Any]], made_with: dict[str, Any]) -> list[str]:
    """`preset (key old -> new)` for each preset that has other settings in this version, which no command can undo."""
    changed = {}
    for label, values in _settings([row["planner"] for row in rows], made_with).items():
        name, *varied = label.split()
        if name not in planner_presets():
            continue
        now = json.loads(json.dumps(asdict(planner_from(PlannerSettings(), name))))
        given = {"discount", *(word.partition("=")[0] for word in varied)}
        other = [key for key in values if key not in given and key in now and values[key] != now[key]]
        if other:
            changed[name] = f"{name} ({other[0]} {values[other[0]]} -> {now[other[0]]})"
    return list(changed.values())


def _settings(labels: Sequence[str], made_with: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of each label that compare.json has."""
    known = made_with["planners"]
    return {label: completed_settings(known[label]) for label in labels if isinstance(known.get(label), dict)}


def _groups(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """kind of planner -> the settings of its group on the command line, from those of each label.

    A preset of the kind takes its discount alone from there; what a sweep varies is on the command line already.
    """
    groups: dict[str, dict[str, Any]] = {}
    for label, values in settings.items():
        name, *varied = label.split()
        if name not in PLANNERS and name not in planner_presets():  # of another version
            continue
        own = {word.partition("=")[0] for word in varied}
        read = values if name in PLANNERS else {key: values[key] for key in ("discount",) if key in values}
        group = groups.setdefault(preset_kind(name), {})
        group |= {key: value for key, value in read.items() if key not in own | group.keys()}
    return groups


def _flag(key: str, value: Any) -> list[str]:
    """The words that give a setting a value, as the command line reads them."""
    flag = key.replace("_", "-")
    if isinstance(value, bool):
        group, _, name = flag.partition(".")
        return [f"--{flag}" if value else f"--{group}.no-{name}"]
    return [f"--{flag}", *map(str, value)] if isinstance(value, (list, tuple)) else [f"--{flag}", str(value)]
