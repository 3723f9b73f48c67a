"""`run.py train`. Slow imports come after the signal handler is set up, and their time is counted."""

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamer_mpc.util.ending import tracebacks_in
from dreamer_mpc.util.program import program
from dreamer_mpc.util.stop import Stop, Stopped
from dreamer_mpc.util.threads import wait_passively

if TYPE_CHECKING:
    from dreamer_mpc.config import Config
    from dreamer_mpc.report.rows import Row
    from dreamer_mpc.runs.resume import SavedRun
    from dreamer_mpc.training.trainer import Trainer


def main(args: Sequence[str]) -> int:
    """Train an agent with evaluations and checkpoints; finally print the last evaluation under policy and planner.

    The exit code is 0, also of a run that was asked to stop and has saved, except by Ctrl-C: then 130.
    """
    started = time.monotonic()
    wait_passively()
    with Stop() as stop:
        try:
            _train(stop, args, started)
        except Stopped as stopped:
            print(stopped)
            return stop.code
    return 0


def _train(stop: Stop, args: Sequence[str], started: float) -> None:
    """Raises `Stopped` when `stop` requests it."""
    from dreamer_mpc.report.console import print_table
    from dreamer_mpc.report.rows import drawn_by
    from dreamer_mpc.report.tables import results_table
    from dreamer_mpc.training.initial import Initial
    from dreamer_mpc.training.setup import claim_folder
    from dreamer_mpc.training.trainer import Trainer

    with contextlib.ExitStack() as owned:
        config, saved = _settings(args, owned)
        if saved is None:
            folder, initial = claim_folder(config, owned)
        else:  # a run that was killed before its first checkpoint starts again
            folder, initial = saved.folder, None if saved.checkpoint else Initial.of(config)
        owned.enter_context(tracebacks_in(folder.path))
        trainer = Trainer(config, folder, saved and saved.checkpoint, started, stop, initial)
        owned.enter_context(contextlib.closing(trainer))
        trainer.run()
        trainer.evaluator.on_step = lambda: stop.check(f"stopped; the run in {folder.path} is complete")
        rows = _final_rows(trainer)
    world = drawn_by(config.evaluated_in, config.render_quality)
    print_table(results_table(rows, f"{config.env}, {trainer.counters.env_steps:,} env steps{world}"))
    if "quick" in config.config.split(","):
        print("quick shows that everything works: so short a run learns little, whatever its returns")
    print(f"run folder: {folder.path}")
    if any(folder.videos.glob("*.mp4")):
        print(f"videos:     {folder.videos}")
    print(f"compare:    {program('compare')} --checkpoint {shlex.quote(str(folder.path))}")


def _settings(args: Sequence[str], owned: contextlib.ExitStack) -> "tuple[Config, SavedRun | None]":
    """The run that `args` describe: a new one, or with --resume an old one with its settings, unless given again.

    The folder of an old one is locked until `owned` is closed. Raises `Stopped` where it is complete.
    """
    from dreamer_mpc import config as settings
    from dreamer_mpc.runs.folder import RunFolder
    from dreamer_mpc.runs.resume import open_run
    from dreamer_mpc.training.setup import check_resumed
    from dreamer_mpc.util.errors import UserError
    from dreamer_mpc.util.owner import alone_in

    resume = settings.option(args, "resume")
    for flag in ("planner", "train-planner"):
        name = settings.option(args, flag)
        if name in settings.planner_presets():
            kind, preset = settings.preset_kind(name), f"planner/{name}"
            raise UserError(f"{name} is a preset: train with --{flag} {kind} --config default,{preset}")
    if settings.flag_names(args).count("config") > 1:  # only one of them would be read
        raise UserError("--config is given twice: give it once, with presets joined by commas")
    if resume is None:
        default = settings.load_presets(settings.option(args, "config") or "default")
        given = settings.parse(settings.Config, args, default, prog=program("train"))
        config, asked = settings.evaluated_alike(given, args), given.eval.render_quality
        if config.eval.render_quality != asked:
            drawn = f"evaluations are drawn with {config.evaluated_in}, as training is"
            print(f"{drawn}: the {asked} of the presets does not go with --render-quality {config.render_quality}")
        return config, None
    if settings.option(args, "init-from") is not None:
        raise UserError("--init-from does not go with --resume, whose run has its own weights: leave one of them out")
    for name in ("config", "run-dir"):
        if settings.option(args, name) is not None:
            raise UserError(f"--{name} does not go with --resume, whose run has its own: leave one of them out")
    if "overwrite" in settings.flag_names(args):
        raise UserError("--overwrite does not go with --resume: one starts again, the other goes on")
    owned.enter_context(alone_in(RunFolder.open(resume).path, "wait for it, or stop it first"))
    saved = open_run(resume)
    default = dataclasses.replace(saved.config, resume=resume)
    config = settings.parse(settings.Config, args, default, prog=program("train"))
    changes = settings.differences(default, config)
    check_resumed(saved, config, bool(changes))
    lines = [*saved.notes, *(f"changed from the saved run: {line}" for line in changes)]
    print(*lines, sep="\n", end="\n" * bool(lines))
    return config, saved


def _final_rows(trainer: "Trainer") -> "list[Row]":
    """The last evaluation, and one of the bare policy on the same episode seeds."""
    from dreamer_mpc.report.words import plural
    from dreamer_mpc.runs.checkpoint import find_checkpoint

    config = trainer.config
    rows = [trainer.evaluation.row(config.planner)]
    if config.planner != "policy" and config.agent == "dreamer":
        print(f"evaluating the bare policy on the same {plural(config.eval.episodes, 'episode')}", flush=True)
        bare = trainer.evaluator.under("policy", find_checkpoint(trainer.folder.path)).evaluation
        if mishaps := bare.mishaps():
            print(f"policy: {mishaps}")
        rows.append(bare.row("policy"))
    return rows
