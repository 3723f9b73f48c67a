"""Several environments stepped as one batch; a mask selects the rows to reset or to step. Nothing resets by itself."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.scene import Stage
from dreamer_mpc.envs.snapshot import is_restorable
from dreamer_mpc.envs.surroundings import Surroundings
from dreamer_mpc.envs.view import UNKNOWN, Facts, facts_of, view_of

# Beside reset and step: those of `Restorable`, those of a viewer, and that of a renderer.
CALLS = ("restorable", "get_state", "set_state", "go_to", "try_plans", "view", "facts", "stage")


def call(env: gymnasium.Env, method: str, args: tuple[Any, ...]) -> Any:
    """The answer of one environment to one of `CALLS`."""
    asked = {"restorable": is_restorable, "view": view_of, "facts": facts_of}.get(method)
    return asked(env) if asked else getattr(env, method)(*args)


class RowVectorEnv(VectorEnv):
    """Base class of the vector environments; subclasses decide where the environments run.

    Nothing resets by itself. `step_async(actions, rows)` steps only the rows of a mask: the others keep their image,
    get reward 0, and count no env steps. A row may be left out before its first reset; its image is black.
    """

    def __init__(self, num_envs: int, spaces: tuple[gymnasium.Space, gymnasium.Space]) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._images = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        self._stepping = np.ones(num_envs, dtype=bool)  # rows of the current step

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all rows, or those of `options["reset_mask"]`, bool [B]; the other rows keep their images."""
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
        """Begin a step of all rows, or of those in the mask `rows`, bool [B], with actions [B, A]."""
        stepping = np.ones(self.num_envs, dtype=bool) if rows is None else np.array(rows, dtype=bool)
        self._begin_step(np.flatnonzero(stepping), actions)
        self._stepping = stepping

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step: images, rewards, terminated and truncated [B], infos."""
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

    @property
    def restorable(self) -> bool:
        """Whether the rows' states can be copied; see `envs.snapshot`."""
        return self._call(np.arange(1), "restorable", [()])[0]

    def get_states(self) -> list[Any]:
        """The state of each row; EnvError where the environment cannot copy it."""
        return self._call(np.arange(self.num_envs), "get_state", [()] * self.num_envs)

    def set_states(self, states: Sequence[Any]) -> np.ndarray:
        """Let each row go to a state, its own or another row's; their images [B, H, W, 3]."""
        images = self._call(np.arange(self.num_envs), "set_state", [(state,) for state in states])
        self._images[:] = images
        return self._images.copy()

    def go_to(self, states: Sequence[Any]) -> None:
        """`set_states` without images: those of the rows stay the last ones."""
        self._call(np.arange(self.num_envs), "go_to", [(state,) for state in states])

    def try_plans(self, states: Sequence[Any], plans: np.ndarray) -> np.ndarray:
        """Rewards [B, P, H] of the plans [B, P, H, A] of each row, from its state; see `Restorable.try_plans`."""
        return np.stack(self._call(np.arange(self.num_envs), "try_plans", list(zip(states, plans, strict=True))))

    def stage(self) -> Stage:
        """What images of the rows' scenes are made with; only where observations are scenes."""
        return self._call(np.arange(1), "stage", [()])[0]

    def view(self, row: int) -> np.ndarray | None:
        """The present frame of a row for a video, uint8 [height, width, 3]; None where it has none."""
        return self._ask(row, "view")

    def facts(self) -> Facts:
        """Speed and names of actions, for a viewer."""
        return self._ask(0, "facts") or UNKNOWN

    def _ask(self, row: int, method: str) -> Any:
        """The answer of a row to a call without consequences; None where its process is dead, which a step reports."""
        return self._call(np.array([row]), method, [()])[0]

    def _call(self, rows: np.ndarray, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers of `rows` to one of `CALLS`, each with its own arguments."""
        raise NotImplementedError

    def _begin_reset(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        raise NotImplementedError

    def _end_reset(self, row: int, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        raise NotImplementedError

    def _begin_step(self, rows: np.ndarray, actions: np.ndarray) -> None:
        raise NotImplementedError

    def _end_step(self, row: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        raise NotImplementedError

    def _ended(self) -> None:
        """Record that all answers of a call were read."""


def check_equal_spaces(name: str, spaces: Sequence[tuple[gymnasium.Space, gymnasium.Space]]) -> None:
    """EnvError where the environments of one factory differ in observations or actions."""
    for row, other in enumerate(spaces):
        if other != spaces[0]:
            raise EnvError(f"{name}: the factory must make equal environments, got {other} in row {row}")


class LocalVectorEnv(RowVectorEnv):
    """Environments in this process, stepped one after the other in `step_wait`."""

    def __init__(self, name: str, factory: Callable[[], gymnasium.Env], num_envs: int) -> None:
        self.envs: list[gymnasium.Env] = []
        try:
            for row in range(num_envs):
                with Surroundings(seed=row):  # what a factory draws from global generators differs from row to row
                    self.envs.append(factory())
            spaces = [(env.observation_space, env.action_space) for env in self.envs]
            check_equal_spaces(name, spaces)
        except EnvError:
            self.close()
            raise
        super().__init__(num_envs, spaces[0])

    def close_extras(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _call(self, rows: np.ndarray, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [call(self.envs[row], method, each) for row, each in zip(rows, args, strict=True)]

    def _begin_reset(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        """Nothing to do: the work is done when it is waited for."""

    def _end_reset(self, row: int, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.envs[row].reset(seed=seed)

    def _begin_step(self, rows: np.ndarray, actions: np.ndarray) -> None:
        self._actions = actions

    def _end_step(self, row: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.envs[row].step(self._actions[row])
