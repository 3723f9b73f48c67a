"""The slots of frames: one ring for each stream, one ring behind the other."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

Indices = TypeVar("Indices", np.ndarray, Tensor)


@dataclass(frozen=True)
class Ring:
    """`streams` rings of `size` slots. A position counts the frames of its stream from the first one ever written."""

    streams: int
    size: int

    def slots(self, stream: Indices, position: Indices) -> Indices:
        """The slot of the frame at each `position` of each `stream`, int64."""
        return stream * self.size + position % self.size

    def read(
        self, held: dict[str, Tensor], starts: Int64[np.ndarray, " S"], ends: Int64[np.ndarray, " S"]
    ) -> dict[str, Tensor]:
        """What `held` has of the frames from `starts` to before `ends`, stream after stream, on the host."""
        bounds = zip(range(self.streams), starts.tolist(), ends.tolist(), strict=True)
        spans = [span for stream, start, end in bounds for span in self._spans(stream, start, end)]
        return {
            name: torch.cat([values[:0].cpu(), *(values[span].cpu() for span in spans)])
            for name, values in held.items()
        }

    def write(
        self,
        held: dict[str, Tensor],
        starts: Int64[np.ndarray, " S"],
        ends: Int64[np.ndarray, " S"],
        written: Int64[np.ndarray, " S"],
        given: dict[str, Tensor],
    ) -> None:
        """Write what `read` gave back to its slots in `held`, except frames that later ones replace.

        `written` are the frames that each stream has had in total.
        """
        passed = 0  # frames of the streams before
        for stream, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            kept = min(max(start, int(written[stream]) - self.size), end)
            position = passed + kept - start
            for span in self._spans(stream, kept, end):
                count = span.stop - span.start
                for name, values in given.items():
                    held[name][span] = values[position : position + count].to(held[name].device)
                position += count
            passed += end - start

    def _spans(self, stream: int, start: int, end: int) -> list[slice]:
        """Slots of the frames `start` to `end` - 1, at most one ring: one slice, or two if they wrap around its end."""
        if start >= end:
            return []
        ring, first, count = stream * self.size, start % self.size, end - start
        behind = max(first + count - self.size, 0)
        spans = [slice(ring + first, ring + first + count - behind)]
        return [*spans, slice(ring, ring + behind)] if behind else spans
