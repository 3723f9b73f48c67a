"""Kill a small training run at random moments, resume it each time, and compare its end with an uninterrupted run.

    python -m scripts.soak [--kills 50] [--seed 0] [--num-envs 1] [--out soak.json] [options of run.py]

The second family: --config quick,v3-small --world-model.blocks 4 --optimizer.warmup 2

A quarter of the kills (SIGKILL) comes at a random moment of the process, a quarter after training has begun, half
during a save: before a file's fsync, before its rename, or right after it. After each kill the folder is opened as
`--resume` opens it, and the lost progress is counted. A run that reaches its end is compared bit for bit, and the next
one begins; the last run is not killed again after the last kill.
Exit code 1 if anything differs, or if a folder could not be resumed.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENV = ["--env", "cartpole-swingup", "--render-quality", "fast", "--action-repeat", "4", "--max-env-steps", "80"]
# Rounds of 2 updates and 80 env steps (an episode), an evaluation every 400 env steps, a checkpoint every half second.
SETTINGS = [
    "--env-steps", "1600", "--train.seed-episodes", "2", "--train.every", "80", "--train.updates",
    "2", "--train.checkpoint-seconds", "0.5", "--eval.every", "400", "--eval.episodes", "1", "--eval.num-envs", "1",
    "--eval.no-video", "--replay.batch-size", "4", "--replay.sequence-length", "8", "--dream-mpc.horizon", "4",
    "--world-model.deter", "32", "--world-model.stoch", "8", "--world-model.hidden", "32",
    "--world-model.encoder-channels", "8", "16", "32", "64", "--world-model.decoder-dense", "64",
    "--world-model.decoder-channels", "16", "8", "8", "--world-model.reward-hidden", "32",
    "--behavior.horizon", "4", "--behavior.actor-hidden", "32", "--behavior.value-hidden", "32",
]  # fmt: skip
MOMENTS = ("any moment", "in training")
PLACES = ("before fsync", "before rename", "after rename")
TIMES = ("time_s", "eval/ms_per_action", "train/env_steps_per_s", "train/updates_per_s")
POSITION = struct.Struct("qq")  # env steps, updates


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    args, settings = parser.parse_known_args(argv)
    preset = [] if "--config" in settings else ["--config", "quick"]
    run_args = [*preset, *SETTINGS, *ENV, "--num-envs", str(args.num_envs), *settings]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        record = soak(Path(folder), run_args, args.kills, random.Random(args.seed))
    print(summary(record))
    if args.out:
        args.out.write_text(json.dumps({"seed": args.seed, "num_envs": args.num_envs, **record}, indent=1) + "\n")
    return 0 if record["equal_runs"] == record["runs"] and not record["refused"] else 1


def soak(folder: Path, run_args: Sequence[str], kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill runs below `folder` `kills` times; returns a record of each kill, and how the runs ended."""
    from dreamer_mpc.runs.resume import open_run
    from dreamer_mpc.util.counters import Counters
    from dreamer_mpc.util.errors import UserError

    reference = folder / "whole"
    began = time.monotonic()
    child(folder, [*run_args, "--run-dir", str(reference)]).wait()
    whole_seconds = time.monotonic() - began
    record = {"whole_seconds": whole_seconds, "kills": [], "runs": 0, "equal_runs": 0, "differences": [], "refused": []}
    while len(record["kills"]) < kills:
        run = folder / f"run-{record['runs']}"
        command, finished = [*run_args, "--run-dir", str(run)], False
        while not finished:
            last = len(record["kills"]) >= kills
            when = rng.choice(MOMENTS if rng.random() < 0.5 else PLACES)
            process = child(folder, command, when if when in PLACES and not last else None, rng.randint(1, 24))
            if when in MOMENTS and not last:
                if when == "in training":
                    wait_for_training(folder, process)
                kill_after(process, rng.uniform(0, 0.4 * whole_seconds))
            process.wait()
            output = (folder / "output.txt").read_text()
            # The last kill may have come after everything was written.
            finished = process.returncode == 0 or "has reached its" in output
            if finished:
                continue
            if process.returncode != -signal.SIGKILL:
                record["refused"].append(output[-2000:])
                break
            reached = POSITION.unpack((folder / "position").read_bytes())
            kill = {"when": when, "env_steps": reached[0], "updates": reached[1]}
            try:
                saved = open_run(str(run))
                counters = saved.checkpoint.counters if saved.checkpoint else Counters()
                kill |= {"damaged": len(saved.notes) if saved.checkpoint else 0}
                command = ["--resume", str(run)]
            except UserError as error:  # killed before the run had written anything: it starts again
                if "no run folder" not in str(error) and "had not begun" not in str(error):
                    record["refused"].append(str(error))
                    break
                counters = Counters()
            kill["saved"] = counters.env_steps
            kill["lost_env_steps"] = max(reached[0] - counters.env_steps, 0)
            kill["lost_updates"] = max(reached[1] - counters.updates, 0)
            record["kills"].append(kill)
            print(f"{len(record['kills'])}: {kill}", flush=True)
        found = differences(run, reference) if finished else ["not finished"]
        record["runs"] += 1
        record["equal_runs"] += not found
        record["differences"] += found
        if record["refused"]:
            break
    return record


def child(folder: Path, args: Sequence[str], inside: str | None = None, number: int = 0) -> subprocess.Popen:
    """A run in a process that writes its position to `folder`; with `inside` it kills itself at the n-th file there."""
    (folder / "position").write_bytes(POSITION.pack(0, 0))
    command = [sys.executable, "-c", f"from scripts.soak import victim; victim({inside!r}, {number})", *args]
    # One thread: on shared cores, waking a second one for networks this small would take most of the time.
    added = {"SOAK_POSITION": str(folder / "position"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "w") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | added)


def wait_for_training(folder: Path, process: subprocess.Popen) -> None:
    """Wait until the process has made a step, or has ended."""
    while process.poll() is None and not any((folder / "position").read_bytes()):
        time.sleep(0.02)


def kill_after(process: subprocess.Popen, seconds: float) -> None:
    """Send SIGKILL, unless the process ends before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def victim(inside: str | None, number: int) -> None:
    """`run.py` with the arguments of this process."""
    if inside:
        name = "fsync" if inside == "before fsync" else "replace"
        original, left = getattr(os, name), number

        def deadly(*args):
            nonlocal left
            left -= 1
            if left == 0 and inside == "after rename":
                original(*args)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        setattr(os, name, deadly)
    from dreamer_mpc.training.trainer import Trainer

    with open(os.environ["SOAK_POSITION"], "r+b") as file:
        shared = mmap.mmap(file.fileno(), POSITION.size)  # survives a killed process
    advance = Trainer._advance

    def noted(self, due):
        advance(self, due)
        POSITION.pack_into(shared, 0, self.counters.env_steps, self.counters.updates)

    Trainer._advance = noted
    import run

    sys.exit(run.main(sys.argv[1:]))


def differences(folder: Path, reference: Path, leave_out: Sequence[str] = ()) -> list[str]:
    """Differences between the metrics and last checkpoints of two runs, except times.

    Configurations (they name folders), the number of replay files, and `leave_out` are not compared.
    """
    from dreamer_mpc.runs.checkpoint import as_payload, load_checkpoint

    found = [] if metrics(folder) == metrics(reference) else [f"metrics of {folder}"]
    a, b = (flatten(as_payload(load_checkpoint(x))) for x in (folder, reference))
    skipped = ("/config/", "/replay_files", "/replay_needs", *leave_out)
    names = [name for name in {**a, **b} if not name.startswith(skipped)]
    return found + [name for name in names if name not in a or name not in b or not same(a[name], b[name])]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts and lists, with its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, item in items for path, leaf in flatten(item, f"{name}/{key}").items()}
    return {name: value}


def same(a: Any, b: Any) -> bool:
    """Whether both are equal, tensors bit for bit."""
    import torch

    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def summary(record: dict[str, Any]) -> str:
    """The table: number of kills and lost progress, by the place of the kill."""
    lines = [f"{'killed':<16}{'times':>6}{'env steps lost: mean':>22}{'most':>6}{'updates lost: mean':>20}{'most':>6}"]
    for when in (*MOMENTS, *PLACES):
        rows = [kill for kill in record["kills"] if kill["when"] == when]
        if not rows:
            continue
        words = f"{when:<16}{len(rows):>6}"
        for key, width in (("lost_env_steps", 22), ("lost_updates", 20)):
            values = [row[key] for row in rows]
            words += f"{sum(values) / len(values):>{width}.1f}{max(values):>6}"
        lines.append(words)
    lines.append(
        f"{len(record['kills'])} kills, {record['runs']} runs, {record['equal_runs']} of them equal to the one that "
        f"was not killed; {len(record['refused'])} folders refused"
    )
    return "\n".join([*lines, *record["refused"], *record["differences"][:20]])


if __name__ == "__main__":
    sys.exit(main())
