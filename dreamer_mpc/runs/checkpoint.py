"""Checkpoints and their files: a trained agent and, if its training can be resumed, the training state."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from torch import Tensor

from dreamer_mpc.agents.protocol import AgentKind
from dreamer_mpc.runs.payload import SUFFIX, archive, read_payload, write_payload
from dreamer_mpc.util.counters import Counters
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path, discard, files_of, user_path
from dreamer_mpc.world_model import WorldModelKind

KINDS = {"agent_kind": get_args(AgentKind), "world_model_kind": get_args(WorldModelKind)}  # that this program knows
AGENT = {
    "config": dict, "counters": dict, "action_dim": int, "agent_kind": str, "world_model_kind": str, "agent": dict,
}  # fmt: skip
TRAINING = {
    "training": dict, "records": int, "collector": dict, "replay": dict, "replay_files": list, "replay_needs": dict,
    "random": dict,
}  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint. The fields after `agent` are all set, or all None where only the agent is kept."""

    config: dict[str, Any]  # of the training, in the format of `to_dict`
    counters: Counters
    action_dim: int
    agent_kind: AgentKind
    world_model_kind: WorldModelKind
    agent: dict[str, Any]  # `model`, its weights by name, and the state that the agent needs to continue learning
    training: dict[str, Any] | None = None  # state of the training loop
    records: int | None = None  # number of metrics records logged
    collector: dict[str, Any] | None = None
    replay: dict[str, Any] | None = None  # its state without the frames
    replay_files: list[dict[str, Any]] | None = None  # the files with the frames
    replay_needs: dict[str, int] | None = None  # env steps of a kept checkpoint -> the first of these files it needs
    random: dict[str, Any] | None = None  # random generators of the process

    @property
    def resumable(self) -> bool:
        """Whether training can be resumed from it."""
        return self.training is not None

    def agent_alone(self) -> "Checkpoint":
        """The checkpoint without the training state."""
        return dataclasses.replace(self, **dict.fromkeys(TRAINING))


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write it atomically; errors as from `write_payload`."""
    write_payload(path, as_payload(checkpoint))


def as_payload(checkpoint: Checkpoint) -> dict[str, Any]:
    """The payload to write: plain values by field name, without the fields that are None."""
    values = {name: value for name, value in vars(checkpoint).items() if value is not None}
    return values | {"counters": dataclasses.asdict(checkpoint.counters)}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint, its tensors on the host: a file, a checkpoints/ folder or a run folder (newest file).

    UserError if there is none, or if it is damaged, incomplete, of another program, or of another format version.
    """
    path = find_checkpoint(path)
    version, payload = read_payload(path)
    if version == 2:
        payload = _from_version_2(payload)
    misfit = _misfit(payload)
    if misfit:
        raise UserError(f"{path} holds no trained agent ({misfit}): name a checkpoint-*{SUFFIX} of a run")
    for name, known in KINDS.items():
        if payload[name] not in known:
            what = name.removesuffix("_kind").replace("_", " ")
            raise UserError(
                f"{path} holds the {what} {payload[name][:80]!r}, this code knows {', '.join(known)}: "
                "check out the commit in the run's versions.json"
            )
    return Checkpoint(**{**payload, "counters": Counters(**payload["counters"])})


def load_newest(path: str | Path, read: Callable[[Path], T] = load_checkpoint) -> tuple[Path, T, list[str]]:
    """The newest checkpoint at `path` that `read` accepts: the file, its content, and a line on each damaged newer one.

    If `read` accepts none, the UserError is about the newest.
    """
    path = user_path(path)
    newest, damages = find_checkpoint(path), []
    for file in [newest] if path.is_file() else reversed(list_checkpoints(newest.parent)):
        try:
            return file, read(file), [f"{damage}; the one before it is used: {file}" for damage in damages]
        except UserError as error:
            damages.append(str(error))
    raise UserError(damages[0])


def checkpoint_path(folder: str | Path, env_steps: int) -> Path:
    """The path of the checkpoint at `env_steps`: `folder/checkpoint-00200000.safetensors`."""
    return Path(folder) / f"checkpoint-{env_steps:08d}{SUFFIX}"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file for `path`: itself, or the newest by env steps in it or in its checkpoints/."""
    path = user_path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint {path}: name a checkpoint file, a checkpoints/ folder or a run folder")
    files = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not files:
        old = [*path.glob("checkpoint-*.pt"), *path.glob("checkpoints/checkpoint-*.pt")]
        if old:
            raise archive(max(old))
        raise UserError(
            f"no checkpoint-*{SUFFIX} in {path} or {path / 'checkpoints'}: name another run or a file"
        )
    return files[-1]


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint files of a folder, in order of env steps."""
    found = {}
    for file in files_of(folder, f"checkpoint-*{SUFFIX}"):
        match = re.fullmatch(rf"checkpoint-(\d+){re.escape(SUFFIX)}", file.name)
        if match:
            found[file] = int(match[1])
    return sorted(found, key=found.get)


def prune(folder: str | Path, keep: int = 3) -> None:
    """Remove all checkpoints of a folder but the last `keep`, and temporary files of killed saves."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    for file in [*list_checkpoints(folder)[:-keep], *files_of(folder, f".*.tmp{SUFFIX}")]:
        discard(file)


def keep_best(folder: str | Path, path: str | Path) -> None:
    """Keep the checkpoint `path` of `folder` as its best one, which is never pruned. OSError on a disk error."""
    _keep(path, Path(folder) / f"best{SUFFIX}")


def snapshot_path(folder: str | Path, env_steps: int) -> Path:
    """The path of the checkpoint of `env_steps` that is kept while it is evaluated."""
    return Path(folder) / f"evaluating-{env_steps:08d}{SUFFIX}"


def keep_snapshot(folder: str | Path, env_steps: int) -> Path:
    """Keep the checkpoint of `env_steps` as it is, whatever becomes of its own file. OSError on a disk error."""
    path = snapshot_path(folder, env_steps)
    _keep(checkpoint_path(folder, env_steps), path)
    return path


def drop_snapshots(folder: str | Path, besides: int | None) -> None:
    """Remove all that `keep_snapshot` kept but the one of the env steps `besides`."""
    needed = None if besides is None else snapshot_path(folder, besides)
    for file in set(Path(folder).glob(f"evaluating-*{SUFFIX}")) - {needed}:
        file.unlink(missing_ok=True)


def _keep(path: str | Path, kept: Path) -> None:
    """Give the content of the file `path` the name `kept` as well."""
    with atomic_path(kept) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # not on every file system
            shutil.copyfile(path, temporary)


def _from_version_2(payload: dict[str, Any]) -> dict[str, Any]:
    """Convert to version 3. Version 2 had no kinds: there was one world model, and an agent with or without an actor.

    Its replay files do not tell where episodes terminate: `data/files.py` recognises them by that.
    """
    agent = payload.get("agent")
    model = agent.get("model") if isinstance(agent, dict) else None
    acts = isinstance(model, dict) and any(str(name).startswith("actor.") for name in model)
    return {**payload, "agent_kind": "dreamer" if acts else "planet", "world_model_kind": "gaussian"}


def _misfit(payload: dict[str, Any]) -> str:
    """What is wrong with the fields of a checkpoint, in words; "" if nothing is."""
    wanted = AGENT | (TRAINING if payload.keys() & TRAINING.keys() else {})
    for name, kind in wanted.items():
        if name not in payload:
            return f"{name} is missing"
        if type(payload[name]) is not kind:  # exact: True must not pass as an integer
            return f"{name} is a {type(payload[name]).__name__}"
        if kind is dict and not _named(payload[name]):
            return f"{name} has a key that is no name"
    unknown = payload.keys() - wanted.keys()
    if unknown:
        return f"{str(min(unknown, key=str))[:80]!r} is unknown"
    return _misfit_inside(payload)


def _misfit_inside(payload: dict[str, Any]) -> str:
    """The same for the parts of fields that every reader relies on."""
    counters, model = payload["counters"], payload["agent"].get("model")
    names = {field.name for field in dataclasses.fields(Counters)}
    if counters.keys() != names or any(type(count) is not int for count in counters.values()):
        return "its counters are not those of a run"
    if not _named(model) or not all(isinstance(weight, Tensor) for weight in model.values()):
        return "its agent has no weights"
    files, needs = payload.get("replay_files", []), payload.get("replay_needs", {})
    if not all(map(_named, files)) or not all(k.isdecimal() and type(n) is int for k, n in needs.items()):
        return "its replay_files or replay_needs name no files"
    return ""


def _named(value: Any) -> bool:
    """Whether it is a dict with string keys."""
    return type(value) is dict and all(type(key) is str for key in value)
