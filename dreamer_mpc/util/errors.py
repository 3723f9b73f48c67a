"""The one exception that is meant for the person at the command line."""


class UserError(Exception):
    """A mistake the user can mend: one line that names the remedy; run.py prints it and exits with 2."""
