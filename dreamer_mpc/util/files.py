"""Writing files atomically."""

import csv
import errno
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamer_mpc.util.errors import UserError

_said: set[str] = set()  # what was said once


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends, or is removed if it raises.

    The name keeps the suffix, because matplotlib and ffmpeg choose the format by it. Readers of `path` see
    the old file or the new one, never a part of one. After an OSError the old file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def user_path(text: str | Path) -> Path:
    """The path that a user named, with `~` as the home folder.

    UserError for the home of a user who does not exist, and for a path that cannot be looked at.
    """
    try:
        path = Path(text).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError as error:
        raise UserError(f"no user has the home folder {text}: name another, or ./{text} if it is called so") from error
    except OSError as error:  # a name that is too long, a folder that may not be searched, a loop of links
        raise UserError(f"cannot look at {str(text)[:200]} ({error.strerror}): name another path") from error
    return path


def output_path(text: str | Path) -> Path:
    """`user_path` for what is written later: absolute, as code of others may change the working folder by then."""
    path = user_path(text)
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise UserError(f"the working folder was deleted, and {path} counts from it: change to another") from error


def try_folder(folder: Path) -> None:
    """Make `folder`, and write a file there that is removed again; OSError where that cannot be done."""
    folder.mkdir(parents=True, exist_ok=True)
    tried = temporary_path(folder / "tried.txt")
    try:
        tried.touch()
    finally:
        tried.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A temporary path beside `path`, another one each time: two processes never write to the same."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def temporary_paths(folder: Path) -> list[Path]:
    """The temporary files in `folder` that killed processes left, for its owner to remove."""
    return list(folder.glob(".*.tmp.*"))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that a new one also survives a loss of power.

    Not every file system can (network drives, FUSE), and not every folder may be opened. The file itself is there and
    flushed by now, so the program goes on, and says once what is not protected.
    """
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        say_once(
            f"{folder} is on a file system that cannot flush folders ({error.strerror}): "
            "files that were just written may be missing there after a loss of power",
            topic="flush",
        )


def say_once(line: str, topic: str | None = None) -> None:
    """Print a line on stderr, unless it, or another line on `topic`, was printed before."""
    if (topic or line) not in _said:
        _said.add(topic or line)
        print(line, file=sys.stderr)


def discard(path: Path) -> None:
    """Remove a file that is not needed any more. One that cannot be removed costs its space on the disk and a line."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say_once(f"{path} is not needed any more and cannot be removed ({error.strerror}): it stays")


def files_of(folder: str | Path, pattern: str) -> list[Path]:
    """The files whose names fit `pattern` in a folder. A folder with such a name is none of them."""
    return [path for path in Path(folder).glob(pattern) if not path.is_dir()]


def from_json(text: str | bytes) -> Any:
    """What JSON says; ValueError where it is none, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; bytes of a path that are no text stay those bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Write rows with equal keys as CSV; None is an empty cell."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
