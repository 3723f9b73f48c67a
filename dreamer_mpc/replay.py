"""Sequence replay: a uint8 ring of whole episodes, each frame stored once."""

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from dreamer_mpc.errors import UserError
from dreamer_mpc.world_model import Batch

Storage = Literal["auto", "gpu", "ram", "memmap"]
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
HEADROOM = 0.9  # share of the free memory that the replay may take


@dataclass(frozen=True)
class ReplayConfig:
    """Where experience is kept and how it is sampled."""

    capacity: int = 500_000
    """Frames kept; a run that makes fewer allocates fewer (paper: all of 1M env steps, action repeat 2)."""
    storage: Storage = "auto"
    """gpu, ram or memmap (a file in the run folder); auto: the GPU where it fits, else RAM."""
    batch_size: int = 50
    """Sequences of an update (paper: 50)."""
    sequence_length: int = 50
    """Frames of a sequence (paper: 50)."""

    def __post_init__(self):
        for name in ("capacity", "batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.capacity < self.sequence_length:
            raise ValueError(f"capacity must hold a sequence of {self.sequence_length} frames, got {self.capacity}")


class Episode(NamedTuple):
    """One finished episode of L frames: action[t] led into image[t]; reward[t] was paid on arriving there."""

    image: UInt8[np.ndarray, "L H W C"]
    action: Float[np.ndarray, "L A"]
    reward: Float[np.ndarray, " L"]
    is_first: Bool[np.ndarray, " L"]


class Replay:
    """Ring of frames on one device, filled by whole episodes and sampled in sequences that lie inside one.

    The oldest episodes go when the write head reaches them, so no sequence crosses an episode's end or the head.
    """

    def __init__(
        self,
        capacity: int,
        action_dim: int,
        image_shape: Sequence[int] = (64, 64, 3),
        device: torch.device | str = "cpu",
        memmap: Path | None = None,
        seed: int = 0,
    ):
        self.capacity, self.device = capacity, torch.device(device)
        shapes = {
            "image": ((capacity, *image_shape), torch.uint8),
            "action": ((capacity, action_dim), torch.float32),
            "reward": ((capacity,), torch.float32),
            "is_first": ((capacity,), torch.bool),
        }
        self._frames: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes.items():
            if memmap is not None and name == "image":
                memmap.parent.mkdir(parents=True, exist_ok=True)
                frames = torch.from_file(str(memmap), shared=True, size=int(np.prod(shape)), dtype=dtype).view(shape)
            else:
                frames = torch.zeros(shape, dtype=dtype, device=self.device)
            self._frames[name] = frames
        self._episodes: deque[tuple[int, int]] = deque()  # (first slot, frames), oldest first
        self._head = 0
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Frames stored."""
        return sum(length for _, length in self._episodes)

    @property
    def episodes(self) -> int:
        """Episodes stored."""
        return len(self._episodes)

    def add(self, episode: Episode) -> None:
        """Append a finished episode of at most `capacity` frames; the oldest make room for it."""
        length = len(episode.reward)
        if length > self.capacity:
            raise ValueError(f"an episode of {length} frames does not fit a replay of {self.capacity}")
        if self._head + length > self.capacity:
            # Episodes lie in one piece, so the rest of the ring stays unused until the head comes round again.
            self._evict(self._head, self.capacity)
            self._head = 0
        self._evict(self._head, self._head + length)
        for name, frames in self._frames.items():
            value = torch.from_numpy(np.ascontiguousarray(getattr(episode, name)))
            frames[self._head : self._head + length] = value.to(frames.device, frames.dtype)
        self._episodes.append((self._head, length))
        self._head += length

    def _evict(self, low: int, high: int) -> None:
        """Forget episodes that have a frame in slots [low, high)."""
        self._episodes = deque((s, n) for s, n in self._episodes if s + n <= low or s >= high)

    def sample(self, batch_size: int, length: int, device: torch.device | str | None = None) -> Batch:
        """Sequences [length, batch_size, ...], uniform over every start that leaves `length` frames of its episode.

        They come on `device`, by default where the replay is, without waiting for it.
        """
        device = self.device if device is None else torch.device(device)
        slots = torch.from_numpy(self._starts(batch_size, length) + np.arange(length)[:, None])  # [T, B]
        here = _send(slots, self.device)
        batch = Batch(**{name: frames[here] for name, frames in self._frames.items()}, index=here)
        return Batch(*(_send(x, device) for x in batch))

    def _starts(self, batch_size: int, length: int) -> np.ndarray:
        """First slots [B] of sequences."""
        episodes = np.array(self._episodes, dtype=np.int64).reshape(-1, 2)
        ends = np.cumsum(np.maximum(episodes[:, 1] - length + 1, 0))
        if len(ends) == 0 or ends[-1] == 0:
            longest = max((n for _, n in self._episodes), default=0)
            raise UserError(
                f"no episode in replay has {length} frames (the longest has {longest}): "
                f"lower --replay.sequence-length or raise --train.seed-episodes"
            )
        drawn = self._rng.integers(ends[-1], size=batch_size)
        episode = np.searchsorted(ends, drawn, side="right")
        offset = drawn - np.concatenate([[0], ends])[episode]
        return episodes[episode, 0] + offset


def _send(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; from the host to a GPU through pinned memory, so that the host goes on at once."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def frame_bytes(action_dim: int, image_shape: Sequence[int] = (64, 64, 3)) -> int:
    """Bytes of one stored frame."""
    return int(np.prod(image_shape)) + 4 * action_dim + 4 + 1


def choose_storage(
    storage: Storage, required: int, device: torch.device, folder: Path
) -> tuple[torch.device, Path | None, str]:
    """Where `required` bytes of replay go: device, file for a memory map, and a line for the user.

    UserError where they do not fit.
    """
    def fits(free: int) -> bool: return required <= HEADROOM * free  # fmt: skip
    size = f"replay {required / GIB:.2f} GiB"
    if storage == "gpu" and device.type != "cuda":
        raise UserError(f"--replay.storage gpu needs a CUDA device, this run is on {device}: use ram or memmap")
    if device.type == "cuda" and storage in ("auto", "gpu"):
        free, total = torch.cuda.mem_get_info(device)
        if fits(free):
            return device, None, f"{size} on {device} ({required / total:.0%} of its memory)"
        if storage == "gpu":
            raise UserError(f"{size} does not fit {device}: {free / GIB:.2f} GiB free; {_remedy('ram or memmap')}")
    if storage == "memmap":
        existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        if not fits(free):
            raise UserError(f"{size} does not fit the disk of {folder}: {free / GIB:.2f} GiB free; {_remedy('ram')}")
        return torch.device("cpu"), folder / "replay.bin", f"{size} memory-mapped at {folder / 'replay.bin'}"
    free = available_memory()
    if not fits(free):
        raise UserError(f"{size} does not fit RAM: {free / GIB:.2f} GiB available; {_remedy('memmap')}")
    return torch.device("cpu"), None, f"{size} in RAM ({free / GIB:.0f} GiB available)"


def _remedy(other: str) -> str:
    return f"lower --replay.capacity or use --replay.storage {other}"


def available_memory() -> int:
    """Bytes of RAM that can still be had, under the container's limit (cgroup v2) where there is one."""
    free = psutil.virtual_memory().available
    try:
        limit = CGROUP.joinpath("memory.max").read_text().strip()
        used = int(CGROUP.joinpath("memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)
