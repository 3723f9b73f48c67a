"""Stopping a run on SIGTERM, Ctrl-C or the end of its terminal."""

import contextlib
import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run has stopped on request; the text is for the user."""


class Stop:
    """In this context the first SIGTERM, SIGINT or SIGHUP only sets `requested`.

    A SIGINT after that is a KeyboardInterrupt. SIGHUP stays ignored where it is, as under nohup.
    """

    def __init__(self):
        self.requested = False

    def check(self, text: str = "") -> None:
        """Raise `Stopped`, with `text`, where a stop was requested."""
        if self.requested:
            raise Stopped(text)

    def __enter__(self):
        hangup = [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
        self._before = {number: signal.signal(number, self._note) for number in (*SIGNALS, *hangup)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:  # no print(): it might wait for a lock that the interrupted code holds
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after a last checkpoint; Ctrl-C again stops at once, without one\n")
        self.requested = True
