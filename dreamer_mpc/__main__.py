"""dreamer-mpc on the command line: `python run.py`, `dreamer-mpc` or `python -m dreamer_mpc`."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

USAGE = """usage: {0} [train] --env cheetah-run --planner dream-mpc    train an agent (the default command)
       {0} eval --checkpoint RUN --planner dream-mpc,policy    evaluate a checkpoint under planners
       {0} compare --checkpoint RUN [RUN ...] --planners all   all planners: table, CSV, picture
       {0} analyze --checkpoint RUN --what true-gain           what a planner's gradient is worth
       {0} sweep --envs cheetah-run,walker-run --seeds 0,1     many runs at once, each in its own process
       {0} plot runs/sweep --runs runs/sweep                   draw learning curves beside the paper's
       {0} report RUN [RUN ...]                                one HTML page of them, to send
       {0} export --checkpoint RUN --format onnx               the policy for other programs
       {0} envs                                                the environments that there are
       {0} doctor                                              can this machine run it?
       {0} --version                                           the program, its commit, torch and Python
       {0} --constraints                                       the file of the tested versions, for pip install -c

`eval --help`, and the same of the other commands, list the settings of those; those of train follow.
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
    "report": "dreamer_mpc.report.report:main",
    "export": "dreamer_mpc.library.export:main",
    "envs": "dreamer_mpc.report.environments:main",
    "doctor": "dreamer_mpc.report.doctor:main",
}


def command(word: str) -> Callable[[Sequence[str]], int]:
    """The function that runs a command: it takes the options and returns the exit code."""
    module, _, function = COMMANDS[word].partition(":")
    return getattr(importlib.import_module(module), function)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command, by default the command line's; an error that the user can fix is one line, with exit code 2.

    So is a package that is missing. Any other error is one line as well, with exit code 1 and a file that holds its
    traceback (`util/ending.py`). Output that cannot be printed costs the output alone.
    """
    from dreamer_mpc.util.packages import missing_package

    try:
        from dreamer_mpc.envs.output import lasting_output
        from dreamer_mpc.envs.surroundings import no_sudden_end
    except ModuleNotFoundError as error:
        if line := missing_package(error):
            print(f"error: {line}", file=sys.stderr)
            return 2
        raise
    with lasting_output(), no_sudden_end():
        return _main(sys.argv[1:] if args is None else args)


def _main(args: Sequence[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        from dreamer_mpc.util.program import program

        print(USAGE.format(program()))
        args = ["train", "--help"]
    if args and args[0] == "--version":
        from dreamer_mpc.util.versions import program_version

        print(program_version())
        return 0
    if args and args[0] == "--constraints":
        from dreamer_mpc.util.program import FOLDER

        print(FOLDER / "constraints.txt")
        return 0
    word, rest = (args[0], args[1:]) if args and not args[0].startswith("-") else ("train", args)
    from dreamer_mpc.envs import EnvError
    from dreamer_mpc.util.ending import unexpected
    from dreamer_mpc.util.errors import HelpShown, UserError
    from dreamer_mpc.util.packages import missing_package
    from dreamer_mpc.util.threads import wait_passively

    wait_passively()  # before any command loads torch
    try:
        if word not in COMMANDS:
            raise UserError(f"unknown command {word!r}: known are {', '.join(COMMANDS)}")
        return command(word)(rest)
    except (UserError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted()
    except HelpShown:
        raise
    except (Exception, SystemExit) as error:
        line = OUT_OF_MEMORY[word == "train"] if _is_out_of_memory(error) else missing_package(error)
        if line is None:
            return unexpected(error)
        print(f"error: {line}", file=sys.stderr)
        return 2


def _interrupted() -> int:
    """The line and the exit code after Ctrl-C."""
    from dreamer_mpc.util.stop import INTERRUPTED

    print("\ninterrupted", file=sys.stderr)
    return INTERRUPTED


def _is_out_of_memory(error: BaseException) -> bool:
    """As in `util/memory.py`, which is imported only for errors that can be that one, because it imports torch."""
    if not isinstance(error, (RuntimeError, MemoryError)):
        return False
    from dreamer_mpc.util.memory import is_out_of_memory

    return is_out_of_memory(error)


def run() -> NoReturn:
    """Run the command line's command and end the process, whatever threads of others still go on."""
    try:
        code = main()
    except KeyboardInterrupt:  # before `main` is ready for it: while modules are imported
        code = _interrupted()

    from dreamer_mpc.util.ending import end_process

    end_process(code)


if __name__ == "__main__":
    run()
