"""What an environment takes and gives, in words."""

import gymnasium
import numpy as np

from dreamer_mpc.envs.dmc import DMCEnv, camera_names


def describe(env: gymnasium.Env) -> dict[str, str]:
    """Name and value of what a user may want to know of an environment of `make_env`."""
    task = env.unwrapped if isinstance(env.unwrapped, DMCEnv) else None
    inner = env if task else env.env  # below our wrapper, with the environment's own spaces
    low, high = task.action_bounds if task else (inner.action_space.low, inner.action_space.high)
    found = {"actions": f"{len(low)}, {_bounds(low, high)} (given in [-1, 1])"}
    if task:
        found["longest episode"] = f"{task.max_env_steps} env steps"
    elif env.spec is not None and env.spec.max_episode_steps:
        found["longest episode"] = f"{env.spec.max_episode_steps} env steps"
    model = task.model if task else getattr(env.unwrapped, "model", None)
    if hasattr(model, "ncam"):
        names = camera_names(model)
        found["cameras"] = ", ".join(f"{i} {name}".strip() for i, name in enumerate(names)) or "-1 (free) alone"
    else:
        height, width, _ = inner.observation_space.shape
        found["images"] = f"{height}x{width}, resized to --image-size"
    return found


def _bounds(low: np.ndarray, high: np.ndarray) -> str:
    """`each in [-1, 1]`, or the bounds of every one."""
    pairs = [f"[{a:.4g}, {b:.4g}]" for a, b in zip(low, high, strict=True)]
    return f"each in {pairs[0]}" if len(set(pairs)) == 1 else f"in {' '.join(pairs)}"
