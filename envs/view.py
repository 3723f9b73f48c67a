"""What a viewer of an environment is shown: frames at full size, its speed, and the names of its actions."""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer_mpc.envs.errors import EnvError


class Facts(NamedTuple):
    """Of an environment, for a viewer."""

    steps_per_s: float | None  # agent steps in a second of the simulator's time; None: not known
    actions: tuple[str, ...]  # a name for each dimension of the action


UNKNOWN = Facts(None, ())


def view_of(env: gymnasium.Env) -> np.ndarray | None:
    """The present frame of `env.render()`, uint8 [height, width, 3]; None where it has none or fails."""
    try:
        frame = env.render()
    except EnvError:
        return None
    fits = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    return np.ascontiguousarray(frame) if fits and frame.size else None


def facts_of(env: gymnasium.Env) -> Facts:
    """Speed and names of an environment of `make_env`; those of a custom one as far as it declares them."""
    names = tuple(getattr(env, "action_names", ()))
    count = env.action_space.shape[0]
    names = names if len(names) == count else ("",) * count
    return Facts(getattr(env, "steps_per_s", None), tuple(name or f"action {i}" for i, name in enumerate(names)))


def declared_speed(env: Any, action_repeat: int) -> float | None:
    """Agent steps in a second by `metadata["render_fps"]` of a custom environment; None without a number there."""
    metadata = getattr(env, "metadata", None)
    fps = metadata.get("render_fps") if isinstance(metadata, dict) else None
    known = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
    return fps / action_repeat if known else None


def declared_names(env: Any) -> tuple[str, ...]:
    """Names of the actions by the attribute `action_names` of a custom environment; none without such."""
    names = getattr(env, "action_names", None)
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(name[:40] for name in names)
