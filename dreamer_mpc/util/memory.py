"""Free memory and disk space, and how much of it one allocation may take."""

import shutil
from pathlib import Path

import psutil

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.9  # share of the free amount that one allocation may take


def fits(required: int, free: int) -> bool:
    """Whether `required` bytes may be allocated when `free` are free."""
    return required <= HEADROOM * free


def free_disk(folder: Path) -> int:
    """Bytes that can still be written to `folder`, which need not exist yet."""
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    return shutil.disk_usage(existing).free


def available_memory() -> int:
    """Available bytes of RAM, under the container's limit (cgroup v2) if there is one."""
    free = psutil.virtual_memory().available
    try:
        limit = CGROUP.joinpath("memory.max").read_text().strip()
        used = int(CGROUP.joinpath("memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def total_memory() -> int:
    """Bytes of RAM of this machine."""
    return psutil.virtual_memory().total


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error means that a GPU or the host ran out of memory."""
    import torch  # here, as `doctor` must run where it cannot be imported

    words = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)
