"""Which of a host's GPUs nothing uses."""

import re
import subprocess

import torch

QUERY = ("nvidia-smi", "--query-gpu=uuid,utilization.gpu,memory.used", "--format=csv,noheader,nounits")
QUERY_SECONDS = 20.0
UNUSED_MIB = 1024  # of memory, which drivers and a desktop may take


def idle_gpu(device: torch.device) -> int | None:
    """The CUDA index of another GPU of the kind of the GPU `device`, seen by torch, that nothing uses.

    None if there is none, or where nvidia-smi cannot say.
    """
    kinds = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    others = [i for i, kind in enumerate(kinds) if i != device.index and kind == kinds[device.index]]
    unused = _unused() if others else set()
    return next((i for i in others if f"GPU-{torch.cuda.get_device_properties(i).uuid}" in unused), None)


def _unused() -> set[str]:
    """UUIDs."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return set()
    rows = (re.fullmatch(r"(\S+), 0, (\d+)", line.strip()) for line in done.stdout.splitlines())
    return {row[1] for row in rows if row and int(row[2]) < UNUSED_MIB}
