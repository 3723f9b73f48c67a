"""Environments `a` to `d`, each of which is slow while the file of its name is in the folder $SLOW_ENV_FOLDER."""

import os
import time
from functools import partial
from pathlib import Path

from tests.example_env import DotEnv

FAST, SECONDS = 12, 0.8  # steps of an environment that are never slow; seconds of the others while they are


class SlowEnv(DotEnv):
    def __init__(self, name):
        folder = os.environ.get("SLOW_ENV_FOLDER")
        self.file, self.age = Path(folder or "/nowhere") / name, 0

    def step(self, action):
        self.age += 1
        if self.age > FAST and self.file.exists():
            time.sleep(SECONDS)
        return super().step(action)


a, b, c, d = (partial(SlowEnv, name) for name in "abcd")
