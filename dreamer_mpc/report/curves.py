"""Evaluation curves of runs, gathered into CSV files, and published curves for comparison."""

import csv
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dreamer_mpc.report.methods import Called, History, call
from dreamer_mpc.report.rows import without_quality
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import read_metrics
from dreamer_mpc.util.errors import UserError, cannot_write, in_one_line
from dreamer_mpc.util.files import to_csv, user_path, write_text

CURVES, FINAL = "curves.csv", "final.csv"
REFERENCE = Path(__file__).resolve().parent / "reference"  # a link to results/reference/; in a wheel, a copy
PAPER, VISION = REFERENCE / "dream_mpc_paper_dreamer_curves.csv", REFERENCE / "dmc_vision_published.csv"
GRACE = 1000  # env steps: an evaluation may come one step of all environments after the paper's last one


@dataclass(frozen=True)
class Curve:
    """Returns of one run, at T evaluations in the order of their env steps."""

    task: str
    method: str
    seed: int
    env_steps: Int[np.ndarray, " T"]
    returns: Float[np.ndarray, " T"]  # means over the episodes of an evaluation
    stds: Float[np.ndarray, " T"]  # standard deviations over those episodes
    episodes: Int[np.ndarray, " T"]

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.task}, {self.method}, seed {self.seed}"

    def called(self, name: Called) -> "Curve":
        """The same under this name."""
        return replace(self, **name._asdict())


def gather(
    specs: Sequence[str], until: int | None = None, leave_out: Callable[[str], None] = lambda reason: None
) -> list[Curve]:
    """The curves of runs. Each of `specs` is a run folder or a folder of runs; LABEL=FOLDER names the method LABEL.

    A run that is named twice counts once, and by itself with a label rather than in a folder of runs. Evaluations after
    `until` env steps are left out. So are runs without an evaluation, or with a damaged file: `leave_out` gets the
    reason. Names are those of `call`. UserError where a folder holds no run, where none is left, and where two runs
    have the same task, method and seed.
    """
    found = [(folder, label, path) for label, path in map(_label_and_path, specs) for folder in _runs(path)]
    named = {folder.resolve() for folder, label, path in found if label and folder == path}
    chosen = {
        (folder.resolve(), label): folder
        for folder, label, path in found
        if folder.resolve() not in named or (label and folder == path)
    }
    curves: dict[str, tuple[Curve, Path]] = {}
    errors: list[UserError] = []
    read: list[tuple[str, Path, History, Curve]] = []
    for (_, label), folder in chosen.items():
        try:
            read.append((label, folder, *read_run(folder, until)))
        except UserError as error:
            errors.append(error)
    names = iter(call([history for label, _, history, _ in read if not label]))  # a label tells runs apart itself
    for label, folder, _, own in read:
        curve = replace(own, method=label) if label else own.called(next(names))
        if curve.name in curves:
            raise UserError(
                f"{curves[curve.name][1]} and {folder} are both {curve.name}: leave one out, or call its method "
                f"something else by adding {shlex.quote(f'again={folder}')} to --runs"
            )
        curves[curve.name] = curve, folder
    if not curves:
        raise errors[0]
    for error in errors:
        leave_out(str(error))
    return [curve for curve, _ in curves.values()]


def _label_and_path(spec: str) -> tuple[str, Path]:
    """The parts of LABEL=FOLDER or of FOLDER. Both may have a `=`: what exists as a folder is one."""
    cuts = [("", spec)] + [(spec[:i], spec[i + 1 :]) for i, letter in enumerate(spec) if letter == "="]
    for label, path in cuts:
        if os.path.exists(os.path.expanduser(path)):
            return label, user_path(path)
    label, path = cuts[min(1, len(cuts) - 1)]
    return label, user_path(path)


def _runs(path: Path) -> list[Path]:
    one = RunFolder(path).metrics.exists()
    folders = [path] if one else sorted(file.parent for file in path.glob("*/metrics.jsonl"))
    if not folders:
        raise UserError(f"{path} is no run folder and holds none: name a folder with metrics.jsonl, or one of such")
    return folders


def read_run(folder: Path, until: int | None = None) -> tuple[History, Curve]:
    """The settings of a run, and its curve under the name that it has alone; UserError without an evaluation yet."""
    records = read_metrics(RunFolder(folder).metrics)
    records = [record for record in records if until is None or record["env_steps"] <= until]
    history, evaluations = History.read(folder, records), last_evaluations(records)
    if not evaluations:
        raise UserError(f"{folder} has no evaluation yet: leave it out, or wait for its first")
    names = ("env_steps", "eval/return_mean", "eval/return_std", "eval/episodes")
    try:
        columns = [_column(evaluations, key) for key in names]
        return history, _curve(*history.called(), *columns)
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder} has evaluations that are none ({in_one_line(error)}): leave it out") from error


def last_evaluations(records: Iterable[dict]) -> list[dict]:
    """The records with an evaluation, the last one at each env step."""
    return list({record["env_steps"]: record for record in records if "eval/return_mean" in record}.values())


def _column(rows: Iterable[dict], key: str) -> list[float]:
    return [float(row[key]) for row in rows]


def _curve(task, method, seed, env_steps, returns, stds, episodes) -> Curve:
    for name, values in (("env_steps", env_steps), ("return", returns), ("return_std", stds), ("episodes", episodes)):
        if not np.isfinite(values).all() or np.abs(values).max() > 1e15:
            raise ValueError(f"a number in {name} that is none of a run")
    if (np.diff(env_steps) <= 0).any():
        raise ValueError(f"env_steps of {task}, {method}, seed {seed} that do not rise")
    steps, count = (np.array(values).astype(np.int64) for values in (env_steps, episodes))
    return Curve(task, method, int(seed), steps, np.array(returns), np.array(stds), count)


def write_curves(folder: Path, curves: Sequence[Curve]) -> list[Path]:
    """Write curves.csv, one row per evaluation, and final.csv: each run's last one and the paper's value there."""
    rows = [row for curve in curves for row in _rows(curve)]
    last = [_rows(curve)[-1] | {"paper": published(curve.task).paper_return(curve)} for curve in curves]
    for name, content in ((CURVES, rows), (FINAL, last)):
        try:
            write_text(folder / name, to_csv(content))
        except OSError as error:
            raise cannot_write(folder / name, error, "name another folder") from error
    return [folder / CURVES, folder / FINAL]


def _rows(curve: Curve) -> list[dict]:
    columns = (curve.env_steps, curve.returns, curve.stds, curve.episodes)
    names = ("env_steps", "return", "return_std", "episodes")
    key = {"task": curve.task, "method": curve.method, "seed": curve.seed}
    return [key | dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def read_curves(path: Path) -> list[Curve]:
    """The curves that `write_curves` wrote; UserError if the file has another format."""
    runs: dict[tuple, list[dict]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, strict=True):
                runs.setdefault((row["task"], row["method"], int(row["seed"])), []).append(row)
        if not runs:
            raise ValueError("no rows")
        columns = ("env_steps", "return", "return_std", "episodes")
        return [_curve(*key, *(_column(rows, name) for name in columns)) for key, rows in runs.items()]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): write it anew with --runs") from error


@dataclass(frozen=True)
class Published:
    """Published results on one task."""

    paper: dict[str, tuple[list[int], list[float]]]
    """method -> (env steps, mean returns) of the paper's figure, digitised."""
    dreamerv3: dict[int, list[float]]
    """env steps -> returns of the seeds: means over the preceding 50k env steps of training."""

    def paper_return(self, curve: Curve) -> float | None:
        """The paper's mean return at the last env step of `curve`, interpolated; None outside of its curve."""
        steps, returns = self.paper.get(without_quality(curve.method), ([], []))
        last = curve.env_steps[-1].item()
        if not steps or not steps[0] <= last <= steps[-1] + GRACE:
            return None
        return float(np.interp(last, steps, returns))


def published(task: str) -> Published:
    """The published results on `task` in `results/reference/`, possibly none."""
    paper: dict[str, tuple[list[int], list[float]]] = {}
    for row in _rows_of(PAPER, task):
        steps, returns = paper.setdefault(row["method"], ([], []))
        steps.append(int(row["env_steps"]))
        returns.append(float(row["mean_return"]))
    marks: dict[int, list[float]] = {}
    for row in _rows_of(VISION, task):
        if row["method"] == "dreamerv3":
            marks.setdefault(int(row["env_steps"]), []).append(float(row["mean_return"]))
    return Published(paper, marks)


def _rows_of(path: Path, task: str) -> list[dict]:
    if not path.exists():  # installed without results/
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["task"] == task]
