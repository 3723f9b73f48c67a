#!/usr/bin/env python
"""dreamer-mpc on the command line: python run.py [train|eval|doctor] [options]; train is the default."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

USAGE = """usage: python run.py [train] --env cheetah-run --planner dream-mpc    train an agent (the default command)
       python run.py eval --checkpoint RUN --planner dream-mpc,policy    evaluate a checkpoint under planners
       python run.py doctor                                              can this machine run it?

`eval --help` lists the settings of eval; those of train follow.
"""


def train(args: Sequence[str]) -> int:
    """Train an agent, evaluating and saving as it goes; then print the last evaluation under policy and planner."""
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.checkpoint import load_checkpoint
    from dreamer_mpc.errors import UserError
    from dreamer_mpc.train import Trainer, prepare

    resume = settings.option(args, "resume")
    if resume is not None:
        for name in ("config", "run-dir"):
            if settings.option(args, name) is not None:
                raise UserError(f"--{name} does not go with --resume, whose run has its own: leave one of them out")
        saved = settings.config_from_dict(load_checkpoint(resume)["config"], resume)
        default = dataclasses.replace(saved, resume=resume, overwrite=False)
    else:
        default = settings.load_presets(settings.option(args, "config") or "default")
    config = settings.parse(settings.Config, args, default, prog="run.py train")
    if resume:
        for line in settings.differences(default, config):
            print(f"changed from the saved run: {line}")
    folder, payload = prepare(config)
    trainer = Trainer(config, folder, payload)
    try:
        trainer.run()
        rows = final_rows(trainer)
    finally:
        trainer.close()
    Console().print(table_of(rows, trainer.eval_envs.num_envs))
    print(f"run folder: {folder.path}")
    print(f"evaluate:   python run.py eval --checkpoint {folder.path} --planner dream-mpc,policy")
    return 0


def final_rows(trainer) -> list[dict]:
    """The last evaluation, and the bare policy on the same episode seeds beside it."""
    from dreamer_mpc.evaluate import evaluate
    from dreamer_mpc.planners import make_planner

    config = trainer.config
    rows = [{"planner": config.planner, **trainer.evaluation.summary()}]
    if config.planner != "policy":
        policy = make_planner("policy")
        bare = evaluate(trainer.agent, policy, trainer.eval_envs, config.eval.episodes, config.eval.seed)
        rows.append({"planner": "policy", **bare.summary()})
    return rows


def table_of(rows: list[dict], batch: int):
    """The results table, saying for how many environments one call plans."""
    from dreamer_mpc.progress import results_table

    table = results_table(rows)
    table.caption = f"ms per action: one call of observing and planning, for {batch} environments at once"
    return table


def evaluate_checkpoint(args: Sequence[str]) -> int:
    """Evaluate a checkpoint under each named planner and print one table."""
    import torch
    from rich.console import Console

    from dreamer_mpc import config as settings
    from dreamer_mpc.checkpoint import find_checkpoint, load_checkpoint
    from dreamer_mpc.device import choose_device, device_name
    from dreamer_mpc.errors import UserError
    from dreamer_mpc.evaluate import evaluate
    from dreamer_mpc.train import load_agent, make_envs, side_by_side_envs, write_visuals

    checkpoint = settings.option(args, "checkpoint")
    default = None
    if checkpoint is not None:
        path = find_checkpoint(checkpoint)
        payload = load_checkpoint(path)
        trained = settings.config_from_dict(payload["config"], str(path))
        default = settings.EvalConfig(checkpoint=checkpoint, dream_mpc=trained.dream_mpc)
    config = settings.parse(settings.EvalConfig, args, default, prog="run.py eval")
    names = [name.strip() for name in config.planner.split(",") if name.strip()]
    planners = {name: settings.planner_from(config, name) for name in names}
    if not planners:
        raise UserError("--planner names no planner: give one or more, joined by commas")
    device = choose_device(config.device)
    trained = dataclasses.replace(
        trained,
        env=config.env or trained.env,
        compile=config.compile,
        render_quality=config.render_quality or trained.render_quality,
    )
    envs = make_envs(trained, side_by_side_envs(config.num_envs, config.episodes), device)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    out = Path(config.out) if config.out else run / "eval"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): name another folder with --out") from error
    rows, console = [], Console()
    try:
        agent = load_agent(payload, trained, envs.single_action_space.shape[0], device)
        for name, planner in planners.items():
            with console.status(f"{name}: {config.episodes} episodes of {trained.env}"):
                result = evaluate(agent, planner, envs, config.episodes, config.seed, 250 if config.video else 0)
            rows.append({"planner": name, **result.summary(), "returns": result.returns.tolist()})
            if config.video:
                for file in write_visuals(out / name, agent, planner, result, trained.env):
                    print(f"wrote {file}")
    finally:
        envs.close()
    console.print(table_of(rows, envs.num_envs))
    record = {
        "checkpoint": str(path),
        "env": trained.env,
        "env_steps": payload["counters"]["env_steps"],
        "seed": config.seed,
        "num_envs": envs.num_envs,
        "device": device_name(device),
        "torch": torch.__version__,
        "results": rows,
    }
    (out / "eval.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {out / 'eval.json'}")
    return 0


def doctor(args: Sequence[str]) -> int:
    """Say whether this machine can run the project."""
    from dreamer_mpc.doctor import doctor
    from dreamer_mpc.errors import UserError

    if args:
        raise UserError("doctor takes no options")
    return doctor()


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "eval": evaluate_checkpoint, "doctor": doctor}


def main(args: Sequence[str]) -> int:
    """Run one command; errors that a user can mend are one line and exit code 2."""
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        args = ["train", "--help"]
    word, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("train", args)
    from dreamer_mpc.errors import UserError
    from envs import EnvError

    try:
        if word not in COMMANDS:
            raise UserError(f"unknown command {word!r}: known are {', '.join(COMMANDS)}")
        return COMMANDS[word](rest)
    except (UserError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
