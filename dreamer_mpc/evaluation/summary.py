"""The summary row of a planner's episodes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dreamer_mpc.report.rows import Row
from dreamer_mpc.util.intervals import count_failed, iqm, mean_interval, p_value

Scores = Float[np.ndarray, "E C"]  # returns of E episodes on each of C checkpoints


def summarise_scores(
    planner: str,
    scores: Scores,
    baseline: Scores | None,
    ms_per_action: Sequence[float],
    num_envs: Sequence[int],
    model_evaluations: int,
) -> Row:
    """Statistics of returns, of their paired differences to `baseline`, and the cost.

    Milliseconds and environments are those of each episode. The correction over all rows is left to the caller.
    """
    # Episode e has the same environment seed under every planner.
    differences = None if baseline is None else scores - baseline
    low, high = mean_interval(scores) or (None, None)
    difference_low, difference_high = (None if differences is None else mean_interval(differences)) or (None, None)
    return Row(
        planner=planner,
        episodes=scores.shape[0],
        checkpoints=scores.shape[1],
        return_mean=float(scores.mean()),
        return_low=low,
        return_high=high,
        return_std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        failed_episodes=count_failed(scores),
        iqm=iqm(scores),
        difference_mean=None if differences is None else float(differences.mean()),
        difference_low=difference_low,
        difference_high=difference_high,
        difference_p=None if differences is None else p_value(differences),
        difference_p_holm=None,
        ms_per_action=float(np.median(ms_per_action)),
        actions_per_s=float(np.median([1e3 * n / ms for n, ms in zip(num_envs, ms_per_action, strict=True)])),
        model_evaluations=model_evaluations,
        num_envs=max(num_envs),
    )
