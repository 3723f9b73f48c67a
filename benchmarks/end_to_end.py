"""Time a whole run, with its evaluations and checkpoints: `python run.py --env cheetah-run --planner dream-mpc`.

    python -m benchmarks.end_to_end [--env-steps 1000000] [--update-result update.json] [--eval.no-video] [--out FILE]

The run is a separate process, which gets all options that this script does not know. Wall time is from its start to its
end. Updates per second are the median over rounds. With `--update-result`, the figures of `benchmarks.update`, it also
prints the share of the wall time that the updates alone would take, as measured and at the floor of their roofline.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from dreamer_mpc.util.device import choose_device

# Lines that a run prints (train.py): key, pattern.
LINES = {
    "set_up_s": r"set-up before the first update: ([\d.]+) s",
    "seed_episodes_s": r"beside ([\d.]+) s of seed episodes",
    "checkpoints": r"(\d+) checkpoints? took",
    "saving_s": r"checkpoints? took ([\d.]+) s",
    "memory_gib": r"peak GPU memory ([\d.]+) GiB",
}


def run(command: list[str]) -> tuple[float, dict[str, float]]:
    """Wall seconds of a run, and the figures that it prints; SystemExit with its last line if it fails."""
    start, found, tail = time.perf_counter(), {}, deque(maxlen=5)
    process = subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            tail.append(line.strip())
            for key, pattern in LINES.items():
                if match := re.search(pattern, line):
                    found[key] = float(match[1])
                    if key == "saving_s":  # the last line of training; the bare policy's episodes follow
                        found["trained_s"] = time.perf_counter() - start
        if process.wait():
            raise SystemExit(f"error: the run ended with {process.returncode}: {' '.join(filter(None, tail))}")
    finally:
        process.kill()
        process.wait()
    return time.perf_counter() - start, found


def start_run(
    words: Sequence[str], beside: Path | None, run_dir: Path | None = None
) -> tuple[float, dict[str, float], list[dict[str, Any]]]:
    """Wall seconds of `run.py train` with `words`, the figures that it prints, and its metrics.

    In `run_dir`, or in a folder in `beside` (default: where temporary files are) that is deleted.
    """
    if beside:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=beside) as folder:
        path = run_dir.absolute() if run_dir else Path(folder) / "run"
        wall, found = run([sys.executable, "run.py", "train", *words, "--run-dir", str(path)])
        return wall, found, [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def rounds(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Counters at the end, and updates and env steps per second: medians over rounds of training."""
    rates, most = {"updates": [], "env_steps": []}, 0
    for before, after in zip(records, records[1:], strict=False):
        seconds, most = after["time_s"] - before["time_s"], max(most, before["env_steps"])
        if before["env_steps"] < most:  # of an evaluation beside training, which was further by then
            continue
        if any(key.startswith("train/") for key in after) and seconds > 0:
            for name, values in rates.items():
                values.append((after[name] - before[name]) / seconds)
    evaluations = [record for record in records if "eval/return_mean" in record]
    return {
        **{name: records[-1][name] for name in ("env_steps", "agent_steps", "updates")},
        **{f"{name}_per_s": statistics.median(values) if values else None for name, values in rates.items()},
        "evaluations": len(evaluations),
        "last_return": evaluations[-1]["eval/return_mean"] if evaluations else None,
    }


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """A record's counters, time and returns."""
    kept = ("env_steps", "updates", "time_s", "train/return", "eval/return_mean", "eval/ms_per_action")
    return {key: record[key] for key in kept if key in record}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("--env-steps", type=int, help="default: 1,000,000 on a GPU, 3,000 on a CPU")
    parser.add_argument("--update-result", type=Path, help="JSON of benchmarks.update on the same machine")
    parser.add_argument("--run-dir", type=Path, help="keep the run here; default: a folder that is deleted")
    args, rest = parser.parse_known_args(argv)
    device = choose_device(common.parse_settings(rest).device)
    steps = args.env_steps or (1_000_000 if device.type == "cuda" else 3000)
    defaults = {"--env": "cheetah-run", "--planner": "dream-mpc"}
    given = [word for option, value in defaults.items() if option not in rest for word in (option, value)]
    given += ["--env-steps", str(steps), *rest]
    wall, found, records = start_run(given, args.out.absolute().parent if args.out else None, args.run_dir)
    row = {"name": " ".join(["run.py", *given]), "wall_s": wall, "wall_min": wall / 60, **found, **rounds(records)}
    if "set_up_s" in row:
        row["first_update_s"] = row["set_up_s"] + row["seed_episodes_s"]
    footer = "roofline: not counted without --update-result"
    if args.update_result:
        update = common.read(args.update_result)
        alone, at_floor = update["rows"][0]["ms"], update["roofline"]["floor_ms"]
        row["updating_share"] = 1e-3 * row["updates"] * alone / wall
        row["floor_share"] = 1e-3 * row["updates"] * at_floor / wall
        footer = (
            f"roofline: {row['updates']:,} updates alone would take {row['updating_share']:.0%} of the time at "
            f"{alone:.3g} ms each as measured, {row['floor_share']:.1%} at their floor of {at_floor:.3g} ms"
        )
    metrics = [brief(record) for record in records]
    record = {"benchmark": "end_to_end", **common.describe(device), "rows": [row], "metrics": metrics}
    columns = {"env_steps": "env steps", "wall_min": "wall, min", "set_up_s": "set-up, s"}
    columns |= {"first_update_s": "to first update, s", "updates": "updates", "updates_per_s": "updates/s"}
    columns |= {"env_steps_per_s": "env steps/s", "evaluations": "evaluations", "last_return": "last return"}
    columns |= {"saving_s": "saving, s"}
    columns |= {"memory_gib": "memory, GiB"}
    common.print_table(f"{row['name']}: {record['device']}", columns, [row], footer)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
