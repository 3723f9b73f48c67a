"""Means of measurements over the episodes of several checkpoints, with the project's intervals."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dreamer_mpc.analysis.ledger import Measured
from dreamer_mpc.util.intervals import strata_interval

ALL = "all"  # the scope of lines over all checkpoints


class Estimate(NamedTuple):
    """A mean and its 95 % interval; None with too few episodes."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        digits = 0 if abs(self.mean) >= 100 else 1 if abs(self.mean) >= 10 else 2 if abs(self.mean) >= 0.1 else 3
        if self.low is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def per_episode(rows: Iterable[Measured], quantity: str) -> list[Float[np.ndarray, " _"]]:
    """The mean of `quantity` in each episode, for each checkpoint. Rows without the quantity do not count."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        value = row[quantity]
        if value is not None and np.isfinite(value):
            found.setdefault(row["checkpoint"], {}).setdefault(row["episode"], []).append(value)
    return [np.array([np.mean(episodes[n]) for n in sorted(episodes)]) for episodes in found.values()]


def estimate(rows: Iterable[Measured], quantity: str) -> Estimate | None:
    """Mean over checkpoints of the means over episodes, with Student's t; None without any measurement."""
    strata = per_episode(rows, quantity)
    if not strata:
        return None
    low, high = strata_interval(strata) or (None, None)
    return Estimate(float(np.mean([stratum.mean() for stratum in strata])), low, high)


def grouped(rows: Sequence[Measured], *keys: str) -> dict[tuple[Any, ...], list[Measured]]:
    """The rows of each combination of `keys`, in the order in which these appear."""
    found: dict[tuple[Any, ...], list[Measured]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def scoped(rows: Sequence[Measured]) -> list[Measured]:
    """The rows in the scope `ALL`, then each in that of its checkpoint, for a summary of both."""
    return [row | {"scope": ALL} for row in rows] + [row | {"scope": row["checkpoint"]} for row in rows]


def summarised(
    rows: Sequence[Measured], keys: tuple[str, ...], quantities: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each combination of `keys`: its mean of every quantity, with `_low` and `_high`, and the counts."""
    summary = []
    for values, own in grouped(rows, *keys).items():
        line = dict(zip(keys, values, strict=True))
        for quantity in quantities:
            mean, low, high = estimate(own, quantity) or (None, None, None)
            line |= {quantity: mean, f"{quantity}_low": low, f"{quantity}_high": high}
        checkpoints = {row["checkpoint"] for row in own}
        line |= {"episodes": len({row["episode"] for row in own}), "checkpoints": len(checkpoints)}
        summary.append(line)
    return summary


def of_line(line: dict[str, Any], quantity: str) -> Estimate | None:
    """The estimate that a row of `summarised` holds."""
    if line[quantity] is None:
        return None
    return Estimate(line[quantity], line[f"{quantity}_low"], line[f"{quantity}_high"])
