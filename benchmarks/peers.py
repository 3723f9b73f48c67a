"""Time the code base of the paper, yusukeurakami/dreamer-pytorch, at the same sizes.

    git clone https://github.com/yusukeurakami/dreamer-pytorch /tmp/peer
    python -m benchmarks.peers /tmp/peer [--device cuda] [--out peers.json]

Its update exists only inside the loop of its `main.py`. So that file is parsed, and only some of its statements are
executed, unchanged: those that read the options, build networks and optimizers, and (the body of `for s in
range(args.collect_interval)`) update world model, actor and critic, with its own `models.py`, `utils.py` and
`planner.py` from the checkout. No code of it is kept here. Packages that only its plots and environments need are
replaced by empty ones. `D.sample` returns a batch that is already on the device; another row samples from its replay.

It imagines 14 steps (its horizon counts the start), predicts 49 of 50 frames and has one value head; ours are 15, 50
and 5. By default it runs without TF32 products; another row switches these and cuDNN's search on.
"""

import ast
import hashlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import common

FILES = ("main.py", "models.py", "utils.py", "planner.py", "memory.py", "env.py")
# Imported by its main.py and utils.py; nothing that is executed here uses them.
UNUSED = (
    "cv2", "plotly", "plotly.graph_objs", "plotly.graph_objs.scatter", "tensorboardX", "torchvision",
    "torchvision.utils", "tqdm",
)  # fmt: skip
BUILT = {
    "transition_model", "observation_model", "reward_model", "encoder", "actor_model", "value_model", "param_list",
    "value_actor_param_list", "params_list", "model_optimizer", "actor_optimizer", "value_optimizer", "global_prior",
    "free_nats", "model_modules",
}  # fmt: skip


class Peer:
    """The peer's networks and its update, from a checkout, on one device."""

    def __init__(self, checkout: Path, device: torch.device, batch_size: int, length: int):
        missing = [name for name in FILES if not (checkout / name).is_file()]
        if missing:
            raise SystemExit(f"error: {checkout} is no checkout of the peer: it lacks {', '.join(missing)}")
        tree = ast.parse((checkout / "main.py").read_text(encoding="utf-8"), filename="the peer's main.py")
        options, building, self._step = _statements(tree)
        sys.path.insert(0, str(checkout))
        sys.argv = ["main.py", "--env", "cheetah-run", "--batch-size", str(batch_size), "--chunk-size", str(length)]
        self.scope: dict[str, Any] = {"__name__": "peer"}
        with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in UNUSED}):
            exec(options, self.scope)
        self.args, self.device = self.scope["args"], device
        self.args.device = device
        self.scope["env"] = types.SimpleNamespace(action_size=common.ACTION_DIM, observation_size=(3, 64, 64))
        exec(building, self.scope)
        self.scope["losses"] = []

    def update(self, sample: Callable[[int, int], tuple]) -> Callable[[], None]:
        """One update of all three from what `sample(batch size, length)` gives, as a function."""
        self.scope["D"] = types.SimpleNamespace(sample=sample)
        return lambda: exec(self._step, self.scope)

    def batch(self) -> tuple[torch.Tensor, ...]:
        """Images [T, B, 3, 64, 64] as its replay hands them over, actions, rewards and nonterminals, on the device."""
        shape = (self.args.chunk_size, self.args.batch_size)
        return (
            torch.rand(*shape, 3, 64, 64, device=self.device) - 0.5,
            torch.rand(*shape, common.ACTION_DIM, device=self.device) * 2 - 1,
            torch.rand(*shape, device=self.device),
            torch.ones(*shape, 1, device=self.device),
        )

    def replay(self, frames: int = 5000) -> Any:
        """Its own replay, full of random frames."""
        memory = self.scope["ExperienceReplay"](frames, False, (3, 64, 64), common.ACTION_DIM, 5, self.device)
        rng = np.random.default_rng(0)
        memory.observations[:] = rng.integers(0, 256, memory.observations.shape, dtype=np.uint8)
        memory.actions[:], memory.rewards[:] = rng.uniform(-1, 1, memory.actions.shape), rng.random(frames)
        memory.nonterminals[:], memory.full = 1, True
        return memory

    def plan(self, batch: int, horizon: int, candidates: int, iterations: int = 10) -> Callable[[], torch.Tensor]:
        """Its CEM planner for `batch` environments, as a function."""
        models = self.scope["transition_model"], self.scope["reward_model"]
        best = max(candidates // 10, 1)
        planner = self.scope["MPCPlanner"](common.ACTION_DIM, horizon, iterations, candidates, best, *models)
        sizes = self.args.belief_size, self.args.state_size
        state = [torch.randn(batch, size, device=self.device) for size in sizes]
        return torch.no_grad()(lambda: planner(*state))


def _statements(tree: ast.Module) -> list[Any]:
    """Code of three parts of main.py: options; networks and optimizers; one update."""
    parsed = next(i for i, node in enumerate(tree.body) if _assigns(node) == {"args"})
    options = [n for n in tree.body[: parsed + 1] if isinstance(n, ast.Import | ast.ImportFrom | ast.Assign | ast.Expr)]
    (training,) = [n for n in tree.body if isinstance(n, ast.For) and any(_is_update(part) for part in n.body)]
    (update,) = [part for part in training.body if _is_update(part)]
    building = [n for n in [*tree.body[parsed + 1 :], *training.body] if _assigns(n) and _assigns(n) <= BUILT]
    parts = (options, building, update.body)
    return [compile(ast.Module(list(part), []), "the peer's main.py", "exec") for part in parts]


def _assigns(node: ast.stmt) -> set[str]:
    """Plain names that the statement assigns."""
    return {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else set()


def _is_update(node: ast.stmt) -> bool:
    return isinstance(node, ast.For) and "collect_interval" in ast.dump(node.iter)


def blob(path: Path) -> str:
    """git's name for the file's content, by which its version is known also without git."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def measure(peer: Peer, args: Any) -> list[dict[str, Any]]:
    """Rows of the table. TorchScript specialises in the first calls."""
    device, found = peer.device, []
    fast = device.type == "cuda"
    calls = {"repeats": args.repeats, "seconds": args.seconds}

    def add(name: str, function: Callable[[], Any], warmup: int) -> None:
        found.append({"name": name, **common.timed(function, device, **calls, warmup=warmup)})
        print(f"peer, {name}: {common.show(found[-1]['ms'])} ms", flush=True)

    warmup = 5 if fast else 2
    batch = peer.batch()
    if args.only != "plan":
        add("update", peer.update(lambda n, length: batch), warmup)
    if args.only is None:
        add("update, sampled from its replay", peer.update(peer.replay().sample), 1)
    if args.only != "update":
        for batch_size in (1, 8) if fast else (1,):
            plan = peer.plan(batch_size, args.horizon, args.candidates)
            add(f"cem plan, batch {batch_size}", plan, warmup)
    if fast and args.only != "plan":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        add("update, TF32 and cuDNN's search on", peer.update(lambda n, length: batch), warmup)
    return found


def rows(source: Path, kind: str, words: Sequence[Any], seconds: float, repeats: int | None) -> list[dict[str, Any]]:
    """Rows whose name contains `kind`, from a separate process that times the checkout `source`.

    Or from `source` itself, where that is a JSON file of such a process.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = source
        if source.suffix != ".json":
            out = Path(folder) / "peers.json"
            command = [sys.executable, "-m", "benchmarks.peers", source.resolve(), "--only", kind, *words, "--out", out]
            command += ["--seconds", seconds, *(["--repeats", repeats] if repeats else [])]
            subprocess.run([str(word) for word in command], cwd=common.ROOT, check=True)
        return [{**row, "name": f"peer, {row['name']}"} for row in common.read(out)["rows"] if kind in row["name"]]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--horizon", type=int, default=12, help="of its CEM planner")
    parser.add_argument("--candidates", type=int, default=1000, help="of its CEM planner, of which it keeps a tenth")
    parser.add_argument("--only", choices=("update", "plan"), help="default: both, and the update with its replay")
    args = parser.parse_args(argv)
    # Not choose_device: that switches TF32 and cuDNN's search on.
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    about = common.describe(device)
    peer = Peer(args.checkout.resolve(), device, args.batch_size, args.length)
    found = measure(peer, args)
    wanted = ("belief_size", "state_size", "hidden_size", "embedding_size", "batch_size", "chunk_size", "discount")
    settings = {key: getattr(peer.args, key) for key in (*wanted, "planning_horizon", "grad_clip_norm")}
    settings |= {"cem_horizon": args.horizon, "cem_candidates": args.candidates, "cem_iterations": 10}
    source = {"repository": "https://github.com/yusukeurakami/dreamer-pytorch"}
    source |= {"blobs": {name: blob(args.checkout / name) for name in FILES}}
    record = {"benchmark": "peers", **about, "peer": source, "settings": settings, "rows": found}
    columns = {"name": "peer", "ms": "ms, median", "p10_ms": "10 %", "p90_ms": "90 %", "repeats": "calls"}
    common.print_table(f"yusukeurakami/dreamer-pytorch on {about['device']}", columns, found)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
