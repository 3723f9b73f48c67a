"""Playing the episodes in progress again, so that a resumed run needs no state of its environments."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from dreamer_mpc.envs import reset_rows
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.util.device import Images

MOST_REPEATS = 3


def reenact(
    envs: RowVectorEnv,
    begun: Bool[np.ndarray, " B"],
    seeds: Sequence[int],
    actions: Sequence[Float[np.ndarray, "_ A"]],
) -> tuple[Images, Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """Play the episode of each row of `begun` again from its seed and its recorded actions.

    Returns the last images, the returns, and the rows whose episode ended before the recorded actions did. A row is
    idle once its actions are played. One whose process is lost on the way is played again, up to `MOST_REPEATS` times.
    """
    image, returns, ended, lost = _play(envs, begun, seeds, actions)
    for _ in range(MOST_REPEATS):
        if not lost.any():
            break
        image, again, ended_again, lost_again = _play(envs, lost, seeds, actions)
        returns[lost], ended[lost] = again[lost], ended_again[lost]
        lost = lost_again
    return image, returns, ended


def _play(
    envs: RowVectorEnv,
    begun: Bool[np.ndarray, " B"],
    seeds: Sequence[int],
    actions: Sequence[Float[np.ndarray, "_ A"]],
) -> tuple[Images, Float[np.ndarray, " B"], Bool[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """As `reenact`, once; also the rows whose process was lost, which count as ended."""
    lengths = np.array([len(row) for row in actions])
    returns = np.zeros(envs.num_envs)
    ended, lost = np.zeros(envs.num_envs, dtype=bool), np.zeros(envs.num_envs, dtype=bool)
    image, _ = reset_rows(envs, begun, seeds)
    for step in range(lengths.max()):
        playing = begun & (step < lengths) & ~ended
        executed = np.zeros((envs.num_envs, *envs.single_action_space.shape), dtype=np.float32)
        for row in np.flatnonzero(playing):
            executed[row] = actions[row][step]
        envs.step_async(executed, playing)
        image, reward, terminated, truncated, info = envs.step_wait()
        returns += reward
        ended |= terminated | truncated
        lost |= info.get("lost", False)
    return image, returns, ended, lost
