"""Free memory and disk space, and how much of it one allocation may take."""

import shutil
from pathlib import Path

import psutil

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.9  # share of the free amount that one allocation may take


def fits(required: int, free: int | None) -> bool:
    """Whether `required` bytes may be allocated when `free` are free; yes where that is not known."""
    return free is None or required <= HEADROOM * free


def free_disk(folder: Path) -> int:
    """Bytes that can still be written to `folder`, which need not exist yet."""
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return shutil.disk_usage(existing).free


def available_memory() -> int | None:
    """Available bytes of RAM, under the container's limit (cgroup v2) if there is one; None where neither is known."""
    try:
        free = psutil.virtual_memory().available
    except (OSError, RuntimeError):  # there is no /proc
        free = None
    try:
        limit = CGROUP.joinpath("memory.max").read_text().strip()
        used = int(CGROUP.joinpath("memory.current").read_text())
    except (OSError, ValueError):
        return free
    if limit == "max":
        return free
    left = int(limit) - used
    return left if free is None else min(free, left)


def total_memory() -> int:
    """Bytes of RAM of this machine."""
    return psutil.virtual_memory().total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a GPU or the host ran out of memory."""
    import torch  # here, as `doctor` must run where it cannot be imported

    words = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
