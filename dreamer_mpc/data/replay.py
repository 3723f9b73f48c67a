"""Sequence replay buffer: one uint8 ring of frames for each training environment; each frame is stored once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dreamer_mpc.data.states import StoredStates, state_bytes
from dreamer_mpc.util.checks import check_ranges
from dreamer_mpc.util.device import to_device
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import discard
from dreamer_mpc.util.memory import GIB, available_memory, fits, free_disk
from dreamer_mpc.util.randomness import generator_state, restore_generator
from dreamer_mpc.world_model import Batch

Storage = Literal["auto", "gpu", "ram", "memmap"]


@dataclass(frozen=True)
class ReplayConfig:
    """Where experience is kept and how it is sampled."""

    capacity: int = 500_000
    """Frames kept, in equal shares per training environment; a shorter run allocates fewer (paper: all of 1M)."""
    storage: Storage = "auto"
    """gpu, ram or memmap (a file in the run folder); auto: the GPU where it fits, else RAM."""
    batch_size: int = 50
    """Sequences per update (paper: 50)."""
    sequence_length: int = 50
    """Frames per sequence (paper: 50)."""
    states: bool = False
    """Keep each frame's latent state, refreshed by updates, so that a sequence starts from the state before it (v3);
    otherwise from the initial state (paper)."""
    across_episodes: bool = False
    """Let a sequence go on into the next episode of its environment, so that the first frames of episodes are drawn as
    often as all others (v3); otherwise it lies inside one episode, and these frames are rare (ours)."""

    def __post_init__(self):
        check_ranges(self, capacity=(1, None), batch_size=(1, None), sequence_length=(1, None))


class Replay:
    """Frames on one device, one ring for each of `streams` environments; a sampled sequence lies inside one episode.

    With `across_episodes` it may go on into the next episode of its stream, which `is_first` marks. Stream i has its
    own `capacity // streams` slots, so episodes are written in parallel and can be sampled while they are in progress.
    When its ring is full, each new frame of a stream replaces the oldest one. With `state_dim`, the agent's latent
    state of each frame is kept beside it (`states`).
    """

    def __init__(
        self,
        capacity: int,
        action_dim: int,
        streams: int = 1,
        image_shape: Sequence[int] = (64, 64, 3),
        device: torch.device | str = "cpu",
        memmap: Path | None = None,
        seed: int = 0,
        state_dim: int = 0,
        across_episodes: bool = False,
    ):
        if capacity < streams:
            raise ValueError(f"a replay of {capacity} frames has none for each of {streams} streams")
        self.device, self.streams, self.size = torch.device(device), streams, capacity // streams  # frames of a stream
        capacity = self.size * streams
        shapes = {
            "image": ((capacity, *image_shape), torch.uint8),
            "action": ((capacity, action_dim), torch.float32),
            "reward": ((capacity,), torch.float32),
            "is_first": ((capacity,), torch.bool),
            "is_terminal": ((capacity,), torch.bool),
        }
        self._frames: dict[str, Tensor] = {}
        for name, (shape, dtype) in shapes.items():
            if memmap is not None and name == "image":
                frames = _map_file(memmap, int(np.prod(shape))).view(shape)
            else:
                frames = torch.zeros(shape, dtype=dtype, device=self.device)
            self._frames[name] = frames
        self.states = StoredStates(capacity, state_dim, self.device) if state_dim else None
        self.across_episodes = across_episodes
        self._episodes = _Episodes(streams, self.size)
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Frames stored."""
        return int((self.written - self.oldest).sum())

    @property
    def episodes(self) -> int:
        """Number of episodes that still have frames in the ring."""
        return int((self._episodes.lengths() > 0).sum())

    @property
    def written(self) -> Int64[np.ndarray, " S"]:
        """Number of frames appended to each stream in total."""
        return self._episodes.written.copy()

    @property
    def oldest(self) -> Int64[np.ndarray, " S"]:
        """Position of the oldest frame that each stream still holds, counted from its first frame."""
        return self._episodes.oldest()

    def append(
        self,
        rows: Int64[np.ndarray, " N"],
        image: UInt8[np.ndarray, "N H W C"] | UInt8[Tensor, "N H W C"],
        action: Float[np.ndarray, "N A"] | Float[Tensor, "N A"],
        reward: Float[np.ndarray, " N"],
        is_first: Bool[np.ndarray, " N"],
        is_terminal: Bool[np.ndarray, " N"],
    ) -> None:
        """Append one frame to each of the distinct streams `rows`; `is_first` begins an episode.

        action[n] led into image[n]; reward[n] was paid on arriving there; `is_terminal` where the environment ended
        its episode there. Arrays that are on replay's device already are not copied; the call does not synchronise.
        """
        slots = self._slots(rows, self._episodes.append(rows, is_first))
        at, *scalars = _upload(self.device, slots, reward.astype(np.float32), is_first, is_terminal)
        if self.states:
            self.states.forget(at)
        frames = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in (image, action, *scalars))
        for name, value in zip(self._frames, frames, strict=True):
            self._frames[name][at] = to_device(value, self.device)

    def drop(self, rows: Int64[np.ndarray, " N"]) -> None:
        """Drop the episodes in progress in `rows`: their frames are not sampled any more."""
        self._episodes.drop(rows)

    def sample(self, batch_size: int, length: int, device: torch.device | str | None = None) -> Batch:
        """Sequences [length, batch_size, ...], uniform over every start that leaves `length` frames of its episode.

        With `across_episodes`: of its stream, up to the next gap. They are on `device`, by default the replay's, and
        sampling does not wait for it. `index` identifies a frame permanently, whatever the size of the ring. Where
        states are kept, `state` is that of the frame before each sequence, or zeros where there is none.
        """
        device = self.device if device is None else torch.device(device)
        streams, starts = self._starts(batch_size, length)
        positions = starts + np.arange(length)[:, None]  # [T, B]
        index, slots = _upload(self.device, positions * self.streams + streams, self._slots(streams, positions))
        batch = Batch(**{name: frames[slots] for name, frames in self._frames.items()}, index=index)
        batch = batch._replace(state=self._state_before(streams, starts))
        return Batch(*(None if x is None else to_device(x, device) for x in batch))

    def remember(self, rows: Int64[np.ndarray, " N"], states: Float[Tensor, "B S"]) -> None:
        """Keep the latent states of the newest frames of the streams `rows`; `states` are those of all streams."""
        slots, at = _upload(self.device, self._slots(rows, self.written[rows] - 1), rows)
        self.states.store(slots, to_device(states, self.device)[at])

    def refresh(self, index: Int64[Tensor, "T B"], states: Float[Tensor, "T B S"]) -> None:
        """Replace the latent states of sampled frames, which `sample` gave with this `index`, by newer ones."""
        index = index.to(self.device)
        stream, position = index % self.streams, index // self.streams
        self.states.store(stream * self.size + position % self.size, states)

    def _state_before(self, streams: np.ndarray, starts: np.ndarray) -> Float[Tensor, "B S"] | None:
        if self.states is None:
            return None
        exists = starts > self.oldest[streams]
        slots, exists = _upload(self.device, self._slots(streams, starts - 1), exists)
        return self.states.look_up(slots, exists)

    def look_up(self, index: Int64[Tensor, "*b"]) -> dict[str, Tensor]:
        """The frames with the `index` that `sample` gave, on the host; overwritten frames give those in their slots."""
        named = index.cpu().numpy()
        slots = torch.from_numpy(self._slots(named % self.streams, named // self.streams)).to(self.device)
        return {name: frames[slots].cpu() for name, frames in self._frames.items()}

    def newest(self, rows: Int64[np.ndarray, " N"]) -> UInt8[np.ndarray, "N H W C"]:
        """The last image of each of the streams `rows`; waits for the device."""
        slots = torch.from_numpy(self._slots(rows, self.written[rows] - 1))
        return self._frames["image"][slots.to(self.device)].cpu().numpy()

    def read(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"]) -> dict[str, Tensor]:
        """Frames from `starts` to before `ends` of every stream, stream after stream, on the host."""
        return self._read(self._frames, starts, ends)

    def write(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"], frames: dict[str, Tensor]) -> None:
        """Write the frames that `read` gave back to their slots, except those too old to fit in the ring."""
        self._write(self._frames, starts, ends, frames)

    def read_states(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"]) -> dict[str, Tensor]:
        """The latent states of frames, likewise."""
        return self._read(vars(self.states), starts, ends)

    def write_states(
        self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"], states: dict[str, Tensor]
    ) -> None:
        """Write the latent states that `read_states` gave back to their slots."""
        self._write(vars(self.states), starts, ends, states)

    def _read(self, held: dict[str, Tensor], starts: np.ndarray, ends: np.ndarray) -> dict[str, Tensor]:
        bounds = zip(range(self.streams), starts.tolist(), ends.tolist(), strict=True)
        spans = [span for stream, start, end in bounds for span in self._spans(stream, start, end)]
        return {
            name: torch.cat([values[:0].cpu(), *(values[span].cpu() for span in spans)])
            for name, values in held.items()
        }

    def _write(self, held: dict[str, Tensor], starts: np.ndarray, ends: np.ndarray, given: dict[str, Tensor]) -> None:
        passed = 0  # frames of the streams before
        for stream, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            kept = min(max(start, int(self.written[stream]) - self.size), end)
            position = passed + kept - start
            for span in self._spans(stream, kept, end):
                count = span.stop - span.start
                for name, values in given.items():
                    held[name][span] = values[position : position + count].to(self.device)
                position += count
            passed += end - start

    def state_dict(self) -> dict[str, Any]:
        """The state without the frames."""
        return {"rng": generator_state(self._rng), **self._episodes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, of a replay of any capacity with as many streams; the frames follow by `write`."""
        restore_generator(self._rng, state["rng"])
        self._episodes.load_state_dict(state)

    def _slots(self, stream: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The slot of the frame at `position`, counted from its stream's first frame."""
        return stream * self.size + position % self.size

    def _spans(self, stream: int, start: int, end: int) -> list[slice]:
        """Slots of the frames `start` to `end` - 1, at most one ring: one slice, or two if they wrap around its end."""
        if start >= end:
            return []
        ring, first, count = stream * self.size, start % self.size, end - start
        behind = max(first + count - self.size, 0)
        spans = [slice(ring + first, ring + first + count - behind)]
        return [*spans, slice(ring, ring + behind)] if behind else spans

    def _starts(self, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and positions [B] where sequences start."""
        episodes = self._episodes
        stream, end, lengths = episodes.stretches() if self.across_episodes else episodes.single()
        ends = np.cumsum(np.maximum(lengths - length + 1, 0))
        if len(ends) == 0 or ends[-1] == 0:
            longest = lengths.max(initial=0)
            where = "sequence of episodes" if self.across_episodes else "episode"
            raise UserError(
                f"no {where} in replay has {length} frames (the longest has {longest}): "
                f"lower --replay.sequence-length to {longest} or less"
            )
        drawn = self._rng.integers(ends[-1], size=batch_size)
        piece = np.searchsorted(ends, drawn, side="right")
        before_end = ends[piece] - drawn  # 1 is the last start
        return stream[piece], end[piece] - length + 1 - before_end


class _Episodes:
    """The streams and positions of all episodes, in the order in which they began. Positions only increase."""

    def __init__(self, streams: int, size: int):
        self.size = size  # frames that a stream keeps
        self.written = np.zeros(streams, dtype=np.int64)  # frames appended to each stream in total
        self._open = np.full(streams, -1)  # row in `_table` of the episode in progress
        self._table = np.zeros((64, 3), dtype=np.int64)  # stream, start, end; `_count` rows are in use
        self._count = 0
        self._first = np.zeros(streams, dtype=np.int64)  # older frames are gone: the ring was once smaller

    @property
    def stream(self) -> Int64[np.ndarray, " E"]:
        return self._table[: self._count, 0]

    @property
    def end(self) -> Int64[np.ndarray, " E"]:
        """Position after the last frame."""
        return self._table[: self._count, 2]

    def oldest(self) -> Int64[np.ndarray, " S"]:
        """Position of each stream's oldest frame."""
        return np.maximum(self.written - self.size, self._first)

    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Number of frames that each episode still has in the ring."""
        start = self._table[: self._count, 1]
        return np.maximum(self.end - np.maximum(start, self.oldest()[self.stream]), 0)

    def single(self) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " E"], Int64[np.ndarray, " E"]]:
        """Stream, end and length of each episode."""
        return self.stream, self.end, self.lengths()

    def stretches(self) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """The same of episodes that follow each other without a gap, as one; dropped frames are a gap."""
        order = np.argsort(self.stream, kind="stable")  # in a stream, episodes stand as they began
        stream, start, end = self._table[: self._count][order].T
        begins = np.ones(len(stream), dtype=bool)
        begins[1:] = (stream[1:] != stream[:-1]) | (start[1:] != end[:-1])
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(stream)) - 1 if len(first) else first
        stream, start, end = stream[first], start[first], end[last]
        return stream, end, np.maximum(end - np.maximum(start, self.oldest()[stream]), 0)

    def append(self, rows: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """Count one more frame in each of `rows`; gives its position."""
        for row in rows[is_first].tolist():
            self._begin(row)
        if (self._open[rows] < 0).any():
            raise ValueError("a stream must begin with the first frame of an episode")
        positions = self.written[rows]
        self.written[rows] += 1
        self._table[self._open[rows], 2] += 1
        return positions

    def drop(self, rows: np.ndarray) -> None:
        """Remove all frames of the episodes in progress in `rows`."""
        at = self._open[rows]
        self._table[at, 2] = self._table[at, 1]
        self._open[rows] = -1

    def state_dict(self) -> dict[str, Tensor]:
        arrays = {"table": self._table[: self._count], "open": self._open, "written": self.written}
        return {name: torch.from_numpy(array.copy()) for name, array in (arrays | {"oldest": self.oldest()}).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        table, self._open, self.written, self._first = (
            state[name].numpy().copy() for name in ("table", "open", "written", "oldest")
        )
        self._count = len(table)
        self._table = np.concatenate([table, np.zeros((max(len(table), 64), 3), dtype=np.int64)])

    def _begin(self, row: int) -> None:
        if self._count == len(self._table):
            self._forget()
        self._open[row] = self._count
        self._table[self._count] = row, self.written[row], self.written[row]
        self._count += 1

    def _forget(self) -> None:
        """Drop episodes without frames, and make room for as many new ones as remain, at least 64."""
        kept, begun = self.lengths() > 0, self._open >= 0
        kept[self._open[begun]] = True  # one that has just begun has no frame yet
        self._open[begun] = (np.cumsum(kept) - 1)[self._open[begun]]
        table = self._table[: self._count][kept]
        self._count = len(table)
        self._table = np.concatenate([table, np.zeros((max(len(table), 64), 3), dtype=np.int64)])


def _upload(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """`arrays`, in order of decreasing item size, on `device`; sent to a GPU in one copy."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    parts = to_device(torch.from_numpy(np.concatenate(flat)), device).split([len(part) for part in flat])
    return [
        part.view(torch.from_numpy(array).dtype).view(array.shape) for part, array in zip(parts, arrays, strict=True)
    ]


def _map_file(path: Path, size: int) -> Tensor:
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


def frame_bytes(action_dim: int, image_shape: Sequence[int] = (64, 64, 3), state_dim: int = 0) -> int:
    """Bytes of one stored frame."""
    return int(np.prod(image_shape)) + 4 * action_dim + 4 + 1 + 1 + state_bytes(state_dim)


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


def _remedy(other: str) -> str:
    return f"lower --replay.capacity or use --replay.storage {other}"
