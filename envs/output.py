"""Standard output and error that a program can lose without losing its work."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

STANDARD = (0, 1, 2)  # file descriptors of input, output and error


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
    """In this context nothing that is printed in this process can raise."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    lasting = [LastingStream(stream or open(os.devnull, "w")) for stream in before]
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            stream.end()
        sys.stdout, sys.stderr = before


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
