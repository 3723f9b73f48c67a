#!/usr/bin/env python
"""dreamer-mpc on the command line: python run.py [train|eval|compare|sweep|plot|doctor] [options]; default: train."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

USAGE = """usage: python run.py [train] --env cheetah-run --planner dream-mpc    train an agent (the default command)
       python run.py eval --checkpoint RUN --planner dream-mpc,policy    evaluate a checkpoint under planners
       python run.py compare --checkpoint RUN [RUN ...] --planners all   all planners: table, CSV, picture
       python run.py sweep --envs cheetah-run,walker-run --seeds 0,1     many runs at once, each in its own process
       python run.py plot runs/sweep --runs runs/sweep                   draw learning curves beside the paper's
       python run.py doctor                                              can this machine run it?

`eval --help`, `compare --help`, `sweep --help` and `plot --help` list the settings of those; those of train follow.
"""


def train(args: Sequence[str]) -> int:
    """Train an agent, evaluating and saving as it goes; then print the last evaluation under policy and planner."""
    started = time.monotonic()
    from dreamer_mpc.util.stop import Stop, Stopped

    with Stop() as stop:
        try:
            return train_until(stop, args, started)
        except Stopped as stopped:
            print(stopped)
            return 0


def train_until(stop, args: Sequence[str], started: float) -> int:
    """`train`, which raises `Stopped` where `stop` asks for it."""
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.runs.resume import open_run
    from dreamer_mpc.training.setup import claim_folder
    from dreamer_mpc.training.trainer import Trainer
    from dreamer_mpc.util.errors import UserError

    resume, saved = settings.option(args, "resume"), None
    if resume is not None:
        for name in ("config", "run-dir"):
            if settings.option(args, name) is not None:
                raise UserError(f"--{name} does not go with --resume, whose run has its own: leave one of them out")
        if "--overwrite" in args:
            raise UserError("--overwrite does not go with --resume: one starts again, the other goes on")
        saved = open_run(resume)
        default = dataclasses.replace(saved.config, resume=resume, overwrite=False, profile=False)
    else:
        default = settings.load_presets(settings.option(args, "config") or "default")
    config = settings.parse(settings.Config, args, default, prog="run.py train")
    if saved:
        saved.check(config)
        changes = [f"changed from the saved run: {line}" for line in settings.differences(default, config)]
        print(*saved.notes, *changes, sep="\n", end="\n" * bool(saved.notes or changes))
    folder = saved.folder if saved else claim_folder(config)
    with contextlib.closing(Trainer(config, folder, saved and saved.checkpoint, started, stop)) as trainer:
        trainer.run()
        rows = final_rows(trainer, lambda _: stop.check(f"stopped; the run in {folder.path} is complete"))
    Console().print(table_of(rows, trainer.eval_envs.num_envs))
    print(f"run folder: {folder.path}")
    print(f"compare:    python run.py compare --checkpoint {folder.path}")
    return 0


def final_rows(trainer, on_step: Callable[[int], None]) -> list[dict]:
    """The last evaluation, and the bare policy on the same episode seeds beside it; `on_step` as in `evaluate`."""
    from dreamer_mpc.evaluation.episodes import evaluate
    from dreamer_mpc.planners import make_planner

    config = trainer.config
    rows = [{"planner": config.planner, **trainer.evaluation.summary()}]
    if config.planner != "policy" and config.agent == "dreamer":
        policy = make_planner("policy")
        settings = config.eval
        bare = evaluate(
            trainer.agent, policy, trainer.eval_envs, settings.episodes, settings.seed, on_step=on_step
        )
        rows.append({"planner": "policy", **bare.summary()})
    return rows


def table_of(rows: list[dict], batch: int):
    """The results table, saying for how many environments one call plans."""
    from dreamer_mpc.report.progress import results_table

    table = results_table(rows)
    table.caption += f" ms per action: one call of observing and planning, for {batch} environments at once."
    return table


def evaluate_checkpoint(args: Sequence[str]) -> int:
    """Evaluate a checkpoint under each named planner and print one table."""
    import torch
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.config.make import load_agent, make_envs, side_by_side_envs
    from dreamer_mpc.evaluation.compare import VIDEO_STEPS, Subject
    from dreamer_mpc.evaluation.episodes import evaluate
    from dreamer_mpc.evaluation.visualize import write_visuals
    from dreamer_mpc.util.device import choose_device, device_name
    from dreamer_mpc.util.errors import UserError

    checkpoint = settings.option(args, "checkpoint")
    subject = None if checkpoint is None else Subject.load(checkpoint)
    default = subject and settings.with_planners_of(subject.trained, settings.EvalConfig(checkpoint=checkpoint))
    config = settings.parse(settings.EvalConfig, args, default, prog="run.py eval")
    names = config.planner or ("dream-mpc,policy" if subject.trained.agent == "dreamer" else "cem")
    planners = {name: settings.planner_from(config, name) for name in settings.planner_names(names)}
    for name, planner in planners.items():
        settings.check_runs(name, planner, subject.trained, f"{subject.path} holds")
    device = choose_device(config.device)
    trained = dataclasses.replace(
        subject.trained,
        env=config.env or subject.trained.env,
        compile=config.compile,
        render_quality=config.render_quality or subject.trained.render_quality,
    )
    envs = make_envs(trained, side_by_side_envs(config.num_envs, config.episodes), device)
    out = Path(config.out) if config.out else subject.run / "eval"
    rows, console = [], Console()
    try:
        agent = load_agent(subject.checkpoint, trained, envs.single_action_space.shape[0], device)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {out} ({error.strerror}): name another folder with --out") from error
        for name, planner in planners.items():
            with console.status(f"{name}: {config.episodes} episodes of {trained.env}"):
                recorded_steps = VIDEO_STEPS if config.video else 0
                result = evaluate(agent, planner, envs, config.episodes, config.seed, recorded_steps)
            rows.append({"planner": name, **result.summary(), "returns": result.returns.tolist()})
            if config.video:
                for file in write_visuals(out / name, agent, planner, result, trained.env):
                    print(f"wrote {file}")
    finally:
        envs.close()
    console.print(table_of(rows, envs.num_envs))
    record = {
        "checkpoint": str(subject.path),
        "env": trained.env,
        "env_steps": subject.checkpoint.counters.env_steps,
        "seed": config.seed,
        "num_envs": envs.num_envs,
        "device": device_name(device),
        "torch": torch.__version__,
        "results": rows,
    }
    (out / "eval.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {out / 'eval.json'}")
    return 0


def compare_checkpoints(args: Sequence[str]) -> int:
    """Evaluate checkpoints under every planner, on the same episode seeds: table, CSV and picture."""
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.evaluation.compare import Comparison, Subject
    from dreamer_mpc.report.progress import comparison_table

    checkpoint = settings.option(args, "checkpoint")
    first = None if checkpoint is None else Subject.load(checkpoint)
    default = first and settings.with_planners_of(first.trained, settings.CompareConfig(checkpoint=(checkpoint,)))
    config = settings.parse(settings.CompareConfig, args, default, prog="run.py compare")
    comparison = Comparison(config, [first, *map(Subject.load, config.checkpoint[1:])])
    if comparison.left_out:
        print(f"left out, as they need an actor or a critic: {', '.join(comparison.left_out)}")
    try:
        comparison.play()
    except KeyboardInterrupt:
        how = "without --overwrite " if config.overwrite else ""
        print(f"\ninterrupted: the same command {how}goes on from here", file=sys.stderr)
        return 130
    rows, folder = comparison.finish(), comparison.record.folder
    # A file or pipe has no width of its own; long labels should stay on their line there.
    Console(width=None if sys.stdout.isatty() else 120).print(comparison_table(rows))
    print(f"wrote {folder / 'compare.csv'}, {folder / 'compare.png'}; every episode: {folder / 'episodes.csv'}")
    return 0


def sweep_runs(args: Sequence[str]) -> int:
    """Train every planner in every environment with every seed, several runs at once; 1 where one failed."""
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.report.progress import SweepProgress, plural
    from dreamer_mpc.sweeps.launch import LocalLauncher, alone_in, choose_gpus
    from dreamer_mpc.sweeps.sweep import Sweep, list_runs
    from dreamer_mpc.util.stop import Stop, Stopped

    config, rest = settings.parse_some(settings.SweepConfig, args, prog="run.py sweep")
    runs = list_runs(config, rest)
    launcher = LocalLauncher(config.jobs_per_gpu, choose_gpus(runs[0].config.device))
    sweep = Sweep(runs, launcher, Path(config.out) / "logs", config.restarts)
    # A file or pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 160)
    with alone_in(Path(config.out)), Stop() as stop, SweepProgress(sweep.entries, console=console) as progress:
        try:
            sweep.work(stop, progress.update)
        except Stopped as stopped:
            progress.line(str(stopped))
            return 0
    for entry in sweep.failed:
        print(f"failed: {entry.run.name} ({entry.reason}); what it printed: {sweep.log(entry)}", file=sys.stderr)
    print(f"{plural(len(runs) - len(sweep.failed), 'run')} of {len(runs)} complete in {config.out}")
    print(f"curves: python run.py plot {config.out} --runs {config.out}")
    return 1 if sweep.failed else 0


def plot_folder(args: Sequence[str]) -> int:
    """Draw the figures of a folder from its CSV files, gathered from runs first where some are given."""
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.report.curves import read_curves
    from dreamer_mpc.report.plot import final_table, plot

    config = settings.parse(settings.PlotConfig, args, prog="run.py plot")
    written = plot(Path(config.folder), config.runs, config.until)
    if config.runs:
        Console(width=None if sys.stdout.isatty() else 120).print(final_table(read_curves(written[0])))
    for path in written:
        print(f"wrote {path}")
    return 0


def doctor(args: Sequence[str]) -> int:
    """Say whether this machine can run the project."""
    from dreamer_mpc.report.doctor import doctor
    from dreamer_mpc.util.errors import UserError

    if args:
        raise UserError("doctor takes no options")
    return doctor()


# Of training, and of playing episodes.
OUT_OF_MEMORY = {
    True: "out of memory: lower --replay.batch-size, --replay.sequence-length, --behavior.horizon or --num-envs, "
    "or keep the replay elsewhere (--replay.storage ram or memmap)",
    False: "out of memory: lower --num-envs, or the candidates of the planner (such as --cem.candidates)",
}


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the host had no memory left."""
    import torch

    words = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate_checkpoint,
    "compare": compare_checkpoints,
    "sweep": sweep_runs,
    "plot": plot_folder,
    "doctor": doctor,
}


def main(args: Sequence[str]) -> int:
    """Run one command; errors that a user can mend are one line and exit code 2."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        args = ["train", "--help"]
    word, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("train", args)
    from dreamer_mpc.util.errors import UserError
    from envs import EnvError

    try:
        if word not in COMMANDS:
            raise UserError(f"unknown command {word!r}: known are {', '.join(COMMANDS)}")
        return COMMANDS[word](rest)
    except (UserError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY[word == 'train']}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
