"""Stopping a run on SIGTERM or Ctrl-C."""

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run has stopped on request; the text is for the user."""


class Stop:
    """In this context the first SIGTERM or SIGINT only sets `requested`; a SIGINT after that is a KeyboardInterrupt."""

    def __init__(self):
        self.requested = False

    def check(self, text: str = "") -> None:
        """Raise `Stopped`, with `text`, where a stop was requested."""
        if self.requested:
            raise Stopped(text)

    def __enter__(self):
        self._before = [signal.signal(number, self._note) for number in SIGNALS]
        return self

    def __exit__(self, *error):
        for number, handler in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:  # no print(): it might wait for a lock that the interrupted code holds
            os.write(2, b"\nstopping after a last checkpoint; Ctrl-C again stops at once, without one\n")
        self.requested = True


def _forget() -> None:
    """In a forked process, such as a helper of an environment: signals end it, and are not noted for the run."""
    for number in SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Stop):
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
