"""Running parts one after the other on each GPU, and the GPUs at the same time, until a deadline."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.parts import Part

LEAST_S = 5.0  # what is left of the time; with less, a part is not begun


def run_part(
    part: Part, words: Sequence[str], out: Path, limit: float, gpu: str | None, label: bool
) -> dict[str, Any]:
    """Run `python -m benchmarks.<module>` on the GPU `gpu` (None: as it is); its record, or {"error": reason}."""
    command = [sys.executable, "-m", f"benchmarks.{part.module}", *words, "--out", str(out)]
    environment = os.environ | {"COLUMNS": "130", "PYTHONUNBUFFERED": "1"}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    tail: deque[str] = deque(maxlen=30)
    process = subprocess.Popen(
        command, cwd=common.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), end, [process])
    timer.start()
    try:
        for line in process.stdout:
            print(f"{part.name}: {line}" if label else line, end="", flush=True)
            tail.append(line.strip())
        process.wait()
    finally:
        late = not timer.is_alive()
        timer.cancel()
        end(process)
        process.wait()
    if process.returncode:
        last = next((line for line in reversed(tail) if line), "no word of it")
        error = f"failed: longer than {limit:.0f} s" if late else f"failed: {last}"[:200]
        return {"error": error, **(common.read(out) if out.exists() else {})}
    return common.read(out)


def end(process: subprocess.Popen) -> None:
    """Kill a part and all processes that it started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_all(
    parts: Sequence[Part],
    gpus: Sequence[str],
    words_for: Callable[[Part, float], list[str]],
    out: Path,
    minutes: float,
    part_limit: float,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Records and seconds by part; `gpus` are indices for CUDA_VISIBLE_DEVICES, or empty on a CPU.

    `words_for(part, seconds left)` is asked when its turn has come, so that it sees the files of those before.
    """
    began, lanes = time.perf_counter(), max(len(gpus), 1)
    results: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    queues = [[part for part in parts if (part.lane if part.lane < lanes else 0) == lane] for lane in range(lanes)]

    def work(lane: int) -> None:
        for part in queues[lane]:
            start = time.perf_counter()
            left = 60 * minutes - (start - began)
            if left < LEAST_S:
                results[part.name] = {"error": f"not run: the {minutes:g} minutes were over"}
                continue
            limit = left if part.asked or part.name == "r2dreamer_compiled" else min(left, part_limit)
            words, gpu = words_for(part, left), gpus[lane] if gpus else None
            results[part.name] = run_part(part, words, out / f"{part.name}.json", limit, gpu, len(gpus) > 1)
            seconds[part.name] = time.perf_counter() - start
            said = results[part.name].get("error", "done")
            print(f"--- {part.name}: {said}, {seconds[part.name]:.0f} s\n", flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        for future in [pool.submit(work, lane) for lane in range(lanes)]:
            future.result()
    return results, seconds
