"""Which frames of replay belong to which episode."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class Episodes:
    """The streams and positions of all episodes, in the order in which they began. Positions only increase."""

    def __init__(self, streams: int, size: int):
        self.size = size  # frames that a stream keeps
        self.written = np.zeros(streams, dtype=np.int64)  # frames appended to each stream in total
        self._open = np.full(streams, -1)  # row in `_table` of the episode in progress
        self._keep(np.zeros((0, 3), dtype=np.int64))
        self._first = np.zeros(streams, dtype=np.int64)  # older frames are gone: the ring was once smaller

    @property
    def stream(self) -> Int64[np.ndarray, " E"]:
        """Stream of each episode."""
        return self._table[: self._count, 0]

    @property
    def end(self) -> Int64[np.ndarray, " E"]:
        """Position after the last frame of each episode."""
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

    def append(self, rows: Int64[np.ndarray, " N"], is_first: Bool[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
        """Count one more frame in each of `rows`; gives its position. ValueError where no episode is in progress."""
        for row in rows[is_first].tolist():
            self._begin(row)
        if (self._open[rows] < 0).any():
            raise ValueError("a stream must begin with the first frame of an episode")
        positions = self.written[rows]
        self.written[rows] += 1
        self._table[self._open[rows], 2] += 1
        return positions

    def drop(self, rows: Int64[np.ndarray, " N"]) -> None:
        """Remove all frames of the episodes in progress in `rows`."""
        at = self._open[rows]
        self._table[at, 2] = self._table[at, 1]
        self._open[rows] = -1

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the table and of the positions."""
        arrays = {"table": self._table[: self._count], "open": self._open, "written": self.written}
        return {name: torch.from_numpy(array.copy()) for name, array in (arrays | {"oldest": self.oldest()}).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, also of rings of another size."""
        table, self._open, self.written, self._first = (
            state[name].numpy().copy() for name in ("table", "open", "written", "oldest")
        )
        self._keep(table)

    def _begin(self, row: int) -> None:
        if self._count == len(self._table):
            self._forget()
        self._open[row] = self._count
        self._table[self._count] = row, self.written[row], self.written[row]
        self._count += 1

    def _forget(self) -> None:
        """Drop episodes without frames, which makes room for new ones."""
        kept, begun = self.lengths() > 0, self._open >= 0
        kept[self._open[begun]] = True  # one that has just begun has no frame yet
        self._open[begun] = (np.cumsum(kept) - 1)[self._open[begun]]
        self._keep(self._table[: self._count][kept])

    def _keep(self, table: np.ndarray) -> None:
        """Go on with these episodes alone, and with room for as many new ones, at least 64."""
        self._count = len(table)
        room = np.zeros((max(self._count, 64), 3), dtype=np.int64)
        self._table = np.concatenate([table, room])  # stream, start, end; `_count` rows are in use
