"""Standard output and error that a program can lose without losing its work."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from typing import Any

STANDARD = (0, 1, 2)  # file descriptors of input, output and error
_copies: dict[int, int] = {}  # of those of the program, where `lasting_output` keeps them


class LastingStream:
    """A text stream whose `write` and `flush` never raise; everything else is the stream's own.

    What cannot be written (no reader, a full disk, a terminal that is gone) is dropped, and each later text is tried
    again, because a disk may have space again. Characters that the encoding does not have become `?`.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def end(self) -> None:
        """Flush a last time; what is still refused goes to /dev/null, or Python would fail with it as it exits."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """In this context nothing that is printed in this process can raise, and `restore_descriptors` works."""
    _open_descriptors()
    copies_before = dict(_copies)
    own = {descriptor: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, len(STANDARD)) for descriptor in STANDARD}
    _copies.update(own)
    before = sys.stdout, sys.stderr
    lasting = [LastingStream(stream or open(os.devnull, "w")) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.end()
        sys.stdout, sys.stderr = before
        for copy in own.values():
            os.close(copy)
        _copies.clear()
        _copies.update(copies_before)


def restore_descriptors() -> None:
    """Open the program's standard descriptors again where one was closed, or leads elsewhere."""
    for descriptor, copy in _copies.items():
        if not _same_file(descriptor, copy):
            os.dup2(copy, descriptor)


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False


def _open_descriptors() -> None:
    """Open /dev/null in place of a closed standard descriptor, or the next file would become one and be printed to."""
    for descriptor in STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
