"""Additions to Triton's interpreter for our kernels: teams whose programs wait for each other, and bf16 products."""

import inspect
import random
import threading

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

BUILDER = interpreter.interpreter_builder
TURNS = 5_000  # limit per program of a launch, after which the program counts as waiting for ever


class Program(threading.Thread):
    """One program of a launch: it runs alone between two accesses to a counter in memory."""

    def __init__(self, fn, args):
        super().__init__(daemon=True)
        self.fn, self.args, self.place = fn, args, BUILDER.grid_idx
        self.turn, self.over = threading.Semaphore(0), threading.Semaphore(0)
        self.ended, self.error = False, None
        self.start()

    def run(self):
        self.turn.acquire()
        try:
            self.fn(**self.args)
        except Exception as error:
            self.error = error
        self.ended = True
        self.over.release()

    def step(self) -> bool:
        """Let it take a turn; returns whether it has more to do."""
        BUILDER.grid_idx = self.place
        self.turn.release()
        self.over.acquire()
        if self.error:
            raise self.error
        return not self.ended

    def hand_on(self) -> None:
        """End its turn: called from its own thread."""
        self.over.release()
        self.turn.acquire()


class Grid(interpreter.GridExecutor):
    """Programs take turns; the plain interpreter would finish one before it starts the next."""

    def __init__(self, fn, *args, **kwargs):
        super().__init__(fn, *args, **kwargs)
        self.programs = []
        self.fn = self._collect(fn)

    def _collect(self, fn):
        """Replaces `fn`: programs are collected until the last one of the grid is there."""

        def collect(**args):
            self.programs.append(Program(fn, args))
            if len(self.programs) == np.prod(BUILDER.grid_dim):
                take_turns(self.programs)

        collect.__signature__ = inspect.signature(fn)  # the executor inspects the signature
        return collect


def take_turns(programs: list[Program]) -> None:
    """Run them to their ends, in a reproducible order that lets some programs get ahead of others."""
    order, left = random.Random(0), list(programs)
    for _ in range(TURNS * len(programs)):
        program = order.choice(left)
        if not program.step():
            left.remove(program)
        if not left:
            return
    raise TimeoutError("programs wait for each other forever")


def atomic(*args):
    """The interpreter's atomic operation, after a turn of every other program."""
    thread = threading.current_thread()
    if isinstance(thread, Program):
        thread.hand_on()
    return type(BUILDER).create_atomic_rmw(BUILDER, *args)


def dot(a, b, acc, *settings):
    """The interpreter's product, which would multiply the bits of bf16 numbers as integers."""
    return type(BUILDER).create_dot(BUILDER, _widened(a), _widened(b), acc, *settings)


def _widened(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def complete(monkeypatch) -> None:
    """Add both to the interpreter for a test."""
    monkeypatch.setattr(interpreter, "GridExecutor", Grid)
    monkeypatch.setattr(BUILDER, "create_atomic_rmw", atomic)
    monkeypatch.setattr(BUILDER, "create_dot", dot)
