"""Rates of several processes that count over the same time. This module imports nothing slow."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def total_rate(module: str, words: Sequence[str], processes: int) -> float:
    """The sum of the rates of `processes` times `python -m module words --worker FOLDER NAME`; RuntimeError on failure.

    Each calls `wait_for_start` when it is ready, then counts, then calls `report`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = [sys.executable, "-m", module, *words, "--worker", name]
        workers = [subprocess.Popen([*base, f"worker{i}"], cwd=ROOT) for i in range(processes)]
        try:
            while len(list(folder.glob("*.ready"))) < processes:
                if any(worker.poll() for worker in workers):
                    raise RuntimeError(f"one of the processes of {module} ended before all were ready")
                time.sleep(0.05)
            (folder / "start").touch()
            if any(worker.wait() for worker in workers):
                raise RuntimeError(f"one of the processes of {module} failed")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return sum(float(path.read_text()) for path in folder.glob("*.rate"))


def end(process: subprocess.Popen) -> None:
    """Kill a process that was started as a session of its own, and all that it started, in whatever session."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        top.suspend()  # so that it starts nothing more, and does not end by itself, while the others are counted
        for each in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_start(folder: Path, name: str) -> None:
    """Report that the worker `name` is ready, and wait until all are."""
    (folder / f"{name}.ready").touch()
    while not (folder / "start").exists():
        time.sleep(0.01)


def report(folder: Path, name: str, rate: float) -> None:
    """Report the rate of the worker `name`, per second."""
    (folder / f"{name}.rate").write_text(str(rate))
