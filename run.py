#!/usr/bin/env python
"""dreamer-mpc on the command line: python run.py [train|eval|compare|analyze|sweep|plot|doctor] [options]; or train."""

import importlib
import sys
from collections.abc import Callable, Sequence

USAGE = """usage: python run.py [train] --env cheetah-run --planner dream-mpc    train an agent (the default command)
       python run.py eval --checkpoint RUN --planner dream-mpc,policy    evaluate a checkpoint under planners
       python run.py compare --checkpoint RUN [RUN ...] --planners all   all planners: table, CSV, picture
       python run.py analyze --checkpoint RUN --what true-gain           what a planner's gradient is worth
       python run.py sweep --envs cheetah-run,walker-run --seeds 0,1     many runs at once, each in its own process
       python run.py plot runs/sweep --runs runs/sweep                   draw learning curves beside the paper's
       python run.py doctor                                              can this machine run it?
       python run.py --version                                           the program, its commit, torch and Python

`eval --help`, and the same of compare, analyze, sweep and plot, list the settings of those; those of train follow.
"""


# True: for training; False: for evaluation.
OUT_OF_MEMORY = {
    True: "out of memory: lower --replay.batch-size, --replay.sequence-length, --behavior.horizon or --num-envs, "
    "keep the replay elsewhere (--replay.storage ram or memmap), or evaluate between updates (--eval.beside off)",
    False: "out of memory: lower --num-envs, or the candidates of the planner (such as --cem.candidates)",
}


# The function of each command. It is imported only when the command is called, because `doctor` must also run where
# torch cannot be imported.
COMMANDS = {
    "train": "dreamer_mpc.training.command:main",
    "eval": "dreamer_mpc.evaluation.command:evaluate_checkpoint",
    "compare": "dreamer_mpc.evaluation.command:compare_checkpoints",
    "analyze": "dreamer_mpc.analysis.command:main",
    "sweep": "dreamer_mpc.sweeps.command:main",
    "plot": "dreamer_mpc.report.plot:main",
    "doctor": "dreamer_mpc.report.doctor:main",
}


def command(word: str) -> Callable[[Sequence[str]], int]:
    """The function that runs a command: it takes the options and returns the exit code."""
    module, _, function = COMMANDS[word].partition(":")
    return getattr(importlib.import_module(module), function)


def main(args: Sequence[str]) -> int:
    """Run one command; an error that the user can fix is printed as one line, with exit code 2.

    Output that cannot be printed costs the output alone.
    """
    from envs.output import lasting_output

    with lasting_output():
        return _main(args)


def _main(args: Sequence[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        print(USAGE)
        args = ["train", "--help"]
    if args and args[0] == "--version":
        from dreamer_mpc.util.versions import program_version

        print(program_version())
        return 0
    word, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("train", args)
    from dreamer_mpc.util.errors import UserError
    from dreamer_mpc.util.threads import wait_passively
    from envs import EnvError

    wait_passively()  # before any command loads torch
    try:
        if word not in COMMANDS:
            raise UserError(f"unknown command {word!r}: known are {', '.join(COMMANDS)}")
        return command(word)(rest)
    except (UserError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from dreamer_mpc.util.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"error: {OUT_OF_MEMORY[word == 'train']}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
