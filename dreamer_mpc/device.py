"""Where a run computes."""

import contextlib
from collections.abc import Iterator

import torch

from dreamer_mpc.errors import UserError


def choose_device(name: str) -> torch.device:
    """The torch device of `--device`, TF32 and cuDNN's search switched on; UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"no device {name}: torch sees {torch.cuda.device_count()} GPUs; use --device cpu or auto")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32, for the recurrent part and the heads
        torch.backends.cudnn.benchmark = True
    return device


@contextlib.contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """torch's generators, of the host and of `device`, are afterwards as they were before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_name(device: torch.device) -> str:
    """What the machine calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
