"""The exception for mistakes of the user at the command line, and other exceptions in one line."""

import errno

REMEDIES = {  # of a file that cannot be written, by the reason of the operating system
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: "make it writable for this user",
    errno.EPERM: "make it writable for this user",
    errno.EROFS: "its file system is mounted read-only",
    errno.EISDIR: "move away the folder that has its name",
    errno.ENOTDIR: "move away the file that stands in place of a folder",
    errno.EEXIST: "move away what stands in its place",
    errno.ENOTEMPTY: "move away what stands in its place",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, as too many files are open",
    errno.ENAMETOOLONG: "shorten its name",
}


class UserError(Exception):
    """A mistake that the user can fix: its one line names the remedy; run.py prints it and exits with 2."""


class HelpShown(SystemExit):
    """The end of a command that was asked for its help. Any other SystemExit comes from code that must not end it."""


def in_one_line(error: BaseException) -> str:
    """The first line of its message, with its kind where it is not one that is meant for the user."""
    message = (str(error).strip().splitlines() or ["no message"])[0]
    return message if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {message}"


def cannot_write(what: object, error: OSError, instead: str = "") -> UserError:
    """The error for `what` (a path, in words if need be) that cannot be written: its remedy follows from the reason.

    `instead` names another way, "name another folder with --out".
    """
    remedy = REMEDIES.get(error.errno, "check the disk")
    return UserError(f"cannot write {what} ({error.strerror or error}): {remedy}{f', or {instead}' if instead else ''}")
