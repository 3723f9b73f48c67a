"""Copying the state of an environment and going back to it: an optional capability, for what would have been."""

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.errors import EnvError


class Restorable(ABC):
    """An environment that can go back: from a restored state, the same actions give the same images and rewards.

    A state can be pickled, and holds for every environment that was made with the same arguments. An environment that
    merely has methods of these names, without inheriting from here, is never asked for its state.
    """

    @property
    def restorable(self) -> bool:
        """Whether this one can; if not, neither of the others is called."""
        return True

    @abstractmethod
    def get_state(self) -> Any:
        """Everything that later images and rewards depend on, counters and random generators included."""

    @abstractmethod
    def set_state(self, state: Any) -> np.ndarray:
        """Go back to `state`; returns the image there."""

    def go_to(self, state: Any) -> None:
        """`set_state` without its image."""
        self.set_state(state)

    def try_plans(self, state: Any, plans: np.ndarray) -> np.ndarray:
        """Rewards [P, H] of P sequences of H actions [P, H, A], each from `state`; NaN after an episode's end.

        The environment is at `state` afterwards. One that can step without an image overrides `go_to` and `_advance`.
        """
        rewards = np.full(plans.shape[:2], np.nan)
        for plan, row in zip(plans, rewards, strict=True):
            self.go_to(state)
            for k, action in enumerate(plan):
                row[k], over = self._advance(action)
                if over:
                    break
        self.set_state(state)
        return rewards

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        """`step` for the reward, and whether the episode is over."""
        _, reward, terminated, truncated, _ = self.step(action)
        return reward, terminated or truncated


def is_restorable(env: gymnasium.Env) -> bool:
    """Whether the state of `env` can be copied."""
    return isinstance(env, Restorable) and env.restorable


def not_restorable(name: str) -> EnvError:
    """The error of an environment whose state is asked for and cannot be copied."""
    return EnvError(
        f"{name}: its state cannot be copied and restored, which this needs: name another environment, or let yours "
        "inherit from dreamer_mpc.envs.Restorable"
    )
