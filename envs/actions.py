"""Actions of all environments: scaling to the simulator's bounds, and action repeat."""

from collections.abc import Callable
from typing import Any

import numpy as np

StepResult = tuple[Any, float, bool, bool, dict[str, Any]]


def to_bounds(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Clip `action` [A] to [-1, 1] and map it to [low, high], with their dtype; ValueError if not finite.

    It is never outside of the bounds, which scaling and conversion, as both round, could leave by the last digit.
    """
    action = np.asarray(action, dtype=np.float64)
    if action.shape != low.shape:
        raise ValueError(f"an action must have shape {low.shape}, got {action.shape}")
    if not np.isfinite(action).all():
        raise ValueError(f"an action must be finite, got {action}")
    least, most = low.astype(np.float64), high.astype(np.float64)
    scaled = least + (np.clip(action, -1.0, 1.0) + 1.0) / 2.0 * (most - least)
    return np.clip(scaled.astype(low.dtype), low, high)


def repeat_action(step: Callable[[np.ndarray], StepResult], action: np.ndarray, times: int) -> StepResult:
    """Call `step(action)` up to `times` times or until the episode ends; gives the last result with summed rewards.

    `info["env_steps"]` is the number of calls made.
    """
    total, count = 0.0, 0
    while count < times:
        count += 1
        observation, reward, terminated, truncated, info = step(action)
        total += float(reward)
        if terminated or truncated:
            break
    return observation, total, bool(terminated), bool(truncated), {**info, "env_steps": count}
