"""Playing the episodes in progress again, so that a resumed run needs no state of its environments."""

from collections.abc import Sequence

import gymnasium
import numpy as np
from jaxtyping import Bool, Float, UInt8

from envs import reset_rows


def reenact(
    envs: gymnasium.vector.VectorEnv, seeds: Sequence[int], actions: Sequence[Float[np.ndarray, "_ A"]]
) -> tuple[UInt8[np.ndarray, "B H W C"], Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Play an episode in each row, from its seed, by its actions: last images, returns, and rows that ended too early.

    Rows with fewer actions begin later, so that all have played theirs when this returns; meanwhile they step idly.
    """
    rows, longest = envs.num_envs, max(map(len, actions))
    wait = longest - np.array([len(row) for row in actions])
    returns, ended = np.zeros(rows), np.zeros(rows, dtype=bool)
    image, _ = reset_rows(envs, np.ones(rows, dtype=bool), seeds)
    for step in range(longest):
        begins = wait == step
        if step and begins.any():
            image, _ = reset_rows(envs, begins, seeds)
        executed = np.zeros((rows, *envs.single_action_space.shape), dtype=np.float32)
        for row in np.flatnonzero(wait <= step):
            executed[row] = actions[row][step - wait[row]]
        image, reward, terminated, truncated, _ = envs.step(executed)
        done, playing = terminated | truncated, wait <= step
        returns[playing] += reward[playing]
        ended |= done & playing
        if done.any():  # an idle row, or one that this environment does not repeat
            reset_rows(envs, done, seeds)
    return image, returns, ended
