"""Files of nested values, written atomically and read without executing code from them.

A payload file is a safetensors file. Its tensors are named by their paths in the payload; everything else is JSON in
the file's metadata, with format, version and a checksum of the whole content. Reading parses JSON and copies numbers.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import atomic_path

FORMAT = "dreamer-mpc"
FORMAT_VERSION = 3  # the version that is written
VERSIONS = (2, 3)  # the versions that can be read
SUFFIX = ".safetensors"
MOST_HEADER = 64 * 2**20  # bytes: names, shapes and JSON


def write_payload(path: str | Path, payload: dict[str, Any], version: int = FORMAT_VERSION) -> None:
    """Write `payload`, nested dicts, lists and tuples of tensors, numbers, strings and None, atomically.

    TypeError or ValueError if it holds a value that could not be read back; UserError on a disk error, in which case a
    previous file of that name is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    state = json.dumps(_encode(payload, (), tensors), allow_nan=False)
    about = {"format": FORMAT, "version": str(version), "state": state, "sha256": _digest(state, tensors)}
    content = save(tensors, about)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(f"checkpoint {path}", error) from error


def read_payload(path: Path) -> tuple[int, dict[str, Any]]:
    """The format version of a file, and its payload with tensors on the host.

    UserError if it is damaged, of another program, or of an unsupported version.
    """
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
    return int(about["version"]), payload


def _encode(value: Any, where: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON. Its tensors go to `tensors`; "$..." keys encode types that JSON does not have."""
    if isinstance(value, Tensor):
        name = "/".join(map(str, where))
        while name in tensors:
            name += "'"
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors does not accept shared memory
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
    if type(value) not in (bool, int, float, str, type(None)):  # exact: a numpy float is read back as a float
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
    """SHA-256 of the content of a checkpoint, in hexadecimal; it detects accidental damage, not manipulation."""

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
    """The metadata of a file, if its version is read; UserError as from `read_payload`."""
    if content.startswith(b"PK\x03\x04"):
        raise archive(path)
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
    if version not in map(str, VERSIONS):
        raise UserError(
            f"{path} has checkpoint format {version[:80]!r}, this code reads {_read_versions()}: "
            "check out the commit in the run's versions.json"
        )
    return about


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or cut short: use an earlier checkpoint from {path.parent}")


def _foreign(path: Path) -> UserError:
    return UserError(f"{path} is no {FORMAT} checkpoint: name a checkpoint-*{SUFFIX} of a run")


def archive(path: Path) -> UserError:
    """The error for a file that may be a checkpoint of format 1, which was pickled."""
    return UserError(
        f"{path} is an archive: checkpoint format 1, if it is one of {FORMAT}'s, and this code reads "
        f"{_read_versions()}: check out the commit in the run's versions.json"
    )


def _read_versions() -> str:
    return " and ".join(map(str, VERSIONS))
