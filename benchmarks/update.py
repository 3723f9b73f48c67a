"""Time one update of world model, actor and critic (50 x 50 frames of 64 x 64 x 3 unless the settings say otherwise).

    python -m benchmarks.update [--peer CHECKOUT] [--processes 4] [--device cuda] [--out update.json]

Rows: the default; without kernels (on a GPU still a CUDA graph); the eager reference; the peer's code, if a checkout is
given. set-up is from building the agent to the end of the first replayed call, for the default with an empty Triton
cache; memory is torch's peak; busy is the share of the time in which any kernel runs, from a profile of updates issued
without waiting. `--processes` counts the updates per second of that many processes on one GPU.
"""

import argparse
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import ceilings, common, peers, roofline
from benchmarks.together import report, total_rate, wait_for_start
from dreamer_mpc.config import Config
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.kernels.graphs import WARMUP_CALLS
from dreamer_mpc.util.device import choose_device

GIB = 2**30
# Settings that differ from the default; `compile` changes nothing on a CPU.
WAYS = {
    "default": {},
    "kernels off": {"kernels": "off"},
    "eager reference": {"kernels": "off", "compile": "off"},
}
QUEUE = 4  # updates issued ahead of the device, as in a training run


def measure(config: Config, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Times of an update, set-up and peak memory, with a fresh agent."""
    gc.collect()  # free an earlier agent and its graphs
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    batches = itertools.cycle([common.random_batch(config, device) for _ in range(2)])
    common.synchronize(device)
    start = time.perf_counter()
    agent = make_agent(config, common.ACTION_DIM, device)
    for _ in range(WARMUP_CALLS + 1 if cuda else 1):
        agent.update(next(batches))
    common.synchronize(device)
    set_up = time.perf_counter() - start
    times = common.timed(lambda: agent.update(next(batches)), device, args.repeats, args.seconds, warmup=int(cuda))
    memory = torch.cuda.max_memory_allocated(device) / GIB if cuda else None
    busy = common.busy_share(lambda: agent.update(next(batches)), device) if cuda else None
    return {**times, "set_up_s": set_up, "memory_gib": memory, "busy": busy}


def work(config: Config, device: torch.device, folder: Path, name: str, seconds: float) -> None:
    """One of several processes: update until the common end; writes its rate to `folder`."""
    agent, batch = make_agent(config, common.ACTION_DIM, device), common.random_batch(config, device)
    for _ in range(WARMUP_CALLS + 3 if device.type == "cuda" else 1):
        agent.update(batch)
    common.synchronize(device)
    wait_for_start(folder, name)
    start, updates, asked = time.perf_counter(), 0, []
    while time.perf_counter() < start + seconds:
        agent.update(batch)
        updates += 1
        if device.type == "cuda":
            asked.append(torch.cuda.Event())
            asked[-1].record()
            if len(asked) > QUEUE:
                asked.pop(0).synchronize()
    common.synchronize(device)
    report(folder, name, updates / (time.perf_counter() - start))


def together(rest: Sequence[str], processes: int, seconds: float) -> float:
    """Updates per second of `processes` processes on one device, counted over the same time."""
    return total_rate("benchmarks.update", [*rest, "--window", str(seconds)], processes)


def compare(rest: Sequence[str], processes: int, seconds: float) -> dict[str, Any]:
    """Updates per second of `processes` processes relative to one; if they fail, only this figure is missing."""
    try:
        one, many = (together(rest, n, seconds) for n in (1, processes))
    except RuntimeError as error:
        return {"processes": processes, "ratio": None, "text": f"{processes} processes: {error}"}
    text = f"{processes} processes: {many:.1f} updates/s together, one alone {one:.1f}: {many / one:.2f} times"
    return {"processes": processes, "one_per_s": one, "together_per_s": many, "ratio": many / one, "text": text}


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("--peer", type=Path, help="checkout of the peer to time as well, or a JSON of benchmarks.peers")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="rows of ours")
    parser.add_argument("--processes", type=int, default=1, help="also count updates/s of so many at once")
    parser.add_argument("--window", type=float, default=4.0, help="seconds over which those are counted")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    config = common.parse_settings(rest)
    device = choose_device(config.device)
    if args.worker:
        return work(config, device, Path(args.worker[0]), args.worker[1], args.window)
    cuda = device.type == "cuda"
    # An empty kernel cache for the set-up time; the other processes use the kernels that this one compiled.
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache):
        rows = []
        for name, changes in WAYS.items():
            if name not in args.ways or (not cuda and "compile" in changes):
                continue
            rows.append({"name": name, **measure(replace(config, **changes), device, args)})
            print(f"{name}: {common.show(rows[-1]['ms'])} ms", flush=True)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
        several = {}
        if args.processes > 1:
            several = compare(rest, args.processes, args.window)
    if args.peer:
        sizes = ["--batch-size", config.replay.batch_size, "--length", config.replay.sequence_length]
        rows += peers.rows(args.peer, "update", [*sizes, "--device", config.device], args.seconds, args.repeats)
    rate = roofline.rate_of(config, device)
    moved = roofline.update_bytes(config, rate == "bf16")
    found = roofline.floor(roofline.update_flops(config), moved, ceilings.load(args.ceilings, device), rate)
    for row in rows:
        row["share"] = None if row["name"].startswith("peer") else found["floor_ms"] / row["ms"]
    record = {"benchmark": "update", **common.describe(device), "rows": rows, "several": several, "roofline": found}
    shape = f"{config.replay.sequence_length} x {config.replay.batch_size} frames"
    columns = {"name": "update", "ms": "ms, median", "p10_ms": "10 %", "p90_ms": "90 %", "repeats": "calls"}
    columns |= {"set_up_s": "set-up, s", "memory_gib": "memory, GiB", "busy": "busy", "share": "share of the floor"}
    footer = roofline.line(found, rows[0]["ms"], rate)
    footer += f"\n{several['text']}" if several else ""
    common.print_table(f"One update, {shape}: {record['device']}", columns, rows, footer)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
