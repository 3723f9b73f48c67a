"""Time a save of a run of default size: the checkpoint alone, and with the new frames since the last save.

    python -m benchmarks.saving [--frames 12500] [--folder .] [--out saving.json]

A default run adds 12,500 frames between two evaluations (25,000 env steps, action repeat 2). The files are written,
flushed to the disk and removed again. Medians of five saves.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.data.files import ReplayFiles
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.runs.checkpoint import checkpoint_path
from dreamer_mpc.runs.payload import read_payload, write_payload

STREAMS, REPEATS = 8, 5


def add_frames(replay: Replay, count: int) -> None:
    """`count` random frames, an equal share for each stream."""
    rng = np.random.default_rng(0)
    for step in range(count // STREAMS):
        image = rng.integers(0, 256, (STREAMS, 64, 64, 3), dtype=np.uint8)
        action = np.zeros((STREAMS, common.ACTION_DIM), dtype=np.float32)
        first = np.full(STREAMS, step == 0 and replay.written.sum() == 0)
        replay.append(np.arange(STREAMS), image, action, np.zeros(STREAMS), first, np.zeros_like(first))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=12_500)
    parser.add_argument("--folder", type=Path, help="whose disk is written; default: that of temporary files")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args, rest = parser.parse_known_args(argv)
    config = common.parse_settings(rest)
    agent = make_agent(config, common.ACTION_DIM, torch.device("cpu"))
    agent.update(common.random_batch(config, agent.device))  # so that Adam has moments to save
    payload = agent.state_dict()
    replay = Replay((REPEATS + 1) * args.frames, common.ACTION_DIM, STREAMS)
    times: dict[str, list[float]] = {"checkpoint": [], "frames": [], "load": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        files = ReplayFiles(folder / "replay", replay)
        for i in range(REPEATS):
            add_frames(replay, args.frames)
            start = time.perf_counter()
            files.write()
            times["frames"].append(time.perf_counter() - start)
            path, start = checkpoint_path(folder, i), time.perf_counter()
            write_payload(path, payload)
            times["checkpoint"].append(time.perf_counter() - start)
            start = time.perf_counter()
            read_payload(path)
            times["load"].append(time.perf_counter() - start)
        sizes = {"checkpoint": path.stat().st_size, "load": path.stat().st_size}
        sizes["frames"] = sum(file.stat().st_size for file in (folder / "replay").iterdir()) // REPEATS
    rows = [
        {"name": name, "seconds": statistics.median(taken), "slowest_s": max(taken), "mb": sizes[name] / 1e6}
        for name, taken in times.items()
    ]
    record = {"benchmark": "saving", **common.describe(agent.device), "frames": args.frames, "rows": rows}
    columns = {"name": "what", "seconds": "s, median", "slowest_s": "s, slowest", "mb": "MB"}
    common.print_table(f"A save: checkpoint, and {args.frames:,} frames", columns, rows)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
