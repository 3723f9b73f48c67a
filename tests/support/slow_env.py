"""Environments `a` to `d`, each of which is slow while the file of its name is in the folder $SLOW_ENV_FOLDER."""

import os
import time
from functools import partial
from pathlib import Path

from tests.example_env import DotEnv

SECONDS = 0.4  # of a slow step


class SlowEnv(DotEnv):
    def __init__(self, name):
        folder = os.environ.get("SLOW_ENV_FOLDER")
        self.file = Path(folder) / name if folder else None

    def step(self, action):
        if self.file and self.file.exists():
            time.sleep(SECONDS)
        return super().step(action)


a, b, c, d = (partial(SlowEnv, name) for name in "abcd")
