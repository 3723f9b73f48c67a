"""Grayscale images, and several frames as the channels of one."""

from collections import deque
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.snapshot import Restorable, is_restorable

LUMA = (77, 150, 29)  # ITU-R BT.601, in 256ths
MOST_STACKED = 8


def to_gray(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to [H, W, 1]: the brightness of each pixel."""
    red, green, blue = (image[..., i].astype(np.uint16) * LUMA[i] for i in range(3))
    return ((red + green + blue + 128) >> 8).astype(np.uint8)[..., None]


class Frames(gymnasium.Wrapper, Restorable):
    """Images [H, W, C] in gray (C = 1 in place of 3), and the last `stack` of them side by side: [H, W, stack * C].

    The newest is the last. Before an episode has as many, its first one is repeated.
    """

    def __init__(self, env: gymnasium.Env, *, grayscale: bool, stack: int) -> None:
        super().__init__(env)
        self._grayscale, self._frames = grayscale, deque(maxlen=stack)
        height, width, channels = env.observation_space.shape
        shape = (height, width, stack * (1 if grayscale else channels))
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start a new episode."""
        image, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._seen(image)] * self._frames.maxlen)
        return self._stacked(), info

    def step(self, action: np.ndarray):
        """One step of the environment, whose action repeat may hide frames between two."""
        image, *result = self.env.step(action)
        self._frames.append(self._seen(image))
        return self._stacked(), *result

    @property
    def restorable(self) -> bool:
        """Whether the environment itself is."""
        return is_restorable(self.env)

    def get_state(self) -> tuple[Any, list[np.ndarray]]:
        """The environment's state and the frames."""
        return self.env.get_state(), list(self._frames)

    def set_state(self, state: tuple[Any, list[np.ndarray]]) -> np.ndarray:
        """Go back to `state`; the newest frame is rendered again."""
        inner, frames = state
        image = self.env.set_state(inner)
        self._frames.extend([*frames[:-1], self._seen(image)])
        return self._stacked()

    def go_to(self, state: tuple[Any, list[np.ndarray]]) -> None:
        """`set_state` without an image."""
        inner, frames = state
        self.env.go_to(inner)
        self._frames.extend(frames)

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        return self.env._advance(action)

    def _seen(self, image: np.ndarray) -> np.ndarray:
        return to_gray(image) if self._grayscale else image

    def _stacked(self) -> np.ndarray:
        return np.concatenate(self._frames, axis=-1)
