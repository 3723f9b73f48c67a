"""The summary row of a planner's episodes, for every table and file, and its field names in the files.

`eval.json` and `metrics.jsonl` (prefix `eval/`) use the field names unchanged; `compare.csv` shortens some.
"""

import math
from typing import Any, NotRequired, TypedDict, get_type_hints

from dreamer_mpc.envs.scene import WARP


class Row(TypedDict):
    """One planner. None: there are too few episodes for this value, or there is no planner to compare with."""

    planner: str  # name, with the settings that a sweep varies
    episodes: int  # on each checkpoint
    checkpoints: int
    return_mean: float
    return_low: float | None  # 95 % interval of the mean
    return_high: float | None
    return_std: float
    failed_episodes: int | None
    iqm: float
    difference_mean: float | None  # return under the planner minus return under the bare policy, paired by episode
    difference_low: float | None
    difference_high: float | None
    difference_p: float | None
    difference_p_holm: float | None  # Holm-corrected over all compared rows
    ms_per_action: float  # of one call: observe, plan, copy back, for `num_envs` environments
    actions_per_s: float
    model_evaluations: int  # per action
    num_envs: int
    device: NotRequired[str]
    torch: NotRequired[str]
    date: NotRequired[str]


def decided(row: Row) -> bool:
    """Whether a row differs from the bare policy, at 5 % after the correction over all rows."""
    return row["difference_p_holm"] is not None and row["difference_p_holm"] <= 0.05


EVALUATION = (
    "planner", "return_mean", "return_std", "return_low", "return_high", "failed_episodes", "ms_per_action",
    "model_evaluations", "episodes",
)  # fmt: skip
SHORTER = {"return_mean": "return", "failed_episodes": "failed", "difference_mean": "difference"}  # in compare.csv
COMPARISON = {field: SHORTER.get(field, field) for field in Row.__annotations__}
DRAWN = (
    "planner", "return_mean", "model_evaluations", "episodes", "checkpoints", "return_low", "return_high",
    "difference_mean", "difference_low", "difference_high", "difference_p_holm", "ms_per_action", "num_envs", "device",
)  # fmt: skip


def to_evaluation(row: Row) -> dict[str, Any]:
    """The row for eval.json."""
    return {field: row[field] for field in EVALUATION}


def to_metrics(row: Row) -> dict[str, float]:
    """The row for metrics.jsonl, without unknown values and without the planner's name, which is the run's."""
    return {f"eval/{field}": row[field] for field in EVALUATION[1:] if row[field] is not None}


def to_comparison(row: Row) -> dict[str, Any]:
    """The row for compare.csv."""
    return {key: row[field] for field, key in COMPARISON.items()}


def from_comparison(cells: dict[str, str]) -> dict[str, Any]:
    """The fields of a row of compare.csv that are drawn. KeyError or ValueError if the format is another one."""
    hints = get_type_hints(Row)
    row = {field: _parsed(cells[COMPARISON[field]], hints[field]) for field in DRAWN}
    return row | {"device": device_now(row["device"])}


def device_now(name: str) -> str:
    """A device of a file of results, by the name that it has now: older files have `1 threads`."""
    return "CPU, 1 thread" if name == "CPU, 1 threads" else name


def _parsed(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if not text and kind == float | None:
        return None
    value = int(text) if kind is int else float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no result")
    return value


DRAWN_WITH = ", drawn with "


def drawn_by(quality: str | None, *trained: str) -> str:
    """The end of a title of episodes with this render quality, of agents `trained` with those; mostly empty.

    Pictures by warp are a world of their own, so that every title names them. Of other qualities it says where an
    agent plays in one that it was not trained in, as that may cost it some of its return.
    """
    others = sorted({own for own in trained if own != quality})
    if quality != WARP and not others:
        return ""
    drawn = ", drawn by warp" if quality == WARP else f"{DRAWN_WITH}{quality}"
    some = "some " if quality in trained else ""
    return drawn + (f" ({some}trained with {', '.join(others)})" if others else "")


def without_quality(name: str) -> str:
    """`name` without an end from `drawn_by`, unless it names warp, whose pictures are a world of their own."""
    return name.partition(DRAWN_WITH)[0]
