"""The replay buffer on disk: each save writes the new frames to new files, which are never changed afterwards."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreamer_mpc.data.replay import Replay
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import atomic_path, discard, files_of

SMALL_STATES = 2**28  # bytes of latent states that are written with every checkpoint; more only when a run ends
MOST_FRAMES = 16_384  # per file: while it is written, its frames are held in memory twice (200 MB each)


@dataclass(frozen=True)
class Chunk:
    """A file of frames: `starts[i]` to `ends[i]` - 1 of each stream i, stream after stream."""

    number: int
    sha256: str
    starts: list[int]
    ends: list[int]

    @property
    def name(self) -> str:
        return f"chunk-{self.number:06d}.safetensors"


class ReplayFiles:
    """The files of `replay` in `folder`; `chunks` are those that a checkpoint may need, in the order of writing.

    Files are written atomically. The checkpoint that is written after them lists the files that belong to it.
    """

    def __init__(self, folder: Path, replay: Replay):
        self.folder, self.replay = folder, replay
        self.chunks: list[Chunk] = []

    def write(self) -> None:
        """Write every frame that is in no file yet. UserError on a disk error; the next call continues from there."""
        while (starts := self._saved()).sum() < self.replay.written.sum():
            ends = np.minimum(self.replay.written, starts + max(MOST_FRAMES // self.replay.streams, 1))
            content = save(self.replay.read(starts, ends))
            number = self.chunks[-1].number + 1 if self.chunks else 0
            chunk = Chunk(number, hashlib.sha256(content).hexdigest(), starts.tolist(), ends.tolist())
            path = self.folder / chunk.name
            try:
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                raise cannot_write(f"replay {path}", error) from error
            self.chunks.append(chunk)

    def write_states(self, last: bool) -> dict[str, Any]:
        """Write the latent states of all frames to one file, unless they are many and this is not the `last` save.

        Gives what `read_states` needs, {} if nothing was written. Updates refresh states of old frames too, so the file
        holds all of them. It is another one each time: the last checkpoint needs its own until the next one is whole.
        UserError on a disk error.
        """
        states = self.replay.states
        if states is None or not (last or states.state.nbytes <= SMALL_STATES):
            return {}
        starts, ends = self.replay.oldest, self.replay.written
        content = save(self.replay.read_states(starts, ends))
        digest = hashlib.sha256(content).hexdigest()
        path = self._states(digest)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise cannot_write(f"replay {path}", error) from error
        return {"sha256": digest, "starts": starts.tolist(), "ends": ends.tolist()}

    def read_states(self, saved: dict[str, Any]) -> bool:
        """Read what `write_states` wrote into replay; False where it is not there any more: then states are unknown."""
        try:
            content = self._states(saved["sha256"]).read_bytes()
            starts, ends = np.array(saved["starts"]), np.array(saved["ends"])
            states = load(content)
            size = (int((ends - starts).sum()), self.replay.states.state.shape[1])
            whole = hashlib.sha256(content).hexdigest() == saved["sha256"] and states["state"].shape == size
            if not whole or (starts < 0).any() or (ends != self.replay.written).any():
                return False
            self.replay.write_states(starts, ends, states)
        except (OSError, KeyError, TypeError, ValueError, SafetensorError):
            return False
        return True

    def forget_states(self, saved: dict[str, Any]) -> None:
        """Remove the files of latent states other than that of `saved`, what `write_states` gave; none if it is {}."""
        if not saved:
            return
        for pattern in ("states-*.safetensors", ".states-*.tmp.safetensors"):
            for file in files_of(self.folder, pattern):
                if file != self._states(saved["sha256"]):
                    discard(file)

    def _states(self, digest: str) -> Path:
        return self.folder / f"states-{digest[:16]}.safetensors"

    def needed(self) -> int:
        """Number of the first file with a frame that is still in replay."""
        return min((chunk.number for chunk in _needed(self.chunks, self.replay.oldest.tolist())), default=0)

    def forget(self, before: int) -> None:
        """Remove the files numbered below `before`, and those that are not of this run's history."""
        self.chunks = [chunk for chunk in self.chunks if chunk.number >= before]
        kept = {chunk.name for chunk in self.chunks}
        for pattern in ("chunk-*.safetensors", ".chunk-*.tmp.safetensors"):
            for file in files_of(self.folder, pattern):
                if file.name not in kept:
                    discard(file)

    def state_dict(self) -> list[dict[str, Any]]:
        """The list of files."""
        return [asdict(chunk) for chunk in self.chunks]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Read the frames into replay, whose own state must be restored. UserError as from `check_files`."""
        self.chunks = [Chunk(**chunk) for chunk in state]
        for chunk in _needed(self.chunks, self.replay.oldest.tolist()):
            self.replay.write(np.array(chunk.starts), np.array(chunk.ends), _frames(_read(self.folder, chunk)))

    def _saved(self) -> np.ndarray:
        """Position in each stream before which all frames are in files or overwritten."""
        ends = self.chunks[-1].ends if self.chunks else [0] * self.replay.streams
        return np.maximum(ends, self.replay.oldest)


def check_files(folder: Path, state: Sequence[dict[str, Any]], oldest: Sequence[int]) -> None:
    """UserError where a file of `ReplayFiles.state_dict` is missing or has another content.

    Files whose frames all lie before `oldest`, a position in each stream, are not needed.
    """
    for chunk in _needed([Chunk(**chunk) for chunk in state], oldest):
        _read(folder, chunk)


def _needed(chunks: Sequence[Chunk], oldest: Sequence[int]) -> list[Chunk]:
    return [chunk for chunk in chunks if any(end > first for end, first in zip(chunk.ends, oldest, strict=True))]


def _frames(content: bytes) -> dict[str, Tensor]:
    """The frames as `Replay.read` gave them. Old files without `is_terminal` are read as having no terminal frame."""
    frames = load(content)
    return {"is_terminal": torch.zeros_like(frames["is_first"]), **frames}


def _read(folder: Path, chunk: Chunk) -> bytes:
    path = folder / chunk.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}, which holds a part of the replay ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != chunk.sha256:
        raise UserError(f"{path}, which holds a part of the replay, is damaged")
    return content
