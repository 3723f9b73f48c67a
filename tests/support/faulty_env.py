"""An environment with injected faults, in this process or in a worker: `tests.support.faulty_env:make`."""

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

SHAPE = (16, 24, 3)
LENGTH = 5  # steps of an episode
VARIABLE = "DREAMER_MPC_TEST_FAULT"  # path of a file with the pickled `Fault`, inherited by workers


@dataclass(frozen=True)
class Fault:
    """The fault of one call: `call` number `after` (from 0) of the `row` that is reset with that seed.

    `how` is `raise` (the exception `what`), `exit` (sys.exit(what)), `die` (by signal `what`), `return` (`what` instead
    of the answer), `part` (the answer with `what` = (index, value) in it) or `sleep` (for `what` seconds).
    """

    call: str  # factory, reset, step or close
    how: str
    what: Any = None
    after: int = 0
    row: int | None = None  # None: all

    def strike(self, answer: Any) -> Any:
        """The replacement of `answer`, if the fault has one."""
        if self.how == "raise":
            raise self.what
        if self.how == "exit":
            sys.exit(self.what)
        if self.how == "die":
            os.kill(os.getpid(), self.what)
            signal.pause()
        if self.how == "sleep":
            time.sleep(self.what)
        if self.how == "return":
            return self.what
        if self.how == "part":
            index, value = self.what
            return (*answer[:index], value, *answer[index + 1 :])
        return answer


@contextmanager
def injected(fault: Fault, folder: Path) -> Iterator[dict[str, str]]:
    """Context in which environments of `make` have that fault; yields the environment variables for other programs."""
    file = folder / "fault.pickle"
    file.write_bytes(pickle.dumps(fault))
    os.environ[VARIABLE] = str(file)  # the rest of the environment keeps what is set there, as the probed GL backend
    try:
        yield {VARIABLE: str(file)}
    finally:
        del os.environ[VARIABLE]


class FaultyEnv(gymnasium.Env):
    """Episodes of `LENGTH` steps with images that encode step and seed, until the fault occurs."""

    observation_space = gymnasium.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, fault: Fault | None):
        self.fault, self.calls, self.steps, self.seed = fault, {"reset": 0, "step": 0, "close": 0}, 0, 0

    def reset(self, *, seed=None, options=None):
        self.seed, self.steps = seed or 0, 0
        return self.answer("reset", (self.image(), {}))

    def step(self, action):
        self.steps += 1
        return self.answer("step", (self.image(), 1.0, False, self.steps >= LENGTH, {}))

    def close(self):
        self.answer("close", None)

    def image(self):
        return np.full(SHAPE, (self.seed % 256, self.steps, 0), np.uint8)

    def answer(self, call, answer):
        fault, count = self.fault, self.calls[call]
        self.calls[call] += 1
        if fault is None or fault.call != call or fault.row not in (None, self.seed) or count < fault.after:
            return answer
        return fault.strike(answer)


def make():
    """An environment with the fault that the variable names, or none."""
    fault = pickle.loads(Path(os.environ[VARIABLE]).read_bytes()) if VARIABLE in os.environ else None
    if fault is not None and fault.call == "spaces":
        env = FaultyEnv(None)
        setattr(env, *fault.what)
        return env
    env = FaultyEnv(fault)
    return fault.strike(env) if fault is not None and fault.call == "factory" else env
