"""`tests.support.growing_env:make`: an environment's first two episodes end after 5 steps, later ones after 50.

Not those of the first environment, the one that is tried before a run has a folder: a file, `GROWING_ENV_TRIED`, says
that there was one.
"""

import os
from pathlib import Path

from tests.example_env import DotEnv


class GrowingEnv(DotEnv):
    """As a task that ends on failure: shorter than a sequence at first."""

    def __init__(self, short: int):
        super().__init__()
        self.short = short

    def reset(self, *, seed=None, options=None):
        self.short -= 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        image, reward, terminated, _, info = super().step(action)
        return image, reward, terminated, self.steps >= (5 if self.short >= 0 else 50), info


def make():
    tried = Path(os.environ["GROWING_ENV_TRIED"])
    short = 2 * tried.exists()
    tried.touch()
    return GrowingEnv(short)
