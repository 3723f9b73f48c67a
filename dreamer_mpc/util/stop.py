"""Stopping a run on SIGTERM, SIGUSR1 (a cluster's warning of its end), Ctrl-C or the end of its terminal."""

import contextlib
import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
INTERRUPTED = 130  # exit code after Ctrl-C, as that of other programs: a shell's `&&` does not go on
STOPPING = "stopping after a last checkpoint; Ctrl-C again stops at once, without one"


class Stopped(Exception):
    """A run has stopped on request; the text is for the user."""


class Stop:
    """In this context the first of `SIGNALS` only sets `requested`.

    A SIGINT after that is a KeyboardInterrupt. SIGHUP stays ignored where it is, as under nohup. Ctrl-C is answered by
    the line `answer`. `code` is the exit code of a command that stops. A live display overwrites whatever else is
    written to the terminal: one that shows `notice` sets `displayed` while it is there.
    """

    def __init__(self, answer: str = STOPPING):
        self.requested = False
        self.code = 0  # a cluster or a sweep that asks a run to stop lets it go on later
        self._answer = answer
        self.displayed = False
        self.notice = ""

    def check(self, text: str = "") -> None:
        """Raise `Stopped`, with `text`, where a stop was requested."""
        if self.requested:
            raise Stopped(text)

    def __enter__(self):
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        noted = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
        self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self.code = INTERRUPTED
            self.notice = self._answer
            if not self.displayed:  # no print(): it might wait for a lock that the interrupted code holds
                with contextlib.suppress(OSError):  # the terminal may be gone
                    os.write(2, f"\n{self._answer}\n".encode())
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
