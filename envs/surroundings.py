"""What the code of an environment may change for the whole process, kept apart from what the program needs."""

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

HANDLERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE)
Parts = dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]  # name -> (read, write)


class Surroundings:
    """Global generators, working folder, NumPy's error handling and torch's defaults as one environment sees them.

    In its context they are the environment's own, with all that it changed in earlier contexts; at the end those of
    the program are put back. Handlers of signals are put back too, but those of an environment are never used again:
    the program must hear of Ctrl-C. With `seed` the generators are seeded at first, otherwise they are a copy of those
    that are found. torch counts only where something else has imported it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed, self._theirs = seed, {}

    def __enter__(self) -> "Surroundings":
        self._handlers = {number: signal.getsignal(number) for number in HANDLERS}
        self._ours = _read()
        _write(self._theirs, self._ours)
        if self._seed is not None:
            seed_generators(self._seed)
            self._seed = None
        return self

    def __exit__(self, *error: object) -> None:
        self._theirs = _read()
        _write(self._ours, self._theirs)
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number, handler in self._handlers.items():
            if handler is not None:  # set again even if it seems unchanged: Python does not see what C code has set
                signal.signal(number, handler)


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
