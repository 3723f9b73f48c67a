"""The dot of `tests.example_env`, which files steer in the process of evaluations and in its environments' workers."""

import multiprocessing
import os
import time
from pathlib import Path

from tests.example_env import DotEnv

VARIABLE = "DREAMER_MPC_TEST_BESIDE"  # a folder: `hold-factory`, `hold-step` make those calls wait, `fail` fails steps
NAME = "evaluation"  # of the process


def beside() -> bool:
    """Whether this is the process of evaluations, or one that it started."""
    parent = multiprocessing.parent_process()
    return NAME in (multiprocessing.current_process().name, parent.name if parent else "")


def steered(call: str) -> None:
    """Wait as long as `call` is held; fail in a step, as the file says."""
    folder = Path(os.environ[VARIABLE])
    (folder / f"{call}-{os.getpid()}").touch()
    while (folder / f"hold-{call}").exists():
        time.sleep(0.02)
    how = (folder / "fail").read_text() if call == "step" and (folder / "fail").exists() else ""
    if how == "memory":
        _use_up_memory()
    elif how:
        raise ValueError(how)


def _use_up_memory() -> None:
    """The agent's next call ends as if memory had run out."""
    from dreamer_mpc.agents.dreamer import Dreamer

    def fail(*_):
        raise MemoryError

    Dreamer.act = fail


class Steered(DotEnv):
    def __init__(self):
        if beside():
            steered("factory")

    def step(self, action):
        if beside():
            steered("step")
        return super().step(action)


def make() -> Steered:
    return Steered()
