"""A custom environment: `python run.py --env tests.example_env:make`."""

import gymnasium
import numpy as np


class DotEnv(gymnasium.Env):
    """A dot on a 64x64 image that a 2-D action moves; the nearer to the centre, the more reward."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 2)  # x, y
        self.steps = 0
        return self.draw(), {}

    def step(self, action):
        self.position = np.clip(self.position + 0.1 * action, -1.0, 1.0)
        self.steps += 1
        reward = float(np.exp(-4.0 * np.square(self.position).sum()))
        return self.draw(), reward, False, self.steps >= 100, {}

    def draw(self):
        image = np.full((64, 64, 3), 40, np.uint8)
        column, row = (32 + 28 * self.position).astype(int)
        image[row - 3 : row + 4, column - 3 : column + 4] = (255, 200, 0)
        return image


def make():
    return DotEnv()
