"""The list of a sweep's runs."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import yaml

from dreamer_mpc.config import (
    Config,
    SweepConfig,
    check_start,
    differences,
    evaluated_alike,
    flag_names,
    load_presets,
    load_saved,
    option,
    parse,
    planner_names,
    resolve,
)
from dreamer_mpc.config.load import whole
from dreamer_mpc.runs.folder import RunFolder, run_name
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.program import program

OWN = ("env", "planner", "seed", "run-dir", "resume", "overwrite")  # options that a sweep sets for each run, or forbids
MAY_DIFFER = (  # of an existing run
    "env_steps", "run_dir", "resume", "profile", "device", "render_device", "logger", "config", "eval.beside",
)  # fmt: skip


def list_runs(sweep: SweepConfig, rest: Sequence[str]) -> list[Run]:
    """One run for each environment, planner and seed, with the options `rest`. UserError where one is invalid."""
    for name in OWN:
        if name in flag_names(rest):
            help_ = f"{program('sweep')} --help"
            raise UserError(f"--{name} does not go with sweep, which sets it for each run: see {help_}")
    envs, planners, seeds = _words(sweep.envs), planner_names(sweep.planners), _seeds(sweep.seeds)
    default = load_presets(option(rest, "config") or "default")
    given = {name: parse(Config, [*rest, "--planner", name], default, prog=program("sweep")) for name in planners}
    parsed = {name: evaluated_alike(config, rest) for name, config in given.items()}
    runs, known = [], {}
    for env, planner, seed in itertools.product(envs, planners, seeds):
        folder = RunFolder(Path(sweep.out) / run_name(env, planner, str(seed)))
        config = dataclasses.replace(parsed[planner], env=env, seed=seed, run_dir=str(folder.path))
        config = resolve(config)
        check_start(config)
        if config.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {config.device}: a sweep gives each run its GPU; leave it out, or say cpu")
        own = ("--env", env, "--planner", planner, "--seed", str(seed), "--run-dir", str(folder.path))
        runs.append(Run(folder, config.env_steps, config.device, (*rest, *own), _changes(folder, config, known)))
    return runs


def _seeds(text: str) -> list[int]:
    """Each seed once, however it is written: 1e2 is 100, and 00 is 0."""
    try:
        return list(dict.fromkeys(map(whole, _words(text))))
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers joined by commas, 0,1,2") from error


def _words(text: str) -> list[str]:
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UserError(f"{text!r} names nothing: give one or more, joined by commas")
    return words


def _saved(path: Path, known: dict[str, Config]) -> Config:
    """The settings of an existing run. Checking them takes a tenth of a second: where only env and seed differ from
    those of a run that is in `known`, they are taken from there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        own = [line for line in lines if line.startswith(("env: ", "seed: "))]
        values = yaml.safe_load("\n".join(own))
    except (OSError, ValueError, yaml.YAMLError):
        return load_saved(path)
    if len(own) != 2 or {name: type(value) for name, value in values.items()} != {"env": str, "seed": int}:
        return load_saved(path)
    others = "\n".join(line for line in lines if line not in own)
    if others not in known:
        known[others] = load_saved(path)
    return dataclasses.replace(known[others], **values)


def _changes(folder: RunFolder, config: Config, known: dict[str, Config]) -> tuple[str, ...]:
    """The options that an existing run is resumed with, where they are other ones than it had.

    UserError where the folder holds a run with other settings: the sweep would continue it with those.
    """
    if not folder.config.exists():
        return ()
    saved = _saved(folder.config, known)
    other = [line for line in differences(saved, config) if line.partition(":")[0] not in MAY_DIFFER]
    if other:
        raise UserError(f"{folder.path} has a run with other settings ({other[0]}): choose another --out")
    names = [name for name in ("device", "render_device", "logger") if getattr(saved, name) != getattr(config, name)]
    given = [word for name in names for word in (f"--{name.replace('_', '-')}", getattr(config, name))]
    return (*given, *["--profile"] * config.profile)
