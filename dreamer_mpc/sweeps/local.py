"""Starting runs on this machine, each in its own process, several in parallel on each GPU."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamer_mpc.sweeps.launcher import End
from dreamer_mpc.sweeps.run import Run
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.stop import SIGNALS

if TYPE_CHECKING:
    from dreamer_mpc.config import SweepConfig

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PR_SET_PDEATHSIG = 1  # Linux


class LocalJob:
    """A process in its own session, so that Ctrl-C in the terminal reaches it only through `stop`."""

    running = True

    def __init__(self, process: subprocess.Popen, slot: int, where: str):
        self.slot, self.where, self._process = slot, where, process

    def poll(self) -> End | None:
        code = self._process.poll()
        return None if code is None else End(code, f"killed by signal {-code}" if code < 0 else "")

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class LocalLauncher:
    """`jobs_per_gpu` runs in parallel on each of `gpus` (names as in CUDA_VISIBLE_DEVICES); without GPUs, on the CPU.

    A run sees only its GPU and renders there (it asks EGL for that GPU itself); runs share `cores`, or the host's.
    """

    Settings, lasting, poll_s = None, False, 0.5

    def __init__(self, jobs_per_gpu: int, gpus: Sequence[str], cores: int | None = None):
        places = list(gpus) or [None]
        self._places = [gpu for _ in range(jobs_per_gpu) for gpu in places]  # round-robin over GPUs
        self._threads = max(1, (cores or len(os.sched_getaffinity(0))) // len(self._places))
        self._jobs: dict[int, LocalJob] = {}

    @classmethod
    def open(cls, sweep: "SweepConfig", settings: None, device: str) -> "LocalLauncher":
        return cls(sweep.jobs_per_gpu, choose_gpus(device))

    def find(self, runs: Sequence[Run]) -> dict:
        return {}

    def start(self, runs: Sequence[Run], starts: Sequence[int]) -> list[LocalJob]:
        free = [i for i in range(len(self._places)) if i not in self._jobs or self._jobs[i].poll() is not None]
        return [self._start(run, slot) for run, slot in zip(runs, free, strict=False)]

    def forget(self, run: Run) -> None:
        pass

    def cancel(self, names: Sequence[str]) -> list[str]:
        raise UserError("--cancel does not go with --launcher local: its runs end with the command, on Ctrl-C")

    def _start(self, run: Run, slot: int) -> LocalJob:
        gpu, log = self._places[slot], run.log
        environment = {**os.environ, **dict.fromkeys(THREADS, str(self._threads))}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    run.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
        except OSError as error:
            raise cannot_write(log, error, "choose another --out") from error
        self._jobs[slot] = LocalJob(process, slot, "CPU" if gpu is None else f"GPU {gpu}")
        return self._jobs[slot]


def choose_gpus(device: str) -> list[str]:
    """The GPUs for runs with `--device`, named as in CUDA_VISIBLE_DEVICES; UserError if there are none."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if device == "cuda" and not count:
        raise UserError("no device cuda: torch sees 0 GPUs; use --device cpu or auto")
    return [str(i) for i in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]


def _end_with_parent() -> None:
    """In the child: if the launcher is killed, the kernel signals the child, which saves and ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not on Linux
        pass
