"""The device of a run."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dreamer_mpc.util.errors import UserError


def choose_device(name: str | torch.device) -> torch.device:
    """The torch device of `--device`, with torch's settings for it; UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        index = int(str(name).partition(":")[2] or 0)  # torch.device keeps 8 bits: its "cuda:256" is cuda:0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise UserError(f"no device {name}: torch sees {torch.cuda.device_count()} GPUs; use --device cpu or auto")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32, for the recurrent part and the heads
        torch.backends.cudnn.benchmark = True
        # The host only launches work. OpenMP threads would spin between its copies, on the cores of the workers.
        torch.set_num_threads(1)
    else:
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory: an update frees and takes gigabytes, whose pages the kernel would clear.

    Clearing them takes half of an update's time on two cores.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(m_mmap_max, 0)  # large blocks come from the heap too
    mallopt(m_trim_threshold, -1)  # the heap is never returned to the system


@contextlib.contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Context in which torch's generators, of the host and of `device`, are saved and afterwards restored."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_name(device: torch.device) -> str:
    """The name of the device's hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads != 1)}"


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on `device`; from the host to a GPU through pinned memory, so that the host does not wait.

    torch's allocator of pinned memory does not reuse a block before its copy is done.
    """
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def to_host(x: torch.Tensor) -> Callable[[], np.ndarray]:
    """`x` on its way to the host: what is returned waits until it is there, not for later work of the device."""
    if x.device.type != "cuda":
        return x.numpy
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    there.copy_(x, non_blocking=True)
    done = torch.cuda.current_stream(x.device).record_event()

    def wait() -> np.ndarray:
        done.synchronize()
        return there.numpy()

    return wait


Images = UInt8[np.ndarray, "*b H W C"] | UInt8[Tensor, "*b H W C"]  # as environments give them: arrays, or drawn there


def images_on(images: Images, device: torch.device) -> UInt8[Tensor, "*b H W C"]:
    """The images of environments on `device`; those that were drawn there stay where they are."""
    return to_device(torch.from_numpy(images) if isinstance(images, np.ndarray) else images, device)


def images_on_host(images: Images) -> UInt8[np.ndarray, "*b H W C"]:
    """The images of environments as an array; waits for the device where they were drawn there."""
    return images if isinstance(images, np.ndarray) else images.cpu().numpy()
