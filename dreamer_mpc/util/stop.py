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


class _Forks:
    """In a forked process, such as a helper of an environment, signals end it, and are not noted for the run.

    They are blocked around a fork: Python would lose one that comes before the forked process has its own handlers.
    """

    def __init__(self):
        self._mask = None
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._forget)

    def _block(self):
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _unblock(self):
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _forget(self):
        for number in SIGNALS:
            if isinstance(getattr(signal.getsignal(number), "__self__", None), Stop):
                signal.signal(number, signal.SIG_DFL)
        self._unblock()


_Forks()
