"""Checkpoint files: written whole or not at all, and read without running code from them.

A checkpoint is a safetensors file. Its tensors bear the names of their places in the payload; everything else is JSON
in the file's metadata, beside format, version and a checksum of all of it. Reading one parses JSON and copies numbers.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path

FORMAT = "dreamer-mpc"
FORMAT_VERSION = 2
SUFFIX = ".safetensors"
MOST_HEADER = 64 * 2**20  # bytes: names, shapes and JSON
T = TypeVar("T")


def save_checkpoint(path: str | Path, payload: dict) -> None:
    """Write `payload`, nested dicts, lists and tuples of tensors, numbers, strings and None, atomically.

    TypeError or ValueError if it holds what cannot be read back; UserError if the disk refuses it, and
    then a previous file of that name is whole.
    """
    tensors: dict[str, Tensor] = {}
    state = json.dumps(_encode(payload, (), tensors), allow_nan=False)
    about = {"format": FORMAT, "version": str(FORMAT_VERSION), "state": state, "sha256": _digest(state, tensors)}
    content = save(tensors, about)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write checkpoint {path} ({error.strerror}): free space or change --run-dir") from error


def load_checkpoint(path: str | Path) -> dict:
    """The payload of a checkpoint, on the host: a file, a checkpoints/ folder or a run folder (newest file).

    UserError if there is none, or if it is damaged, foreign, or of another format version.
    """
    path = find_checkpoint(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path} ({error.strerror}): check the file") from error
    about = _read_about(path, content)
    try:
        tensors = load(content)
        if _digest(about["state"], tensors) != about["sha256"]:
            raise _damaged(path)
        payload = _decode(json.loads(about["state"]), tensors)
    except SafetensorError as error:
        raise _damaged(path) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _foreign(path) from error
    if not isinstance(payload, dict):
        raise _foreign(path)
    return payload


def load_newest(path: str | Path, read: Callable[[Path], T] = load_checkpoint) -> tuple[Path, T, list[str]]:
    """The newest checkpoint at `path` that `read` takes: the file, what was read, and a line on each damaged newer one.

    UserError, on the newest, where `read` takes none.
    """
    path = Path(path).expanduser()
    newest, damages = find_checkpoint(path), []
    for file in [newest] if path.is_file() else reversed(list_checkpoints(newest.parent)):
        try:
            return file, read(file), [f"{damage}; the one before it is used: {file}" for damage in damages]
        except UserError as error:
            damages.append(str(error))
    raise UserError(damages[0])


def checkpoint_path(folder: str | Path, env_steps: int) -> Path:
    """Where the checkpoint of `env_steps` belongs: `folder/checkpoint-00200000.safetensors`."""
    return Path(folder) / f"checkpoint-{env_steps:08d}{SUFFIX}"


def find_checkpoint(path: str | Path) -> Path:
    """The file that `path` means: itself, or the newest by env steps in it or in its checkpoints/."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no checkpoint {path}: name a checkpoint file, a checkpoints/ folder or a run folder")
    files = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not files:
        old = [*path.glob("checkpoint-*.pt"), *path.glob("checkpoints/checkpoint-*.pt")]
        if old:
            raise _old(max(old))
        raise UserError(
            f"no checkpoint-*{SUFFIX} in {path} or {path / 'checkpoints'}: name another run or a file"
        )
    return files[-1]


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint files of a folder, by rising env steps."""
    found = {}
    for file in Path(folder).glob(f"checkpoint-*{SUFFIX}"):
        match = re.fullmatch(rf"checkpoint-(\d+){re.escape(SUFFIX)}", file.name)
        if match:
            found[file] = int(match[1])
    return sorted(found, key=found.get)


def prune(folder: str | Path, keep: int = 3) -> None:
    """Remove all checkpoints of a folder but the last `keep`, and what a killed save left behind."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    for file in [*list_checkpoints(folder)[:-keep], *Path(folder).glob(f".*.tmp{SUFFIX}")]:
        file.unlink(missing_ok=True)


def keep_best(folder: str | Path, path: str | Path) -> None:
    """Keep the checkpoint `path` of `folder` as its best one, whatever is pruned later. OSError if the disk refuses."""
    with atomic_path(Path(folder) / f"best{SUFFIX}") as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # not on every file system
            shutil.copyfile(path, temporary)


def _encode(value: Any, where: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON. Its tensors go to `tensors`; "$..." keys stand for what JSON has no word for."""
    if isinstance(value, Tensor):
        name = "/".join(map(str, where))
        while name in tensors:
            name += "'"
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors takes no shared memory
        return {"$tensor": name}
    if isinstance(value, dict):
        for key in value:
            if "_orig_mod." in str(key):
                raise ValueError(f"{_name(where)} holds {key!r}: save the module, not its torch.compile wrapper")
            if type(key) not in (str, int):
                raise TypeError(f"{_name(where)} has a key {key!r}: a checkpoint's keys are strings and integers")
        items = [(key, _encode(item, (*where, key), tensors)) for key, item in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(items) if plain else {"$items": items}
    if type(value) in (list, tuple):
        items = [_encode(item, (*where, i), tensors) for i, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if type(value) not in (bool, int, float, str, type(None)):  # exact: a numpy float is a float until it is read back
        raise TypeError(
            f"{_name(where)} is a {type(value).__name__}: a checkpoint holds tensors, numbers and strings"
        )
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "$tensor":
            return tensors[content]
        if kind == "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        if kind == "$float":
            return float(content)
        if kind == "$items":
            return {key: _decode(item, tensors) for key, item in content}
    return {key: _decode(item, tensors) for key, item in value.items()}


def _name(where: tuple[Any, ...]) -> str:
    return "payload" + "".join(f"[{key!r}]" for key in where)


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint says, in hexadecimal; against accidents, not against forgers."""

    def parts() -> Iterator[Any]:
        yield state.encode()
        for name, tensor in sorted(tensors.items()):
            yield f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.reshape(-1).view(torch.uint8).numpy()

    digest = hashlib.sha256()
    for part in parts():
        digest.update(part)
    return digest.hexdigest()


def _read_about(path: Path, content: bytes) -> dict[str, str]:
    """The metadata of a file, if it is a checkpoint of this format's version; UserError as from `load_checkpoint`."""
    if content.startswith(b"PK\x03\x04"):
        raise _old(path)
    length = int.from_bytes(content[:8], "little")
    if len(content) >= 9 and (length > MOST_HEADER or content[8:9] != b"{"):
        raise _foreign(path)
    if len(content) < 8 + length or not length:
        raise _damaged(path)
    try:
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        known = about["format"] == FORMAT
        version = about["version"]
        complete = all(isinstance(about[name], str) for name in ("version", "state", "sha256"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    except (KeyError, TypeError) as error:
        raise _foreign(path) from error
    if not known or not complete:
        raise _foreign(path)
    if version != str(FORMAT_VERSION):
        raise UserError(
            f"{path} has checkpoint format {version}, this code reads {FORMAT_VERSION}: "
            "check out the commit in the run's versions.json"
        )
    return about


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or cut short: use an earlier checkpoint from {path.parent}")


def _foreign(path: Path) -> UserError:
    return UserError(f"{path} is no {FORMAT} checkpoint: name a checkpoint-*{SUFFIX} that run.py wrote")


def _old(path: Path) -> UserError:
    return UserError(
        f"{path} is an archive: checkpoint format 1, if it is one of {FORMAT}'s, and this code reads {FORMAT_VERSION}: "
        "check out the commit in the run's versions.json"
    )
