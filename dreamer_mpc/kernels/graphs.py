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
        return _copies(self.outputs)

    def _warm_up(self, inputs: list[Any]) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(*pytree.tree_unflatten(inputs, self.spec))
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self, inputs: list[Any]) -> None:
        self.inputs = [_copy(x) for x in inputs]
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection(), torch.cuda.graph(graph):
            self.outputs = self.function(*pytree.tree_unflatten(self.inputs, self.spec))
        self.graph = graph


class Aside:
    """On a GPU, work inside the context runs concurrently with the work after it, until `join`.

    Results of the context may be used after `join`, and results of the work outside in the context after `follow`.
    `mark` is between two of its results: whoever waits for it does not wait for what comes later.
    Several at once are numbered, `lane` 0, 1, ... On a CPU it changes nothing: all runs in sequence.
    """

    def __init__(self, device: torch.device, lane: int = 0):
        self._stream = _side_stream(device, lane) if device.type == "cuda" else None
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

    def join(self) -> None:
        """Make later work wait for the work inside the context."""
        if self._stream:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def mark(self) -> "Mark":
        """All work inside the context so far."""
        return Mark(self._stream.record_event() if self._stream else None)


class Mark:
    """Work that was given to a stream, up to one point."""

    def __init__(self, event: torch.cuda.Event | None):
        self._event = event

    def join(self) -> None:
        """Make later work wait for it."""
        if self._event:
            torch.cuda.current_stream().wait_event(self._event)


@functools.cache  # one stream of each lane for the process: memory freed on a stream is reused on that stream
def _side_stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    # Parameters get gradients from several streams on purpose; recent versions of torch warn of each.
    quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if quiet is not None:
        quiet(False)
    return torch.cuda.Stream(device)


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


def _copies(outputs: Any) -> Any:
    """`_copy` of all outputs, those of one dtype in one kernel: launching one for each metric takes as long as many."""
    leaves, spec = pytree.tree_flatten(outputs)
    copies = [torch.empty_like(x) if isinstance(x, Tensor) else x for x in leaves]
    for dtype in {x.dtype for x in leaves if isinstance(x, Tensor)}:
        pairs = [(y, x) for y, x in zip(copies, leaves, strict=True) if isinstance(x, Tensor) and x.dtype == dtype]
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
    return pytree.tree_unflatten(copies, spec)
