"""Environments of 50 steps with an accident in them: killed, kept busy by children, or changing the whole process."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.counting_env import CountingEnv

FOLDER = "DREAMER_MPC_TEST_ACCIDENTS"  # variable with a folder for marks and process ids


def folder() -> Path:
    return Path(os.environ[FOLDER])


class DiesOnce(CountingEnv):
    """The process is killed once, at step 5 of the episode with seed 10001."""

    def reset(self, *, seed=None, options=None):
        self.mine = seed == 10001
        image, info = super().reset(seed=seed)
        self.episode = 0
        return image, info

    def step(self, action):
        if self.mine and self.steps == 5 and not (folder() / "died").exists():
            (folder() / "died").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class DiesOnceInAll(DiesOnce):
    """The same in the first episode of any seed."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=10001)


def helper(pipe):
    while True:
        pipe.send(pipe.recv())


class WithHelper(CountingEnv):
    """Every action goes through a helper process, forked; a program that sleeps is started as well."""

    def __init__(self):
        super().__init__()
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.helper = context.Process(target=helper, args=(theirs,), daemon=True)
        self.helper.start()
        self.program = subprocess.Popen(["sleep", "600"])
        for process in (self.helper.pid, self.program.pid):
            (folder() / f"{process}.pid").write_text("")

    def step(self, action):
        self.pipe.send(float(action[0]))
        return super().step(np.full(2, self.pipe.recv(), np.float32))


class Ends(WithHelper):
    """It ends the program that it started in close(), by SIGTERM, and notes how the program ended."""

    def close(self):
        self.program.terminate()
        (folder() / "ended").write_text(str(self.program.wait(5)))


class Changes(CountingEnv):
    """Its factory changes folder, handlers and defaults, and it wants to find them again in each step."""

    def __init__(self):
        import torch  # here, as workers load this module without it

        super().__init__()
        os.chdir(folder())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        np.seterr(all="raise")

    def step(self, action):
        import torch

        assert Path.cwd() == folder()
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
        return super().step(action)


class Quits(CountingEnv):
    """It ends the process, as if all were well, in its 21st step."""

    taken = 0

    def step(self, action):
        Quits.taken += 1
        if Quits.taken > 20:
            os._exit(0)
        return super().step(action)


class Wrecks(CountingEnv):
    """Its factory leaves nothing of what a program takes for granted."""

    def __init__(self):
        super().__init__()
        os.close(1)
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        sys.stdout = sys.stderr = None
        sys.path[:] = ["nowhere"]
        sys.setrecursionlimit(100)
        os.umask(0o777)

    def step(self, action):
        assert sys.path == ["nowhere"], "it keeps its import path in its own calls"
        return super().step(action)


class Draws(CountingEnv):
    """Rewards come from the global generators."""

    def __init__(self):
        super().__init__()
        self.made = np.random.uniform()

    def step(self, action):
        image, _, *rest = super().step(action)
        return image, self.made + np.random.uniform() + random.random(), *rest


class Long(CountingEnv):
    """Episodes without an end."""

    def __init__(self):
        super().__init__(length=10**9)


ONE = CountingEnv()


def one():
    """The same object each time."""
    return ONE
