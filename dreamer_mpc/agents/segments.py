"""An update's batch in segments along time, which pass its recurrent scan like a pipeline.

The scan is one step after the other and leaves most of a GPU idle. So images of a segment are encoded beside the scan
of the one before, and its states are decoded beside the scan of the next; on the way back likewise.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.kernels.deferred import Once
from dreamer_mpc.kernels.graphs import Aside
from dreamer_mpc.world_model import Batch, WorldModelProtocol

SEGMENTS = {"cuda": 2}  # how many, by the kind of device; elsewhere one: there nothing runs beside anything


class Segment(NamedTuple):
    """The frames of a segment, what was inferred of them, and from what."""

    batch: Batch  # it begins after the last state of the segment before
    inference: Any
    seen: Any  # kept, because streams that did not make it read it
    share: float  # of the whole batch's frames


def inferred(world: WorldModelProtocol, batch: Batch, amp: Callable[[], torch.autocast]) -> Iterator[Segment]:
    """The inference of a batch, a segment at a time, as soon as the scan of each has been launched.

    What does not need the states before is there earlier: on a GPU, that of later segments comes beside the scan of
    the first.
    """
    first, *rest = parts = _parts(batch, SEGMENTS.get(batch.image.device.type, 1) if world.framewise else 1)
    once = Once()
    seen, marks = [world.see(first, amp(), once)], []
    if rest:
        images = Aside(batch.image.device, "images")
        for part in rest:
            with images:
                seen.append(world.see(part, amp(), once))
            marks.append(images.mark())
    state = batch.state
    for i, part in enumerate(parts):
        if i > 0:
            marks[i - 1].join()
            part = part._replace(state=state)
        inference = world.infer(part, amp(), seen[i])
        state = inference.states[-1]
        yield Segment(part, inference, seen[i], len(part.reward) / len(batch.reward))


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Parts along time, of equal length or the first ones a step longer; all but the first without the state before."""
    steps = len(batch.reward)
    count = min(count, steps)
    if count == 1:
        return [batch]
    bounds = [0, *accumulate(steps // count + (i < steps % count) for i in range(count))]
    parts = [Batch(*(x[start:stop] for x in batch[:-1])) for start, stop in pairwise(bounds)]
    return [parts[0]._replace(state=batch.state), *parts[1:]]


def average(terms: list[dict[str, Float[Tensor, ""]]], shares: list[float]) -> dict[str, Float[Tensor, ""]]:
    """Means over all frames, of means over those of each segment."""
    if len(terms) == 1:
        return terms[0]
    total = sum(share * torch.stack(list(each.values())) for each, share in zip(terms, shares, strict=True))
    return dict(zip(terms[0], total.unbind(), strict=True))
