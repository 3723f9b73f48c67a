"""An environment whose images and rewards encode the step and the episode."""

import gymnasium
import numpy as np


class CountingEnv(gymnasium.Env):
    """Step `step` of episode `episode` (both from 0, a reset's image is step 0), as `encode` writes them.

    The reward on arriving there is `expected_reward(episode, step, action)` of the action that led there,
    which `info["action"]` repeats. Episodes last `length` steps and end as truncated, or as terminated if
    `terminates`.
    """

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(self, length: int = 10, action_dim: int = 2, terminates: bool = False) -> None:
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.length = length
        self.terminates = terminates
        self.episode = -1
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return encode(self.episode, self.steps), {"action": np.zeros(self.action_space.shape, np.float32)}

    def step(self, action):
        self.steps += 1
        over = self.steps >= self.length
        reward = expected_reward(self.episode, self.steps, action)
        info = {"action": np.array(action, np.float32)}
        return (
            encode(self.episode, self.steps),
            reward,
            over and self.terminates,
            over and not self.terminates,
            info,
        )


def expected_reward(episode: int, step: int, action: np.ndarray) -> float:
    """10 * episode + step + 0.1 * action[0]."""
    return 10.0 * episode + step + 0.1 * float(action[0])


def encode(episode: int, step: int) -> np.ndarray:
    """An image uint8 [64, 64, 3] that encodes `episode` (below 256) and `step` (below 65536); one pixel is inverted."""
    image = np.full((64, 64, 3), (episode, step % 256, step // 256), np.uint8)
    image[3, 20] = 255 - image[3, 20]
    return image


def decode(image: np.ndarray) -> tuple[int, int]:
    """(episode, step) of an image; ValueError for any other pixels, as after blending or a misplaced copy."""
    episode, low, high = (int(value) for value in image[0, 0])
    if (image != encode(episode, low + 256 * high)).any():
        raise ValueError("not an image of CountingEnv")
    return episode, low + 256 * high


def make() -> CountingEnv:
    """Episodes of 10 steps that are truncated."""
    return CountingEnv()
