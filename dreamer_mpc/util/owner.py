"""Folders have one owner: the process that writes to them."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import say_once, temporary_path
from dreamer_mpc.util.heartbeat import Heartbeat, Owner, is_still, lives, owner_in, read_owner, text_of

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(folder: str | Path, remedy: str, name: str = LOCK) -> Iterator[None]:
    """Lock `folder`, so that no other process of ours writes there; UserError, which names it, if one does already.

    `remedy` ends that line: "wait for it, or choose another --out". The lock is a record lock of the kernel: it ends
    with the process, and processes that this one starts do not hold it. An owner on another host, which such a lock
    may not keep out, is known by its heartbeat; so is every owner where the file system has no locks. A folder that is
    made for the lock and stays empty is removed at the end.
    """
    folder = Path(folder).expanduser().absolute()  # an environment may change the working folder
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    owner, path = Owner(), folder / name
    file = _claimed(path, owner, remedy)
    try:
        with Heartbeat(file, path, owner) if file else contextlib.nullcontext():
            yield
    finally:
        if file is not None:
            if owner_in(file, path) in (owner, None):
                with contextlib.suppress(OSError):
                    path.unlink()  # while it is locked, so that no other process can hold it
            file.close()
        with contextlib.suppress(OSError):
            for made in missing:
                made.rmdir()


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


def _claimed(path: Path, owner: Owner, remedy: str) -> IO[str] | None:
    """The file `path`, open, locked and in the name of `owner`; None where nothing can be written there.

    From then on this process must not open the file again: closing it, however often it is open, ends the lock.
    """
    dead = None  # the token of an owner on another host
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:  # what is to be written there cannot be written either, which its writer reports
            if path.is_dir():
                say_once(f"{path.parent} is not protected from a second process: remove {path} ({error.strerror})")
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _refused(path, _name_in(file), remedy) from error
            file.close()
            return _created(path, owner, remedy)
        if is_still(file, path):
            before = Owner.parse(text_of(file))
            if before is None or before.is_here or before.token == dead:
                _write(file, owner)
                return file
            file.close()
            if lives(before, path):
                raise _refused(path, str(before), remedy)
            dead = before.token
        file.close()  # its owner removed it between our opening and locking, or it must be locked again


def _created(path: Path, owner: Owner, remedy: str) -> IO[str] | None:
    """The same without locks: the process whose file gets the name first owns the folder.

    The file of a dead owner is moved away; if it was another one's by then, it is put back. Should two processes still
    meet, one of them ends at its first heartbeat.
    """
    while True:
        before = read_owner(path)
        if before and lives(before, path):
            raise _refused(path, str(before), remedy)
        with contextlib.suppress(FileNotFoundError):
            away = temporary_path(path)
            os.rename(path, away)
            moved = read_owner(away)
            if moved and (before is None or moved.token != before.token):
                with contextlib.suppress(OSError):
                    os.link(away, path)
            away.unlink()
            if moved and path.exists():
                continue
        named = temporary_path(path)
        try:
            named.write_text(owner.text(), encoding="utf-8")
            os.link(named, path)
            return path.open("r+")
        except FileExistsError:
            continue
        except OSError:
            return None
        finally:
            named.unlink(missing_ok=True)


def _refused(path: Path, other: str, remedy: str) -> UserError:
    return UserError(f"another process works in {path.parent} ({other}): {remedy}")


def _write(file: IO[str], owner: Owner) -> None:
    """Name the owner; on a full disk the lock alone protects the folder."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(owner.text())
        file.flush()


def _name_in(file: IO[str]) -> str:
    """The words that the owner wrote; it may not have come to that yet."""
    return (text_of(file).splitlines() or ["it has just begun"])[0]
