"""Spawned processes that leave signals to their parent, end with it, and take what they started with them."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

# Left to the parent, which ends its processes; the end of a terminal or of a cluster's job reaches all of them.
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
SPAWN = multiprocessing.get_context("spawn")  # a process that uses CUDA or OpenGL cannot be forked


def start_process(target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    """Spawn a process whose `target` begins with `belong_to_parent`. OSError where none can be started.

    It is no daemon, because multiprocessing allows those no children: its owner must `kill` it before the end.
    """
    process = SPAWN.Process(target=target, args=args, name=name, daemon=False)
    # Signals are blocked while it starts, and it inherits that: only the parent handles Ctrl-C, from the start.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # which would end also the next helper
    resource_tracker.ensure_running()  # multiprocessing's helper; starting it later would unblock them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def kill(process: BaseProcess) -> None:
    """Kill a process, and what it started in its group, without waiting."""
    process.kill()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:  # it does not lead a group yet, or nothing is left of it
        pass


def how_it_ended(process: BaseProcess) -> str:
    """`exit status 1` or `killed by SIGKILL`, of a process that has ended."""
    code = process.exitcode
    if code >= 0:
        return f"exit status {code}"
    known = -code in signal.valid_signals() and -code in {s.value for s in signal.Signals}
    return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def belong_to_parent() -> None:
    """In a process that `start_process` started: lead a group of its own, leave stops to the parent, end with it."""
    os.setpgid(0, 0)
    _leave_stops_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _leave_stops_to_parent() -> None:
    """Do nothing at SIGINT and SIGTERM, without passing that on: what an environment starts or forks must end by them.

    A started program inherits signals that are ignored, but no handlers; a forked process inherits these too.
    """
    for number in STOPS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def reset() -> None:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    # Blocked around a fork: Python would lose a signal that comes before the forked process has its own handlers.
    unblock = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPS)
    block = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPS)
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def _end_with_parent() -> None:
    """End this process and its group when its parent ends, even in the middle of a step."""
    multiprocessing.parent_process().join()
    os.killpg(0, signal.SIGKILL)
