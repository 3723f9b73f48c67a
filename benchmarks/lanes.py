"""Running parts one after the other in each lane, and the lanes at the same time, until a deadline.

A lane is a GPU, except that two GPUs have three lanes: the peer's torch.compile, which is work of the host for minutes,
has the second GPU together with the lane of runs and rendering, and begins to time when that lane is done.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.parts import Part
from benchmarks.together import end


def run_part(part: Part, words: Sequence[str], out: Path, limit: float, gpu: str | None, label: bool) -> dict[str, Any]:
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


def lanes_of(gpus: Sequence[str]) -> list[str | None]:
    """The GPU of each lane."""
    return {0: [None], 2: [*gpus, *gpus[1:]]}.get(len(gpus), list(gpus[:3]))


def run_all(
    parts: Sequence[Part],
    gpus: Sequence[str],
    words_for: Callable[[Part, float, Path | None], list[str]],
    out: Path,
    minutes: float,
    part_limit: float,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Records and seconds by part; `gpus` are indices for CUDA_VISIBLE_DEVICES, or empty on a CPU.

    `words_for(part, seconds left, quiet)` is asked when its turn has come, so that it sees the files of those before;
    `quiet` is a file that is there as soon as nothing else is to run on the part's GPU.
    """
    began, lanes = time.perf_counter(), lanes_of(gpus)
    results: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    queues = [[p for p in parts if (p.lane if p.lane < len(lanes) else 0) == lane] for lane in range(len(lanes))]

    def work(lane: int, folder: Path) -> None:
        sharing = next((i for i, gpu in enumerate(lanes) if i != lane and gpu is not None and gpu == lanes[lane]), None)
        quiet = None if sharing is None else folder / f"{sharing}.done"
        for part in queues[lane]:
            start = time.perf_counter()
            left = 60 * minutes - (start - began)
            if left < part.least_s:
                results[part.name] = {"error": f"not run: of {minutes:g} minutes, {max(left, 0):.0f} s were left"}
                continue
            limit = left if part.asked or part.name == "r2dreamer_compiled" else min(left, part_limit)
            words = words_for(part, left, quiet)
            results[part.name] = run_part(part, words, out / f"{part.name}.json", limit, lanes[lane], len(lanes) > 1)
            seconds[part.name] = time.perf_counter() - start
            said = results[part.name].get("error", "done")
            print(f"--- {part.name}: {said}, {seconds[part.name]:.0f} s\n", flush=True)
        (folder / f"{lane}.done").touch()

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(lanes)) as pool:
        for future in [pool.submit(work, lane, Path(folder)) for lane in range(len(lanes))]:
            future.result()
    return results, seconds
