"""Checkpoint files: written whole or not at all, read without running code from them."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch

from dreamer_mpc.errors import UserError
from dreamer_mpc.run_folder import atomic_path

FORMAT = "dreamer-mpc"
FORMAT_VERSION = 1
MARKERS = ("format", "version")
# What torch.load(weights_only=True) reads back. Exact types: a numpy float is a float until it is pickled.
LEAVES = (bool, int, float, str, bytes, type(None))


def save_checkpoint(path: str | Path, payload: dict) -> None:
    """Write `payload`, nested dicts and lists of tensors, numbers and strings, atomically.

    TypeError or ValueError if it holds what cannot be read back; UserError if the disk refuses it, and
    then a previous file of that name is whole.
    """
    _check(payload, "payload")
    if payload.keys() & set(MARKERS):
        raise ValueError(f"payload keys {MARKERS} are taken by the file format")
    try:
        # torch hides ENOSPC in a RuntimeError without cause when it opens the file itself.
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save({**payload, "format": FORMAT, "version": FORMAT_VERSION}, file)
    except (OSError, RuntimeError) as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"cannot write checkpoint {path} ({reason}): free space or change --run-dir"
        ) from error


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict:
    """The payload of a checkpoint: a file, a checkpoints/ folder or a run folder (newest file).

    UserError if there is none, or if it is damaged, foreign, or of another format version.
    """
    path = find_checkpoint(path)
    if torch.device(map_location).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"cannot load {path} to {map_location}: no CUDA device here, use --device cpu")
    _check_archive(path)
    try:
        payload = torch.load(path, map_location=map_location, weights_only=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, pickle.UnpicklingError, ValueError, LookupError, AttributeError, EOFError) as error:
        raise _foreign(path) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise _foreign(path)
    version = payload.get("version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {version}, this code reads {FORMAT_VERSION}: "
            "check out the commit in the run's versions.json"
        )
    return {key: value for key, value in payload.items() if key not in MARKERS}


def checkpoint_path(folder: str | Path, env_steps: int) -> Path:
    """Where the checkpoint of `env_steps` belongs: `folder/checkpoint-00200000.pt`."""
    return Path(folder) / f"checkpoint-{env_steps:08d}.pt"


def find_checkpoint(path: str | Path) -> Path:
    """The file that `path` means: itself, or the newest by env steps in it or in its checkpoints/."""
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"no checkpoint {path}: name a checkpoint file, a checkpoints/ folder or a run folder"
        )
    files = list_checkpoints(path) or list_checkpoints(path / "checkpoints")
    if not files:
        raise UserError(f"no checkpoint-*.pt in {path} or {path / 'checkpoints'}: name another run or a file")
    return files[-1]


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint files of a folder, by rising env steps."""
    found = {}
    for file in Path(folder).glob("checkpoint-*.pt"):
        match = re.fullmatch(r"checkpoint-(\d+)\.pt", file.name)
        if match:
            found[file] = int(match[1])
    return sorted(found, key=found.get)


def prune(folder: str | Path, keep: int = 3) -> None:
    """Remove all checkpoints of a folder but the last `keep`, and what a killed save left behind."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    for file in [*list_checkpoints(folder)[:-keep], *Path(folder).glob(".checkpoint-*.tmp.pt")]:
        file.unlink(missing_ok=True)


def keep_best(folder: str | Path, path: str | Path) -> None:
    """Keep the checkpoint `path` of `folder` as its best one, whatever is pruned later. OSError if the disk refuses."""
    with atomic_path(Path(folder) / "best.pt") as temporary:
        os.link(path, temporary)


def _check(value, where):
    if isinstance(value, dict):
        for key, item in value.items():
            if "_orig_mod." in str(key):
                raise ValueError(f"{where} holds {key!r}: save the module, not its torch.compile wrapper")
            _check(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check(item, f"{where}[{number}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in LEAVES:
        raise TypeError(
            f"{where} is a {type(value).__name__}: a checkpoint holds tensors, numbers and strings"
        )


def _check_archive(path):
    """UserError unless the file is a whole archive. torch itself reads flipped bits without a word."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if not b"PK\x03\x04".startswith(start):
            raise _foreign(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path} ({error.strerror}): check the file") from error
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise _damaged(path) from error
    if damaged:
        raise _damaged(path)


def _damaged(path):
    return UserError(f"{path} is damaged or cut short: use an earlier checkpoint from {path.parent}")


def _foreign(path):
    return UserError(f"{path} is no {FORMAT} checkpoint: name a checkpoint-*.pt that run.py wrote")


def _disk_error(error):
    """The operating system's words for the failed write behind `error`; None if it was something else."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None
