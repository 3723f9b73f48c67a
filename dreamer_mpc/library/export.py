"""The policy of a trained agent as a file for other programs, in the format of torch.export or ONNX, and checked."""

import dataclasses
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import ExportConfig, option, parse
from dreamer_mpc.config.make import load_agent
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.util.errors import UserError, in_one_line
from dreamer_mpc.util.files import atomic_path, user_path
from dreamer_mpc.util.owner import alone_in
from dreamer_mpc.util.program import program

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INPUTS, OUTPUTS = ("image", "action", "state", "noise"), ("next_action", "next_state")
UNUSED = {"critic", "decoder", "reward_head", "continue_head", "projector"}
CHECK_STEPS, CHECK_ROWS = 8, 3
TOLERANCE = 1e-3  # of numbers near 1; what a wrong network does is near 1 itself
Run = Callable[..., tuple[np.ndarray, np.ndarray]]


class Policy(nn.Module):
    """One step of acting without planning: the latent state that an image leads to, and the actor's mode there.

    It takes from `agent` what acting does not need: the agent can do nothing else after that.

    An episode begins with zeros as action and state. `noise` are standard normal draws, as the agent draws them; zeros
    give the most likely state.
    """

    def __init__(self, agent: Agent):
        super().__init__()
        self.model = agent.model
        for part in (self.model, self.model.world_model):  # what acting does not need
            for name in UNUSED & dict(part.named_children()).keys():
                setattr(part, name, None)
        self.requires_grad_(False)  # so that outputs of the file are plain numbers, which `numpy()` takes

    def forward(
        self,
        image: UInt8[Tensor, "B H W C"],
        action: Float[Tensor, "B A"],
        state: Float[Tensor, "B S"],
        noise: Float[Tensor, "B Z"],
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B S"]]:
        is_first = torch.zeros_like(action[:, 0], dtype=torch.bool)
        amp = torch.autocast(image.device.type, enabled=False)
        state = self.model.world_model.observe_step(state, action, image, is_first, amp, noise)
        return self.model.policy(state).mode.clamp(-1, 1), state


def export_policy(subject: Subject, path: str | Path, form: Format) -> float:
    """Write the policy of a checkpoint to `path`, and its shapes to `<path>.json`; returns the largest difference.

    The file is checked first: over some steps of random images it must give what the agent gives, from the same draws.
    UserError, in one line, where the agent has no policy, packages are missing, or the two differ.
    """
    if subject.trained.agent != "dreamer":
        raise UserError(f"{subject.path} holds a PlaNet agent, which has no policy to export: name a Dreamer's")
    if form == "onnx" and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'dreamer-mpc[onnx]', or --format torch")
    if Path(path).suffix != SUFFIXES[form]:
        raise UserError(f"a policy in the format {form} is a file *{SUFFIXES[form]}, not {path}: name it so with --out")
    config = dataclasses.replace(subject.trained, kernels="off", compile="off", precision="fp32")
    agent = load_agent(subject.checkpoint, config, subject.checkpoint.action_dim, torch.device("cpu"))
    policy = Policy(agent).eval()
    try:
        with atomic_path(path) as temporary, atomic_path(f"{path}.json") as about:
            run = _write(policy, temporary, form)
            difference = _check(policy, run)
            if not difference <= TOLERANCE:
                raise UserError(f"the exported policy differs from the agent by {difference:.2g}: nothing was written")
            about.write_text(json.dumps(_about(subject, policy, form), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): name another file with --out") from error
    return difference


@torch.no_grad()
def _write(policy: Policy, path: Path, form: Format) -> Run:
    """Write the file, and read it back as a function of arrays."""
    example = _inputs(policy, rows=2, seed=0)
    batch = torch.export.Dim("batch", min=1)
    shapes = dict.fromkeys(INPUTS, {0: batch})
    path.touch()  # the operating system's reason where it cannot be written: torch has errors of its own for that
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside torch's exporter
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
            program = torch.export.export(policy, example, dynamic_shapes=shapes)
            if form == "torch":
                torch.export.save(program, path)
            else:
                names = {"input_names": list(INPUTS), "output_names": list(OUTPUTS)}
                torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path, external_data=False)
    except Exception as error:  # torch's exporters raise exceptions of many kinds
        raise UserError(f"torch cannot export this agent's policy as {form}: {in_one_line(error)[:200]}") from error
    return _torch_run(path) if form == "torch" else _onnx_run(path)


def _torch_run(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(*inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            return tuple(x.numpy() for x in module(*inputs))

    return run


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return tuple(session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}))

    return run


@torch.no_grad()
def _check(policy: Policy, run: Run) -> float:
    """The largest difference to the agent over an episode of random images, in several rows."""
    _, action, state, _ = _inputs(policy, CHECK_ROWS, seed=0)
    action, state, largest = torch.zeros_like(action), torch.zeros_like(state), 0.0
    for step in range(CHECK_STEPS):
        image, _, _, noise = _inputs(policy, CHECK_ROWS, seed=step)
        given = run(image, action, state, noise)
        action, state = policy(image, action, state, noise)
        differences = [np.abs(x - y.numpy()).max() for x, y in zip(given, (action, state), strict=True)]
        largest = max(largest, *map(float, differences))
    return largest


def _inputs(policy: Policy, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    world, draw = policy.model.world_model, torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (rows, *world.images.shape), generator=draw, dtype=torch.uint8)
    action = torch.rand(rows, policy.model.action_dim, generator=draw) * 2 - 1
    return image, action, world.initial(rows).detach(), torch.randn(rows, world.noise_dim, generator=draw)


def _about(subject: Subject, policy: Policy, form: Format) -> dict[str, Any]:
    """What another program must know of the file."""
    shapes = {name: list(x.shape[1:]) for name, x in zip(INPUTS, _inputs(policy, 1, 0), strict=True)}
    return {
        "format": form,
        "checkpoint": str(subject.path),
        "env": subject.trained.env,
        "action_repeat": subject.trained.action_repeat,
        "inputs": {name: {"shape": ["batch", *shape]} for name, shape in shapes.items()},
        "outputs": list(OUTPUTS),
        "first_step": "action and state are zeros; noise is standard normal, or zeros for the most likely state",
        "torch": torch.__version__,
    }


def main(args: Sequence[str]) -> int:
    """`run.py export`."""
    checkpoint = option(args, "checkpoint")
    subject = None if checkpoint is None else Subject.load(checkpoint)
    config = parse(ExportConfig, args, prog=program("export"))
    path = user_path(config.out) if config.out else subject.run.path / f"policy{SUFFIXES[config.format]}"
    with alone_in(path.parent, "wait for it, or name another file with --out"):
        difference = export_policy(subject, path, config.format)
    size = path.stat().st_size / 1e6
    print(f"wrote {path}, {size:.1f} MB, and {path.name}.json; it gives what the agent gives, within {difference:.1g}")
    return 0
