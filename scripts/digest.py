"""Digests of short training runs on a CPU, to check that two states of the code compute the same.

    python -m scripts.digest [--tree CHECKOUT]

Runs the preset `quick` for some updates with seed 0: Dream-MPC with the paper's settings and PlaNet, with one
environment (sequential) and with two. One digest is a SHA-256 of every logged number except times, another one of every
tensor of the agent in the last checkpoint, independent of their names. Both are equal for two states of the code that
train identically bit for bit on one machine.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
SHORT = [
    "--env", "cheetah-run", "--device", "cpu", "--seed", "0", "--max-env-steps", "100",
    "--env-steps", "400", "--train.every", "50", "--train.updates", "3", "--eval.every", "200", "--eval.episodes", "1",
    "--eval.num-envs", "1", "--eval.no-video",
]  # fmt: skip
RUNS = {
    f"{planner}, {envs} environment{'s' * (envs > 1)}": ["--planner", planner, "--num-envs", str(envs)]
    for planner in ("dream-mpc", "cem")
    for envs in (1, 2)
}
TIMES = ("time", "ms_", "per_s", "seconds")  # parts of the names of metrics that differ in every run


def digest(run: Path) -> tuple[str, str]:
    """Digests of the metrics and of the weights of the run in a folder."""
    metrics = hashlib.sha256()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = {key: value for key, value in json.loads(line).items() if not any(word in key for word in TIMES)}
        metrics.update(json.dumps(row, sort_keys=True).encode())
    newest = max((run / "checkpoints").glob("checkpoint-*.safetensors"))
    with safe_open(newest, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys() if name.startswith("agent/")]
    parts = sorted(
        hashlib.sha256(f"{x.dtype}{tuple(x.shape)}".encode() + x.numpy().tobytes()).hexdigest() for x in tensors
    )
    return metrics.hexdigest()[:16], hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose run.py trains; default: this one")
    tree = parser.parse_args(argv).tree
    paper = (tree / "configs/planner/dream-mpc-paper.yaml").exists()  # in older code these are the defaults
    presets = "quick,planner/dream-mpc-paper" if paper else "quick"
    settings = os.environ | {"OMP_NUM_THREADS": "1"}  # sums over several threads differ between machines
    for name, args in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, str(tree / "run.py"), "--config", presets, *SHORT, *args, "--run-dir", str(run)]
            subprocess.run(command, cwd=tree, env=settings, check=True, stdout=subprocess.DEVNULL)
            print(f"{name:28} metrics {digest(run)[0]}  weights {digest(run)[1]}", flush=True)


if __name__ == "__main__":
    main()
