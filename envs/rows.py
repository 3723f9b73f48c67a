"""Several environments stepped as one: rows are reset and stepped by mask, never by themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.errors import EnvError


class RowVectorEnv(VectorEnv):
    """What vector environments here have in common; where a row's environment lives is left to the subclass.

    Nothing is reset by itself. `step_async(actions, rows)` steps the rows of a mask alone: those left out keep their
    image, are paid nothing, and count no env steps. A row may be left out before its first reset; its image is black.
    """

    def __init__(self, num_envs: int, spaces: tuple[gymnasium.Space, gymnasium.Space]) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._images = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        self._stepping = np.ones(num_envs, dtype=bool)  # rows of the step that was begun last

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all rows, or those of `options["reset_mask"]`, bool [B]; the other rows' images are as they were."""
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + row for row in range(self.num_envs)]
        rows = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool)))
        self._begin_reset(rows, seed)
        infos: dict[str, Any] = {}
        for row in rows:
            self._images[row], info = self._end_reset(row, seed[row])
            infos = self._add_info(infos, info, row)
        self._ended()
        return self._images.copy(), infos

    def step_async(self, actions: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Let every row, or those of the mask `rows`, bool [B], begin a step with its action of `actions` [B, A]."""
        stepping = np.ones(self.num_envs, dtype=bool) if rows is None else np.array(rows, dtype=bool)
        self._begin_step(np.flatnonzero(stepping), actions)
        self._stepping = stepping

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """The end of that step: images, rewards, terminated and truncated [B], infos."""
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        infos: dict[str, Any] = {}
        for row in np.flatnonzero(self._stepping):
            self._images[row], rewards[row], terminated[row], truncated[row], info = self._end_step(row)
            infos = self._add_info(infos, info, row)
        self._ended()
        return self._images.copy(), rewards, terminated, truncated, infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Both halves of a step of all rows."""
        self.step_async(actions)
        return self.step_wait()

    def _begin_reset(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        raise NotImplementedError

    def _end_reset(self, row: int, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        raise NotImplementedError

    def _begin_step(self, rows: np.ndarray, actions: np.ndarray) -> None:
        raise NotImplementedError

    def _end_step(self, row: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        raise NotImplementedError

    def _ended(self) -> None:
        """All answers of a call are read."""


def check_equal_spaces(name: str, spaces: Sequence[tuple[gymnasium.Space, gymnasium.Space]]) -> None:
    """EnvError where the environments of one factory differ in observations or actions."""
    for row, other in enumerate(spaces):
        if other != spaces[0]:
            raise EnvError(f"{name}: the factory must make equal environments, got {other} in row {row}")


class LocalVectorEnv(RowVectorEnv):
    """Environments in this process, one after the other: the second half of a step does it all."""

    def __init__(self, name: str, factory: Callable[[], gymnasium.Env], num_envs: int) -> None:
        self.envs = [factory() for _ in range(num_envs)]
        spaces = [(env.observation_space, env.action_space) for env in self.envs]
        try:
            check_equal_spaces(name, spaces)
        except EnvError:
            self.close()
            raise
        super().__init__(num_envs, spaces[0])

    def close_extras(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _begin_reset(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Nothing runs before it is waited for."""

    def _end_reset(self, row: int, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.envs[row].reset(seed=seed)

    def _begin_step(self, rows: np.ndarray, actions: np.ndarray) -> None:
        self._actions = actions

    def _end_step(self, row: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.envs[row].step(self._actions[row])
