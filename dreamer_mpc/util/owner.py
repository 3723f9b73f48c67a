"""Folders have one owner: the process that writes to them."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import say_once

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(folder: str | Path, remedy: str, name: str = LOCK) -> Iterator[None]:
    """Lock `folder`, so that no other process of ours writes there; UserError, which names it, if one does already.

    `remedy` ends that line: "wait for it, or choose another --out". The lock is a record lock of the kernel: it ends
    with the process, and processes that this one starts do not hold it. Where the file system has no locks, one line
    says so, and the work goes on. A folder that is made for the lock and stays empty is removed at the end.
    """
    folder = Path(folder).expanduser().absolute()  # an environment may change the working folder
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file = _locked(folder, folder / name, remedy)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                (folder / name).unlink()  # while it is locked, so that no other process can hold it
            file.close()
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of ours is in such a block with `folder`, for files that several of them write.

    Where the file system has no locks, one line says so, and nothing is waited for.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError as error:
            say_once(f"{folder} is not protected from a second process (its file system: {error.strerror})")
        yield
    finally:
        os.close(opened)


def _locked(folder: Path, path: Path, remedy: str) -> IO[str] | None:
    """The file `path`, open and locked; None where that is not possible, and not because of another process."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:  # what is to be written there cannot be written either, which its writer reports
            if path.is_dir():
                say_once(f"{folder} is not protected from a second process: remove {path} ({error.strerror})")
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = _owner(file)
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(f"another process works in {folder} ({other}): {remedy}") from error
            with contextlib.suppress(OSError):
                path.unlink()
            say_once(f"{folder} is not protected from a second process (its file system: {error.strerror})")
            return None
        if _still_there(file, path):
            _write_owner(file)
            return file
        file.close()  # its owner removed it between our opening and locking


def _still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _write_owner(file: IO[str]) -> None:
    """Who we are, in words, for the line that another process prints; a full disk costs only these words."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"host {platform.node()}, pid {os.getpid()}\n")
        file.flush()


def _owner(file: IO[str]) -> str:
    """What the owner wrote; it may not have come to that yet."""
    try:
        file.seek(0)
        return file.readline(200).strip() or "it has just begun"
    except (OSError, ValueError):
        return "it does not say which"
