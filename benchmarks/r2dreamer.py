"""Time NM512/r2dreamer, DreamerV3 in PyTorch, at the sizes of `--config v3` (12M parameters, decoder, 16 x 64 frames).

    git clone https://github.com/NM512/r2dreamer /tmp/r2dreamer
    python -m benchmarks.r2dreamer /tmp/r2dreamer [--limit 900] [--device cuda] [--out r2dreamer.json]

Its own update (`Dreamer.update`: loss, backward, clipping, LaProp) and its acting step (`Dreamer.act`), from its
checkout and its configuration files; no code of it is kept here. Its replay is replaced by a batch that is already on
the device, as in ours; hydra, tensordict and tensorboard by a few lines where they are not installed.

The update is compiled as its configuration says (`torch.compile`, reduce-overhead), in a process of its own with empty
caches, and once not compiled. Where the first three compiled calls take longer than `--limit` seconds, that process is
ended, and its row says so. It has no planner; its acting step is not compiled there either.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import common
from benchmarks.peers import blob
from benchmarks.together import end

GIB = 2**30
FILES = (
    "dreamer.py", "networks.py", "rssm.py", "distributions.py", "tools.py", "optim/laprop.py", "optim/agc.py",
    "configs/configs.yaml", "configs/model/_base_.yaml", "configs/env/dmc_vision.yaml",
)  # fmt: skip
FIRST_CALLS = 3  # compiling, recording the CUDA graphs, replaying them
DONE = "the first calls are done"
COMPILED, PLAIN = "update", "update, not compiled"


class Columns(dict):
    """What its code asks of a TensorDict: a dictionary of tensors with the shape of their leading dimensions."""

    def __init__(self, source: dict[str, Any], batch_size: Sequence[int]):
        super().__init__(source)
        self.batch_size = self.shape = torch.Size(batch_size)


def stand_ins() -> dict[str, types.ModuleType]:
    """Modules in place of those that are imported there and cannot be here: not installed, or for another torch."""
    columns = types.ModuleType("tensordict")
    columns.TensorDict = Columns
    offered = {
        "tensordict": columns,
        "torch.utils.tensorboard": mock.MagicMock(),
    }  # that writes logs; nothing does here
    found = {}
    for name, module in offered.items():
        try:
            importlib.import_module(name)
        except Exception:  # of a package of others, which fails in its own way
            found[name] = module
    return found


class R2Dreamer:
    """Its agent with random weights, from a checkout, on one device; `changes` are settings such as model.deter=64."""

    def __init__(
        self,
        checkout: Path,
        device: torch.device,
        size: str,
        compiled: bool,
        changes: Sequence[str],
        action_dim: int = common.ACTION_DIM,
    ):
        missing = [name for name in FILES if not (checkout / name).is_file()]
        if missing:
            raise SystemExit(f"error: {checkout} is no checkout of r2dreamer: it lacks {', '.join(missing)}")
        self.device, self.config = device, self._config(checkout, device, size, compiled, changes)
        sys.path.insert(0, str(checkout))
        self.stood_in = stand_ins()
        sys.modules.update(self.stood_in)
        from dreamer import Dreamer  # its own
        from tensordict import TensorDict

        self.columns = TensorDict
        image, actions = types.SimpleNamespace(shape=(64, 64, 3)), types.SimpleNamespace(shape=(action_dim,))
        self.agent = Dreamer(self.config.model, types.SimpleNamespace(spaces={"image": image}), actions).to(device)
        self.parameters = sum(parameter.numel() for parameter in self.agent._named_params.values())

    @staticmethod
    def _config(checkout: Path, device: torch.device, size: str, compiled: bool, changes: Sequence[str]) -> Any:
        """What hydra composes of its files, with the decoder."""
        from omegaconf import OmegaConf

        def load(name: str) -> Any:
            config = OmegaConf.load(checkout / "configs" / f"{name}.yaml")
            kept = [key for key in config if key not in ("defaults", "hydra", "logdir")]  # what hydra itself reads
            return OmegaConf.masked_copy(config, kept)

        parts = {"env": load("env/dmc_vision")}
        parts["model"] = OmegaConf.merge(load("model/_base_"), load(f"model/size{size}"))
        chosen = {"device": str(device), "model": {"rep_loss": "dreamer", "compile": compiled}}
        return OmegaConf.merge(load("configs"), parts, chosen, OmegaConf.from_dotlist(list(changes)))

    # What `update` asks of a replay.

    def sample(self) -> tuple[Any, None, tuple[torch.Tensor, torch.Tensor]]:
        """A batch [B, T] on the device, and the states [B, ...] before it; its update writes to the dictionary."""
        return self.columns(dict(self.batch), self.shape), None, self.agent.rssm.initial(self.shape[0])

    def update(self, index: None, stoch: torch.Tensor, deter: torch.Tensor) -> None:
        """Where its replay would store the new states."""

    def fill(self) -> None:
        """Random frames, actions and rewards for `sample`."""
        self.shape = shape = (int(self.config.batch_size), int(self.config.batch_length))
        flags = {name: torch.zeros(*shape, 1, dtype=torch.bool, device=self.device) for name in
                 ("is_first", "is_last", "is_terminal")}  # fmt: skip
        self.batch = flags | {
            "image": torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8, device=self.device),
            "action": torch.rand(*shape, common.ACTION_DIM, device=self.device) * 2 - 1,
            "reward": torch.rand(*shape, 1, device=self.device),
        }

    def act(self, batch: int) -> Any:
        """A step of acting from images on the host to actions on the host, as a function."""
        image = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8)
        is_first = torch.zeros(batch, 1, dtype=torch.bool)
        state = self.agent.get_initial_state(batch)

        def act() -> torch.Tensor:
            seen = {"image": image.to(self.device), "is_first": is_first.to(self.device)}
            return self.agent.act(self.columns(seen, (batch,)), state)[0].cpu()

        return act


def work(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The rows of one process, compiled or not."""
    cuda, compiled = device.type == "cuda", args.worker[0] == COMPILED
    torch.set_float32_matmul_precision("high")  # as its train.py does
    peer = R2Dreamer(args.checkout, device, args.size, compiled, args.set)
    peer.fill()
    calls = {"repeats": args.repeats, "seconds": args.seconds}
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    common.synchronize(device)
    start = time.perf_counter()
    for _ in range(FIRST_CALLS if cuda or compiled else 1):
        peer.agent.update(peer)
    common.synchronize(device)
    first = time.perf_counter() - start
    print(f"{DONE} after {first:.1f} s", flush=True)
    while compiled and args.after and not args.after.exists():
        time.sleep(0.5)
    row = {"name": args.worker[0], "first_calls_s": first, "parameters": peer.parameters}
    row |= common.timed(lambda: peer.agent.update(peer), device, **calls, warmup=2 if cuda else 0)
    row["memory_gib"] = torch.cuda.max_memory_allocated(device) / GIB if cuda else None
    row["stand_ins"] = sorted(peer.stood_in)
    rows = [row]
    if not compiled:
        for batch in args.batches:
            timed = common.timed(peer.act(batch), device, **calls, warmup=5 if cuda else 1)
            rows.append({"name": f"acting step, batch {batch}", **timed})
    return rows


def run_worker(name: str, args: argparse.Namespace, words: Sequence[str], limit: float | None) -> list[dict[str, Any]]:
    """The rows of a process with empty caches of compiled code, or one that says why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        caches = {name: str(Path(folder) / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        command = [sys.executable, "-m", "benchmarks.r2dreamer", *words, "--worker", name, str(out)]
        said = Path(folder) / "said"
        with said.open("w") as file:
            process = subprocess.Popen(
                command, cwd=common.ROOT, env=os.environ | caches, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                failed = process.wait(limit)
            except subprocess.TimeoutExpired:
                late = f"no time of a call after {limit:.0f} s" if DONE in said.read_text() else None
                return [{"name": name, "ms": None, "text": late or f"not compiled after {limit:.0f} s"}]
            finally:
                if process.poll() is None:
                    end(process)  # it compiles in processes of its own
                    process.wait()
        print(text := said.read_text(), end="", flush=True)
        if failed:
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "no word of it")
            return [{"name": name, "ms": None, "text": f"failed: {last.strip()}"[:200]}]
        return json.loads(out.read_text())


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Measure, print, write."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = common.parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="12M", help="a name of its configs/model/size*.yaml")
    parser.add_argument("--set", nargs="+", default=[], help="settings of its configuration: model.deter=64")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16], help="environments that are acted in at once"
    )
    parser.add_argument("--only", choices=("plain", "compiled"), help="default: both")
    parser.add_argument("--limit", type=float, help="seconds for the process of the compiled update; default: no limit")
    parser.add_argument("--after", type=Path, help="time the compiled update when this file is there")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.checkout = args.checkout.resolve()
    # Not choose_device: that changes settings of torch.
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if args.worker:
        Path(args.worker[1]).write_text(json.dumps(work(args, device)))
        return None
    if not all((args.checkout / name).is_file() for name in FILES):
        R2Dreamer(args.checkout, device, args.size, False, args.set)  # says what it lacks
    source = {"repository": "https://github.com/NM512/r2dreamer", "size": args.size, "set": args.set}
    source["blobs"] = {name: blob(args.checkout / name) for name in FILES}
    rows: list[dict[str, Any]] = []
    record = {"benchmark": "r2dreamer", **common.describe(device), "peer": source, "rows": rows}
    if args.only != "compiled":
        rows += run_worker(PLAIN, args, argv, None)
        common.write(args.out, record)  # what is known, should this process be ended while it compiles
    if args.only != "plain":
        rows += run_worker(COMPILED, args, argv, args.limit)
        common.write(args.out, record)
    columns = {"name": "peer", "ms": "ms, median", "p10_ms": "10 %", "p90_ms": "90 %", "repeats": "calls"}
    columns |= {"first_calls_s": f"first {FIRST_CALLS} calls, s", "memory_gib": "memory, GiB", "text": "why not"}
    common.print_table(f"NM512/r2dreamer, {args.size}, decoder: {record['device']}", columns, rows)
    return record


if __name__ == "__main__":
    main()
