"""The exception for mistakes of the user at the command line."""


class UserError(Exception):
    """A mistake that the user can fix: its one line names the remedy; run.py prints it and exits with 2."""
