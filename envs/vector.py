"""Several environments in spawned worker processes, each with its own environment and OpenGL context."""

import functools
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.gl import prepare_gl
from dreamer_mpc.envs.make import make_env
from dreamer_mpc.envs.names import is_task
from dreamer_mpc.envs.rows import LocalVectorEnv, RowVectorEnv
from dreamer_mpc.envs.workers import WorkerVectorEnv


def make_vector_env(
    name: str, num_envs: int, *, workers: bool | None = None, **settings: Any
) -> RowVectorEnv:
    """`num_envs` times `make_env(name, **settings)`: a single one in this process, several in one worker process each.

    `workers` overrides that. `step_async(actions)` [B, A] starts a step in all workers, and `step_wait()` ends it.
    Nothing resets by itself: call `reset_rows` for the rows whose episode ended, before their next step. Observations
    are uint8 [B, H, W, 3] and copies; `infos["env_steps"]` is int [B]. Infos may have `simulator_error` (see `DMCEnv`)
    and `lost` (see `WorkerVectorEnv`), bool [B]. Raises `EnvError`, here and at any call.
    """
    if num_envs < 1:
        raise EnvError(f"num_envs must be 1 or more, got {num_envs}")
    factory = functools.partial(make_env, name, **settings)
    if workers if workers is not None else num_envs > 1:
        prepare_gl(name)  # once in this process; workers inherit it
        return WorkerVectorEnv(name, factory, num_envs)
    return LocalVectorEnv(name, factory, num_envs)


def try_env(name: str, num_envs: int, frames: int = 2, episodes: int = 1, **settings: Any) -> int | None:
    """Make one of `num_envs` such environments in a process of the same kind, play in it at random, and close it.

    An error in it is then an `EnvError` before anything else is done, such as making a folder. It plays until an
    episode has `frames` frames, at most `episodes` episodes, and returns the frames of the longest. An environment of
    dm_control is only made, not stepped, because its code is known to work and its episodes are long: then None.
    """
    if is_task(name):
        make_env(name, **settings).close()
        return None
    envs = make_vector_env(name, 1, workers=num_envs > 1, **settings)
    try:
        return _longest(name, envs, frames, episodes)
    finally:
        envs.close()


def _longest(name: str, envs: RowVectorEnv, frames: int, episodes: int) -> int:
    """The frames of the longest of `episodes` episodes with random actions; at most `frames`, which end the search.

    EnvError where its process dies in its first step. One that dies later counts as long enough, as it is not known how
    long it would have been.
    """
    rng, longest, episode = np.random.default_rng(0), 0, 0
    while episode < episodes and longest < frames:
        envs.reset(seed=episode)
        length, over = 1, False
        while not over and length < frames:
            action = rng.uniform(-1, 1, (1, *envs.single_action_space.shape)).astype(np.float32)
            _, _, terminated, truncated, info = envs.step(action)
            if "lost" in info and length == 1:
                raise EnvError(f"{name}: its process died in its first step ({info['death'][0]}): mend the environment")
            if "lost" in info:
                return frames
            length, over = length + 1, bool(terminated[0] or truncated[0])
        longest, episode = max(longest, length), episode + 1
    return longest


def reset_rows(
    envs: gymnasium.vector.VectorEnv, mask: np.ndarray, seeds: Sequence[int | None] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Reset the rows of `mask`, bool [B], with B `seeds` (None, all or one: the random stream continues).

    Returns observations [B, H, W, 3] and infos. The other rows keep their images, which are black before their first
    reset, and have zeros in infos.
    """
    mask = np.asarray(mask, dtype=bool)
    if seeds is not None:
        seeds = [None if seed is None else int(seed) for seed in seeds]
    return envs.reset(seed=seeds, options={"reset_mask": mask})
