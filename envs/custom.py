"""Anybody's environment with pixels, named `module:factory`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from envs.actions import StepResult, repeat_action, to_bounds
from envs.errors import EnvError


def make_custom_env(
    name: str, *, action_repeat: int, image_size: int, max_env_steps: int | None
) -> gymnasium.Env:
    """The environment that `module:factory` returns, wrapped as `make_env` says, or `EnvError`."""
    env = _load_factory(name)()
    problem = _find_problem(env)
    if problem is not None:
        raise EnvError(f"{name}: {problem}")
    return CustomEnv(env, action_repeat=action_repeat, image_size=image_size, max_env_steps=max_env_steps)


class CustomEnv(gymnasium.Wrapper):
    """Images resized, actions from [-1, 1] to the environment's bounds, repeated and counted."""

    def __init__(
        self, env: gymnasium.Env, *, action_repeat: int, image_size: int, max_env_steps: int | None
    ) -> None:
        super().__init__(env)
        self.metadata = {"render_fps": 30, **env.metadata, "render_modes": ["rgb_array"]}
        self._action_repeat = action_repeat
        self._image_size = image_size
        self._max_env_steps = max_env_steps
        self._env_steps = 0
        self._image = None
        self._low = env.action_space.low.astype(np.float64)
        self._high = env.action_space.high.astype(np.float64)
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._low.shape, np.float32)

    @property
    def render_mode(self) -> str:
        """Always `rgb_array`: without a renderer of its own, the environment's image serves."""
        return "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A new episode, `info["env_steps"]` is 0."""
        self._image, info = self.env.reset(seed=seed, options=options)
        self._env_steps = 0
        return self._resize(self._image), {**info, "env_steps": 0}

    def step(self, action: np.ndarray):
        """Repeat `action` [A]; ValueError for an action that is not finite."""
        control = to_bounds(action, self._low, self._high).astype(self.env.action_space.dtype)
        self._image, *result = repeat_action(self._step_once, control, self._action_repeat)
        return self._resize(self._image), *result

    def render(self) -> np.ndarray:
        """The present frame for a video, uint8 [height, width, 3] in the environment's own size."""
        return self.env.render() if self.env.render_mode == "rgb_array" else np.array(self._image)

    def _step_once(self, control: np.ndarray) -> StepResult:
        observation, reward, terminated, truncated, info = self.env.step(control)
        self._env_steps += 1
        if self._max_env_steps is not None and self._env_steps >= self._max_env_steps:
            truncated = truncated or not terminated
        return observation, reward, terminated, truncated, info

    def _resize(self, image: np.ndarray) -> np.ndarray:
        size = (self._image_size, self._image_size)
        if image.shape[:2] == size:
            return image
        import cv2

        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _load_factory(name: str) -> Callable[[], gymnasium.Env]:
    module_name, _, factory_name = name.partition(":")
    if not module_name or not factory_name:
        raise EnvError(f"{name}: write module:factory, for example my_envs.robot:make")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise EnvError(
            f"{name}: cannot import {module_name} ({error}); it must lie in this folder or be installed"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise EnvError(f"{name}: {module_name} has no function {factory_name}")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise EnvError(f"{name}: the factory is called without arguments, but {error}") from error
    return factory


def _find_problem(env: Any) -> str | None:
    if not isinstance(env, gymnasium.Env):
        return f"the factory must return a gymnasium.Env, got {type(env).__module__}.{type(env).__qualname__}"
    images, actions = env.observation_space, env.action_space
    box = isinstance(images, gymnasium.spaces.Box)
    if not box or images.dtype != np.uint8 or len(images.shape) != 3 or images.shape[2] != 3:
        remedy = "gymnasium.wrappers.AddRenderObservation turns a render() into observations"
        return f"observations must be pixels, a Box of uint8 [height, width, 3], got {images}; {remedy}"
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1 or actions.dtype.kind != "f":
        return f"actions must be a Box of floats [A], got {actions}"
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        return f"actions must have finite bounds, got {actions}; give the Box a low and a high"
    return None
