"""`run.py eval` and `run.py compare`: both play a `Comparison`, and each writes its own result files."""

import json
import sys
from collections.abc import Sequence

import torch

from dreamer_mpc import config as settings
from dreamer_mpc.evaluation.compare import Comparison
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.planners import Planner, Policy
from dreamer_mpc.report.console import print_table, table_console
from dreamer_mpc.report.plot import COMPARE, draw_comparison
from dreamer_mpc.report.rows import drawn_by, to_comparison, to_evaluation
from dreamer_mpc.report.tables import comparison_table, results_table
from dreamer_mpc.util.device import device_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import to_csv
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.program import program
from dreamer_mpc.util.stop import INTERRUPTED

ANOTHER = "wait for it, or name another folder with --out"


def evaluate_checkpoint(args: Sequence[str]) -> int:
    """Evaluate a checkpoint under each named planner and print one table."""
    checkpoint = settings.option(args, "checkpoint")
    subject = None if checkpoint is None else Subject.load(checkpoint)
    default = subject and settings.with_planners_of(subject.trained, settings.EvalConfig(checkpoint=checkpoint))
    config = settings.parse(settings.EvalConfig, args, default, prog=program("eval"))
    with alone_in(config.out or subject.run.evaluation, ANOTHER):
        return _evaluate(config, subject)


def _evaluate(config: settings.EvalConfig, subject: Subject) -> int:
    comparison = Comparison.of_one(config, subject)
    env, episodes, trained_on = comparison.trained.env, comparison.record, subject.trained.env
    if env != trained_on:
        print(f"playing {env} with an agent that was trained on {trained_on}: leave --env out to play that")
    _say_whose_settings(config, comparison.planners)
    comparison.play()
    rows = comparison.rows()
    elsewhere = f", trained on {trained_on}" if env != trained_on else ""
    steps = subject.checkpoint.counters.env_steps
    name = "" if _name(subject) == env else f": {_name(subject)}"
    quality, own = comparison.trained.render_quality, subject.trained.render_quality
    world = drawn_by(quality, own)
    print_table(results_table(rows, f"{env}{name}{elsewhere}, {steps:,} env steps{world}"))
    results = [
        {**to_evaluation(row), "returns": [episode["return"] for episode in episodes.of(row["planner"], name)]}
        for row in rows
        for name in comparison.subjects
    ]
    record = {
        "checkpoint": str(subject.path),
        "env": env,
        "render_quality": quality,
        **({} if own == quality else {"trained_with": own}),  # render quality
        "env_steps": subject.checkpoint.counters.env_steps,
        "seed": config.seed,
        "num_envs": rows[0]["num_envs"],
        "device": device_name(comparison.device),
        "torch": torch.__version__,
        "results": results,
    }
    episodes.write("eval.json", json.dumps(record, indent=1) + "\n")
    print(f"wrote {episodes.folder / 'eval.json'}")
    return 0


def _say_whose_settings(config: settings.PlaySettings, planners: dict[str, Planner]) -> None:
    """A line for each planner that has other settings than this version's, as its checkpoint was trained with them."""
    for name in [name for name in planners if f"{name}-default" in settings.planner_presets()]:
        if planners[name] != settings.planner_from(config, f"{name}-default"):
            print(f"{name} has the settings of the checkpoint or the command; {name}-default has this version's")
    if planners.get("policy") == Policy(sample=True):
        print("policy executes samples, by the settings of the checkpoint or the command; --policy.no-sample: its mode")


def _worlds(comparison: Comparison) -> str:
    """What drew the episodes and those that the agents were trained in, if the two differ or warp did both."""
    own = [subject.trained.render_quality for subject in comparison.subjects.values()]
    return drawn_by(comparison.trained.render_quality, *own).removeprefix(", ")


def _name(subject: Subject) -> str:
    """The folder of a checkpoint's run."""
    return subject.run.path.resolve().name


def compare_checkpoints(args: Sequence[str]) -> int:
    """Evaluate checkpoints under every planner, on the same episode seeds: table, CSV and picture."""
    checkpoint = settings.option(args, "checkpoint")
    first = None if checkpoint is None else Subject.load(checkpoint)
    default = first and settings.with_planners_of(first.trained, settings.CompareConfig(checkpoint=(checkpoint,)))
    config = settings.parse(settings.CompareConfig, args, default, prog=program("compare"))
    subjects = [first, *map(Subject.load, config.checkpoint[1:])]
    with alone_in(config.out or first.run.comparison, ANOTHER):  # before its episodes are read
        return _compare(config, subjects)


def _compare(config: settings.CompareConfig, subjects: list[Subject]) -> int:
    comparison = Comparison.of_several(config, subjects)
    if comparison.left_out:
        print(f"left out, as they need an actor or a critic: {', '.join(comparison.left_out)}")
    for note in comparison.record.notes:
        print(note)
    _say_whose_settings(config, comparison.planners)
    try:
        comparison.play()
    except KeyboardInterrupt:
        how = "without --overwrite " if config.overwrite else ""
        print(f"\ninterrupted: the same command {how}goes on from here", file=sys.stderr)
        return INTERRUPTED
    rows, record = comparison.rows(), comparison.record
    print_table(comparison_table(rows, _worlds(comparison)), table_console(120))
    folder = record.folder
    record.keep()
    record.write(COMPARE, to_csv(map(to_comparison, rows)))
    written = ["compare.csv"]
    try:
        draw_comparison(folder)
        written.append("compare.png")
    except UserError as error:
        print(f"no picture: {error}")
    print(f"wrote {', '.join(str(folder / name) for name in written)}; every episode: {folder / 'episodes.csv'}")
    return 0
