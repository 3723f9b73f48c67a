"""What the code of others may change for the whole process, kept apart from what the program needs."""

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from dreamer_mpc.envs.output import restore_descriptors

HANDLERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE)
Parts = dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]  # name -> (read, write)


class Surroundings:
    """What belongs to the whole process, as one environment sees it, or another part that others wrote.

    Global generators, working folder, import path, umask, NumPy's error handling and torch's defaults are its own in
    this context, with all that it changed in earlier contexts; at the end those of the program are put back. Handlers
    of signals, standard streams and their descriptors, and a lowered recursion limit are put back too, but its own are
    never used again: the program must hear of Ctrl-C, and be heard. With `seed` the generators are seeded at first,
    otherwise they are a copy of those that are found. torch counts only where something else has imported it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed, self._theirs = seed, {}

    def __enter__(self) -> "Surroundings":
        self._handlers = {number: signal.getsignal(number) for number in HANDLERS}
        self._streams, self._recursion_limit = (sys.stdout, sys.stderr), sys.getrecursionlimit()
        self._ours = _read()
        _write(self._theirs, self._ours)
        if self._seed is not None:
            seed_generators(self._seed)
            self._seed = None
        return self

    def __exit__(self, *error: object) -> None:
        if sys.getrecursionlimit() < self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        self._theirs = _read()
        _write(self._ours, self._theirs)
        sys.stdout, sys.stderr = self._streams
        restore_descriptors()
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number, handler in self._handlers.items():
            if handler is not None:  # set again even if it seems unchanged: Python does not see what C code has set
                signal.signal(number, handler)


@contextlib.contextmanager
def no_sudden_end() -> Iterator[None]:
    """In this context `os._exit`, called by the main thread, raises SystemExit: what was done can then be saved.

    It still ends other processes, which were forked from this one, and is still there for the other threads.
    """
    end, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not threading.main_thread():
            end(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = end


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch's CPU, which many environments draw from."""
    seed = int(seed)  # Python's takes no integer of NumPy
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs


def _read() -> dict[str, Any]:
    return {name: read() for name, (read, _) in _parts().items()}


def _write(values: dict[str, Any], present: dict[str, Any]) -> None:
    parts = _parts()
    for name, value in values.items():
        if name in GENERATORS or value != present.get(name):
            parts[name][1](value)


GENERATORS = ("python", "numpy", "torch")  # their states are always written: comparing them would cost more


def _parts() -> Parts:
    parts: Parts = {
        "python": (random.getstate, random.setstate),
        "numpy": (np.random.get_state, np.random.set_state),
        "folder": (_folder, _enter_folder),
        "imports": (lambda: list(sys.path), _set_path),
        "umask": (_umask, os.umask),
        "errors": (np.geterr, lambda errors: np.seterr(**errors)),
    }
    if torch := sys.modules.get("torch"):
        parts |= {
            "torch": (torch.get_rng_state, torch.set_rng_state),
            "dtype": (torch.get_default_dtype, torch.set_default_dtype),
            "device": (torch.get_default_device, lambda device: _set_device(torch, device)),
            "threads": (torch.get_num_threads, torch.set_num_threads),
            "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
            "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
            "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        }
    return parts


def _set_device(torch: Any, device: Any) -> None:
    """Make `device` the default; the CPU by no setting at all, because any setting slows every call of torch."""
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_path(folders: list[str]) -> None:
    sys.path[:] = folders


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mask


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _enter_folder(folder: str | None) -> None:
    try:
        if folder is not None:
            os.chdir(folder)
    except OSError:  # it was deleted
        pass
