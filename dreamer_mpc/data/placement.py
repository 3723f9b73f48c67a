"""Where the frames of replay are: on a GPU, in RAM, or in a memory-mapped file."""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import discard
from dreamer_mpc.util.memory import GIB, available_memory, fits, free_disk

Storage = Literal["auto", "gpu", "ram", "memmap"]


def check_storage(storage: Storage, device: torch.device) -> None:
    """UserError where this kind of storage does not exist for `device`."""
    if storage == "gpu" and device.type != "cuda":
        raise UserError(f"--replay.storage gpu needs a CUDA device, this run is on {device}: use ram or memmap")


def choose_storage(
    storage: Storage, required: int, device: torch.device, folder: Path
) -> tuple[torch.device, Path | None, str]:
    """Where `required` bytes of replay are stored: device, file for a memory map, and a line for the user.

    UserError where they do not fit.
    """
    size = f"replay {required / GIB:.2f} GiB"
    check_storage(storage, device)
    if device.type == "cuda" and storage in ("auto", "gpu"):
        free, total = torch.cuda.mem_get_info(device)
        if fits(required, free):
            return device, None, f"{size} on {device} ({required / total:.0%} of its memory)"
        if storage == "gpu":
            raise UserError(f"{size} does not fit {device}: {free / GIB:.2f} GiB free; {_remedy('ram or memmap')}")
    if storage == "memmap":
        file = folder / "replay.bin"
        free = free_disk(folder) + (file.stat().st_blocks * 512 if file.exists() else 0)  # an existing file is replaced
        if not fits(required, free):
            raise UserError(f"{size} does not fit the disk of {folder}: {free / GIB:.2f} GiB free; {_remedy('ram')}")
        return torch.device("cpu"), file, f"{size} memory-mapped at {file}"
    free = available_memory()
    if not fits(required, free):
        raise UserError(f"{size} does not fit RAM: {free / GIB:.2f} GiB available; {_remedy('memmap')}")
    available = "how much is available is not known" if free is None else f"{free / GIB:.0f} GiB available"
    return torch.device("cpu"), None, f"{size} in RAM ({available})"


def map_file(path: Path, size: int) -> Tensor:
    """A new file of `size` bytes, mapped as uint8. Space is allocated now: a disk that fills later kills the process.

    UserError where there is not enough.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        discard(path)
        raise UserError(f"cannot map replay to {path} ({error.strerror}): {_remedy('ram')}") from error
    try:
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    except RuntimeError as error:  # a file system whose files cannot be mapped
        discard(path)
        raise UserError(f"cannot map replay to {path} on this file system: {_remedy('ram')}") from error


def _remedy(other: str) -> str:
    return f"lower --replay.capacity or use --replay.storage {other}"
