"""The exception for mistakes of the user at the command line, and other exceptions in one line."""


class UserError(Exception):
    """A mistake that the user can fix: its one line names the remedy; run.py prints it and exits with 2."""


class HelpShown(SystemExit):
    """The end of a command that was asked for its help. Any other SystemExit comes from code that must not end it."""


def in_one_line(error: BaseException) -> str:
    """The first line of its message, with its kind where it is not one that is meant for the user."""
    message = (str(error).strip().splitlines() or ["no message"])[0]
    return message if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {message}"
