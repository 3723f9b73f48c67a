"""Sequence replay buffer: one uint8 ring of frames for each training environment; each frame is stored once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dreamer_mpc.data.episodes import Episodes
from dreamer_mpc.data.placement import Storage, map_file
from dreamer_mpc.data.ring import Ring
from dreamer_mpc.data.states import StoredStates, state_bytes
from dreamer_mpc.util.checks import check_ranges
from dreamer_mpc.util.device import to_device
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.randomness import generator_state, restore_generator
from dreamer_mpc.world_model import Batch


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
        self._ring = Ring(streams, self.size)
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
                frames = map_file(memmap, int(np.prod(shape))).view(shape)
            else:
                frames = torch.zeros(shape, dtype=dtype, device=self.device)
            self._frames[name] = frames
        self.states = StoredStates(capacity, state_dim, self.device) if state_dim else None
        self.across_episodes = across_episodes
        self._episodes = Episodes(streams, self.size)
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
        slots = self._ring.slots(rows, self._episodes.append(rows, is_first))
        at, *scalars = _upload(self.device, slots, reward.astype(np.float32), is_first, is_terminal)
        if self.states:
            self.states.forget(at)
        frames = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in (image, action, *scalars))
        for name, value in zip(self._frames, frames, strict=True):
            self._frames[name][at] = to_device(value, self.device)

    def drop(self, rows: Int64[np.ndarray, " N"]) -> None:
        """Drop the episodes in progress in `rows`: their frames are not sampled any more."""
        self._episodes.drop(rows)

    def holds(self, length: int) -> bool:
        """Whether there is a sequence of `length` frames to sample."""
        return int(self._pieces()[2].max(initial=0)) >= length

    def sample(self, batch_size: int, length: int, device: torch.device | str | None = None) -> Batch:
        """Sequences [length, batch_size, ...], uniform over every start that leaves `length` frames of its episode.

        With `across_episodes`: of its stream, up to the next gap. They are on `device`, by default the replay's, and
        sampling does not wait for it. `index` identifies a frame permanently, whatever the size of the ring. Where
        states are kept, `state` is that of the frame before each sequence, or zeros where there is none.
        """
        device = self.device if device is None else torch.device(device)
        streams, starts = self._starts(batch_size, length)
        positions = starts + np.arange(length)[:, None]  # [T, B]
        index, slots = _upload(self.device, positions * self.streams + streams, self._ring.slots(streams, positions))
        batch = Batch(**{name: frames[slots] for name, frames in self._frames.items()}, index=index)
        batch = batch._replace(state=self._state_before(streams, starts))
        return Batch(*(None if x is None else to_device(x, device) for x in batch))

    def remember(self, rows: Int64[np.ndarray, " N"], states: Float[Tensor, "B S"]) -> None:
        """Keep the latent states of the newest frames of the streams `rows`; `states` are those of all streams."""
        slots, at = _upload(self.device, self._ring.slots(rows, self.written[rows] - 1), rows)
        self.states.store(slots, to_device(states, self.device)[at])

    def refresh(self, index: Int64[Tensor, "T B"], states: Float[Tensor, "T B S"]) -> None:
        """Replace the latent states of sampled frames, which `sample` gave with this `index`, by newer ones."""
        self.states.store(self._sampled_slots(index), states)

    def _state_before(self, streams: np.ndarray, starts: np.ndarray) -> Float[Tensor, "B S"] | None:
        if self.states is None:
            return None
        exists = starts > self.oldest[streams]
        slots, exists = _upload(self.device, self._ring.slots(streams, starts - 1), exists)
        return self.states.look_up(slots, exists)

    def look_up(self, index: Int64[Tensor, "*b"]) -> dict[str, Tensor]:
        """The frames with the `index` that `sample` gave, on the host; overwritten frames give those in their slots."""
        slots = self._sampled_slots(index)
        return {name: frames[slots].cpu() for name, frames in self._frames.items()}

    def newest(self, rows: Int64[np.ndarray, " N"]) -> UInt8[np.ndarray, "N H W C"]:
        """The last image of each of the streams `rows`; waits for the device."""
        slots = torch.from_numpy(self._ring.slots(rows, self.written[rows] - 1))
        return self._frames["image"][slots.to(self.device)].cpu().numpy()

    def read(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"]) -> dict[str, Tensor]:
        """Frames from `starts` to before `ends` of every stream, stream after stream, on the host."""
        return self._ring.read(self._frames, starts, ends)

    def write(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"], frames: dict[str, Tensor]) -> None:
        """Write the frames that `read` gave back to their slots, except those too old to fit in the ring."""
        self._ring.write(self._frames, starts, ends, self.written, frames)

    def read_states(self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"]) -> dict[str, Tensor]:
        """The latent states of frames, likewise."""
        return self._ring.read(vars(self.states), starts, ends)

    def write_states(
        self, starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"], states: dict[str, Tensor]
    ) -> None:
        """Write the latent states that `read_states` gave back to their slots."""
        self._ring.write(vars(self.states), starts, ends, self.written, states)

    def state_dict(self) -> dict[str, Any]:
        """The state without the frames."""
        return {"rng": generator_state(self._rng), **self._episodes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, of a replay of any capacity with as many streams; the frames follow by `write`."""
        restore_generator(self._rng, state["rng"])
        self._episodes.load_state_dict(state)

    def _sampled_slots(self, index: Int64[Tensor, "*b"]) -> Int64[Tensor, "*b"]:
        """The slots, on replay's device, of the frames with the `index` that `sample` gave."""
        index = index.to(self.device)
        return self._ring.slots(index % self.streams, index // self.streams)

    def _pieces(self) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """Stream, end and length of the frames in a row inside which a sequence lies."""
        return self._episodes.stretches() if self.across_episodes else self._episodes.single()

    def _starts(self, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Streams and positions [B] where sequences start."""
        stream, end, lengths = self._pieces()
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


def frame_bytes(action_dim: int, image_shape: Sequence[int] = (64, 64, 3), state_dim: int = 0) -> int:
    """Bytes of one stored frame."""
    return int(np.prod(image_shape)) + 4 * action_dim + 4 + 1 + 1 + state_bytes(state_dim)


def _upload(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """`arrays`, in order of decreasing item size, on `device`; sent to a GPU in one copy."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    parts = to_device(torch.from_numpy(np.concatenate(flat)), device).split([len(part) for part in flat])
    return [
        part.view(torch.from_numpy(array).dtype).view(array.shape) for part, array in zip(parts, arrays, strict=True)
    ]
