"""Shared code of the benchmarks: options, timing, random data, the record on disk, the table on the terminal."""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.together import ROOT as ROOT
from dreamer_mpc.config import Config, evaluated_alike, load_presets, option, parse
from dreamer_mpc.report.console import table_console
from dreamer_mpc.runs.folder import package_versions, source_commit
from dreamer_mpc.util.device import device_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import write_text
from dreamer_mpc.world_model import Batch

ACTION_DIM = 6  # cheetah-run
LEAST = 3  # calls per row, even if they are slow


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark; unknown options are settings of a run (`--config quick`, `--device cpu`)."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--out", type=Path, help="JSON file to write")
    result.add_argument("--repeats", type=int, help="timed calls of each row; default: 30 on a GPU, 200 on a CPU")
    result.add_argument("--seconds", type=float, default=10.0, help="a row stops after this long, with 3 calls or more")
    result.add_argument("--ceilings", type=Path, help="JSON of benchmarks.ceilings; measured anew where not given")
    return result


def parse_settings(args: Sequence[str]) -> Config:
    """The run that `args` describe, as for run.py; SystemExit with one line if they are invalid."""
    try:
        given = parse(Config, args, load_presets(option(args, "config") or "default"), prog="benchmarks")
        return evaluated_alike(given, args)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def overlay(words: Sequence[str], **settings: str | Sequence[str] | None) -> list[str]:
    """Words of a command line with `settings` (`eval__every` is --eval.every) in place of what they say of these.

    A setting has its values behind it; None: it is only taken away.
    """
    kept, dropping = [], False
    names = {name.replace("__", ".").replace("_", "-"): values for name, values in settings.items()}
    for word in words:
        if word.startswith("--"):
            dropping = word[2:].split("=")[0].replace("_", "-") in names
        if not dropping:
            kept.append(word)
    for name, values in names.items():
        if values is not None:
            kept += [f"--{name}", *([values] if isinstance(values, str) else values)]
    return kept


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    function: Callable[[], Any], device: torch.device, repeats: int | None, seconds: float, warmup: int
) -> dict[str, float]:
    """ms of a call by the host's clock, with synchronisation before and after: median, 10th and 90th percentile."""
    repeats = repeats or (30 if device.type == "cuda" else 200)
    for _ in range(warmup):
        function()
    times: list[float] = []
    while len(times) < repeats and (len(times) < LEAST or sum(times) < seconds):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    ordered = sorted(1e3 * t for t in times)
    last = len(ordered) - 1
    return {
        "ms": statistics.median(ordered),
        "p10_ms": ordered[round(0.1 * last)],
        "p90_ms": ordered[round(0.9 * last)],
        "repeats": len(ordered),
    }


def busy_share(function: Callable[[], Any], device: torch.device, calls: int = 8) -> float:
    """Share of the time in which the GPU runs any kernel or copy, while `calls` calls are issued without waiting."""
    synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            function()
        synchronize(device)
    spans = [(e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type.name == "CUDA"]
    return covered(spans) / (max(end for _, end in spans) - min(start for start, _ in spans))


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (start, end) intervals."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def random_batch(config: Config, device: torch.device) -> Batch:
    """A batch of `config`'s size in the format of replay, with random pixels [T, B, 64, 64, 3]."""
    shape = (config.replay.sequence_length, config.replay.batch_size)
    return Batch(
        image=torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8, device=device),
        action=torch.rand(*shape, ACTION_DIM, device=device) * 2 - 1,
        reward=torch.rand(*shape, device=device),
        is_first=torch.zeros(*shape, dtype=torch.bool, device=device),
        is_terminal=torch.zeros(*shape, dtype=torch.bool, device=device),
        index=torch.randint(0, 500_000, shape, device=device),
    )


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, date and command, which belong to every figure."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m {_module()} {shlex.join(sys.argv[1:])}".strip(),
        "commit": source_commit(ROOT / "dreamer_mpc" / "agents" / "dreamer.py"),
        "device": device_name(device),
        "cpu": cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": package_versions(),
    }


def _module() -> str:
    path = Path(sys.argv[0])
    return "benchmarks" if path.stem == "__main__" else f"benchmarks.{path.stem}"


def write(out: Path | None, record: dict[str, Any]) -> None:
    """`record` as JSON."""
    if out:
        write_text(out, json.dumps(record, indent=1) + "\n")
        print(f"wrote {out}", flush=True)


def read(path: Path) -> dict[str, Any]:
    """Read a record that `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def print_table(title: str, columns: dict[str, str], rows: Sequence[dict[str, Any]], footer: str = "") -> None:
    """Rows on the terminal; `columns` gives each key its heading."""
    table = Table(title=title, title_justify="left", caption=footer or None, caption_justify="left")
    for i, heading in enumerate(columns.values()):
        table.add_column(heading, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(show(row.get(key)) for key in columns))
    table_console(130).print(table)


def show(value: Any) -> str:
    """A cell: three significant digits, thousands as whole numbers, empty for None."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
