"""What a planner's episodes add up to: one row, whatever table or file it stands in, and its names in the files.

`eval.json` and, behind `eval/`, `metrics.jsonl` spell the fields as they are; `compare.csv` spells some shorter.
"""

from typing import Any, NotRequired, TypedDict, get_type_hints


class Row(TypedDict):
    """One planner. None is what so few episodes do not tell, or what has nothing to be compared with."""

    planner: str  # with the settings that were varied
    episodes: int  # on each checkpoint
    checkpoints: int
    return_mean: float
    return_low: float | None  # 95 % interval of the mean
    return_high: float | None
    return_std: float
    failed_episodes: int | None
    iqm: float
    difference_mean: float | None  # of the same episodes under the planner less under the bare policy
    difference_low: float | None
    difference_high: float | None
    difference_p: float | None
    difference_p_holm: float | None  # corrected for all rows that are compared
    ms_per_action: float  # of one call: observe, plan, copy back, for `num_envs` environments
    actions_per_s: float
    model_evaluations: int  # an action
    num_envs: int
    device: NotRequired[str]
    torch: NotRequired[str]
    date: NotRequired[str]


EVALUATION = (
    "planner", "return_mean", "return_std", "return_low", "return_high", "failed_episodes", "ms_per_action",
    "model_evaluations", "episodes",
)  # fmt: skip
SHORTER = {"return_mean": "return", "failed_episodes": "failed", "difference_mean": "difference"}  # in compare.csv
COMPARISON = {field: SHORTER.get(field, field) for field in Row.__annotations__}
DRAWN = (
    "planner", "return_mean", "model_evaluations", "episodes", "checkpoints", "return_low", "return_high",
    "difference_mean", "difference_low", "difference_high", "difference_p_holm",
)  # fmt: skip


def to_evaluation(row: Row) -> dict[str, Any]:
    """As eval.json has it."""
    return {field: row[field] for field in EVALUATION}


def to_metrics(row: Row) -> dict[str, float]:
    """As metrics.jsonl has it, where what is not known is left out and the planner is the run's."""
    return {f"eval/{field}": row[field] for field in EVALUATION[1:] if row[field] is not None}


def to_comparison(row: Row) -> dict[str, Any]:
    """As compare.csv has it."""
    return {key: row[field] for field, key in COMPARISON.items()}


def from_comparison(cells: dict[str, str]) -> dict[str, Any]:
    """A row of compare.csv, those of its fields that are drawn. KeyError or ValueError where it is another thing."""
    hints = get_type_hints(Row)
    return {field: _parsed(cells[COMPARISON[field]], hints[field]) for field in DRAWN}


def _parsed(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if not text and kind == float | None:
        return None
    return int(text) if kind is int else float(text)
