"""CUDA graphs: record a function once and replay it with one launch; run work concurrently inside it."""

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARMUP_CALLS = 3
OWN = -3  # priority of a graph's own stream; lower ones go first wherever kernels of several streams wait for a GPU
PRIORITIES: dict[str, int | None] = {  # of the streams of `Aside`; None: in sequence with the rest
    "replay": -3, "imagination": -2, "later": -2, "images": -1, "heads": -1, "loss": 0, "beside": 0, "weights": 0,
    "encoder": 0,
}  # fmt: skip


class Captured:
    """`function` recorded as a CUDA graph and replayed; the plain function where the inputs are not on a GPU.

    Inputs and outputs are tensors in tuples, named tuples, dicts, lists or None. The first calls run eagerly, so that
    libraries and optimizers are initialised and every tensor that the function changes is changed by a real call; the
    next call records. One graph is kept per set of input shapes. Random numbers continue from torch's generator as in
    an eager call. The function must not synchronise with the host or depend on tensor values in Python.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.recordings: dict[tuple, _Recording] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, spec = pytree.tree_flatten(args)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if not tensors or not all(x.is_cuda for x in tensors):
            return self.function(*args)
        key = (spec, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        if key not in self.recordings:
            self.recordings[key] = _Recording(self.function, spec)
        return self.recordings[key](leaves)


class _Recording:
    """The graph of one set of input shapes, with the buffers it reads and writes."""

    def __init__(self, function: Callable[..., Any], spec: pytree.TreeSpec):
        self.function, self.spec = function, spec
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()

    def __call__(self, inputs: list[Any]) -> Any:
        if self.calls < WARMUP_CALLS:
            self.calls += 1
            return self._warm_up(inputs)
        if self.graph is None:
            self._record(inputs)
        for buffer, value in zip(self.inputs, inputs, strict=True):
            if isinstance(value, Tensor):
                buffer.copy_(value, non_blocking=True)
        self.graph.replay()
        return self.outputs.copy()

    def _warm_up(self, inputs: list[Any]) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*pytree.tree_unflatten(inputs, self.spec))
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self, inputs: list[Any]) -> None:
        self.inputs = [_copy(x) for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph, stream=_own_stream(torch.cuda.current_device())):
            self.outputs = _Outputs(self.function(*pytree.tree_unflatten(self.inputs, self.spec)))
        self.graph = graph


class _Outputs:
    """What a function gave, to be copied after each replay; numbers of one kind lie side by side, for one copy."""

    def __init__(self, outputs: Any):
        leaves, self._spec = pytree.tree_flatten(outputs)
        self._numbers: dict[tuple, list[int]] = {}  # places of tensors [] among the leaves
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.dim() == 0:
                self._numbers.setdefault((leaf.dtype, leaf.device), []).append(place)
        stacks = [torch.stack([leaves[place].detach() for place in places]) for places in self._numbers.values()]
        numbers = {place for places in self._numbers.values() for place in places}
        self._leaves = [*stacks, *(None if place in numbers else leaf for place, leaf in enumerate(leaves))]

    def copy(self) -> Any:
        """The outputs in new memory."""
        copies = [_copy(x) for x in self._leaves]
        leaves = copies[len(self._numbers) :]
        for stack, places in zip(copies, self._numbers.values(), strict=False):
            for place, number in zip(places, stack.unbind(), strict=True):
                leaves[place] = number
        return pytree.tree_unflatten(leaves, self._spec)


class Aside:
    """On a GPU, work inside the context runs concurrently with the work after it, until `join`.

    Results of the context may be used after `join`, and results of the work outside in the context after `follow`.
    `mark` is between two of its results: whoever waits for it does not wait for what comes later.
    Several at once have names, `lane`, with `PRIORITIES`: what more work waits for goes first. A captured graph keeps
    them. On a CPU it changes nothing: all runs in sequence.
    """

    def __init__(self, device: torch.device, lane: str = "beside"):
        beside = device.type == "cuda" and PRIORITIES[lane] is not None
        self._stream = _side_stream(device, lane) if beside else None
        self.follow()

    def __enter__(self) -> None:
        self._context = torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def follow(self) -> None:
        """Make later work inside the context wait for the work outside so far."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def join(self, *results: Tensor) -> None:
        """Make later work wait for the work inside the context.

        `results` are those that later work may still read when nothing refers to them any more: autograd drops what it
        kept as soon as its kernels are launched, and the context could take such memory for other numbers.
        """
        if self._stream:
            stream = torch.cuda.current_stream(self._stream.device)
            stream.wait_stream(self._stream)
            for result in results:
                result.record_stream(stream)

    def mark(self) -> "Mark":
        """All work inside the context so far."""
        return Mark(self._stream.record_event() if self._stream else None)


class Mark:
    """Work that was given to a stream, up to one point."""

    def __init__(self, event: torch.cuda.Event | None):
        self._event = event

    def join(self, *results: Tensor) -> None:
        """Make later work wait for it; `results`: see `Aside.join`."""
        if self._event:
            torch.cuda.current_stream().wait_event(self._event)
            for result in results:
                result.record_stream(torch.cuda.current_stream())


@functools.cache  # one stream of each lane for the process: memory freed on a stream is reused on that stream
def _side_stream(device: torch.device, lane: str) -> torch.cuda.Stream:
    # Parameters get gradients from several streams on purpose; recent versions of torch warn of each.
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    return torch.cuda.Stream(device, priority=PRIORITIES[lane])


@functools.cache
def _own_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=OWN)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Freeing another graph, of an agent that is no longer used, would invalidate the capture under way."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x
