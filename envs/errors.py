"""The error of this package for mistakes of the user."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

LONGEST = 300  # characters of a message from user code


class EnvError(ValueError):
    """An environment that cannot be made or used; its message is one line that names cause and remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` on one line; whitespace and characters that a terminal would not print become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(value: object) -> str:
    """`str(value)` on one line of at most `LONGEST` characters; empty if `str` fails."""
    try:
        text = one_line(str(value))
    except Exception:
        return ""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def unfit_args(
    name: str, args: Mapping[str, object], error: Exception, function: Callable[..., object], *own: str
) -> EnvError:
    """The error of an environment that `function` cannot make with `args`; `own` are arguments that no user gives."""
    given, known = " ".join(args), arguments_of(function, *own)
    takes = f" ({known})" if known else ""
    return EnvError(f"{name} cannot be made with --env-args {given} ({shorten(error)}): leave out what it lacks{takes}")


def arguments_of(function: Callable[..., object], *own: str) -> str:
    """`it takes size, goal`: the arguments that `function` names, without `own`; empty where that is not known.

    One with **kwargs may take more, as it passes them on.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none
        return ""
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    names = [name for name in names if name not in own]
    passed = [f"what **{each.name} passes on" for each in parameters if each.kind is each.VAR_KEYWORD]
    return f"it takes {', '.join([*names, *passed]) or 'none'}"


def describe_error(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (robot.py, line 12)`: type, first line of the message, and where.

    The place is left out if it is in this package, as for a call with wrong arguments.
    """
    try:
        first = next(iter(str(error).strip().splitlines()), "")
    except Exception:  # an error whose own __str__ fails
        first = ""
    said = f"{type(error).__name__}: {shorten(first)}" if first else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or Path(frames[-1].filename).parent == Path(__file__).parent:
        return said
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
