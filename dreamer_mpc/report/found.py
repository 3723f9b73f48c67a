"""What a folder holds that can be reported: runs, comparisons, evaluations and analyses."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamer_mpc.config import Config
from dreamer_mpc.report.command import changed_presets, compare_command
from dreamer_mpc.report.comparison import comparison_title
from dreamer_mpc.report.curves import last_evaluations
from dreamer_mpc.report.methods import Called, History, call, named_apart
from dreamer_mpc.report.rows import from_comparison
from dreamer_mpc.runs.logger import read_metrics
from dreamer_mpc.util.errors import UserError

COMPARE, EVALUATION, METRICS = "compare.csv", "eval.json", "metrics.jsonl"
ANALYSIS, TABLE, PICTURE = "analysis.json", "table.csv", "analysis.png"


@dataclass(frozen=True)
class FoundComparison:
    """compare.csv, and compare.json beside it."""

    folder: Path
    rows: list[dict[str, Any]]
    made_with: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "FoundComparison":
        """UserError where a file is damaged."""
        path = folder / COMPARE
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = [from_comparison(cells) for cells in csv.DictReader(file, strict=True)]
            made_with = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
            _ = rows[0], made_with["env"], made_with["planners"].items(), made_with["checkpoints"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error) as error:
            raise UserError(f"{path} or compare.json beside it is damaged ({error}): run compare again") from error
        return cls(folder, rows, made_with)

    @property
    def env(self) -> str:
        return self.made_with["env"]

    @property
    def title(self) -> str:
        """Of its picture."""
        quality, others = self.made_with.get("render_quality"), self.made_with.get("trained_with") or {}
        trained = [others.get(sha256, quality) for sha256 in self.made_with["checkpoints"].values()]
        return comparison_title(self.env, self.rows, quality, trained)

    def command(self) -> str:
        """The command that plays the same episodes under the same planners."""
        return compare_command(self.rows, self.made_with)

    def changed_presets(self) -> list[str]:
        """Presets that have other settings in this version, which that command plays."""
        return changed_presets(self.rows, self.made_with)


@dataclass(frozen=True)
class FoundEvaluation:
    """eval.json."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "FoundEvaluation":
        """UserError where the file is damaged."""
        path = folder / EVALUATION
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            _ = record["env"], record["checkpoint"], [row["return_mean"] + 0 for row in record["results"]][0]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path} is damaged ({error}): run eval again") from error
        return cls(folder, record)


@dataclass(frozen=True)
class FoundAnalysis:
    """analysis.json, and the table and the picture beside it as far as they are there."""

    folder: Path
    what: str
    table: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> "FoundAnalysis":
        """UserError where a file is damaged."""
        path, rows = folder / ANALYSIS, []
        try:
            what = json.loads(path.read_text(encoding="utf-8"))["what"]
            if (folder / TABLE).exists():
                with (folder / TABLE).open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file, strict=True))
            if not isinstance(what, str) or any(None in row or None in row.values() for row in rows):
                raise ValueError("not what analyze wrote")
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"{path} or {TABLE} beside it is damaged ({error}): run analyze again") from error
        return cls(folder, what, rows)

    @property
    def picture(self) -> Path:
        return self.folder / PICTURE


@dataclass(frozen=True)
class FoundRun:
    """A run: its settings, its name among the others, its evaluations, and what it ran on."""

    folder: Path
    history: History
    called: Called
    evaluations: list[dict[str, Any]]
    versions: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "FoundRun":
        """UserError where a file is damaged."""
        records = read_metrics(folder / METRICS)
        history = History.read(folder, records)
        try:
            versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            versions = {}
        versions = versions if isinstance(versions, dict) else {}
        return cls(folder, history, history.called(), last_evaluations(records), versions)

    @property
    def config(self) -> Config:
        """Its settings, since a resume has changed them the last time."""
        return self.history.config


@dataclass(frozen=True)
class Found:
    """All of it, and the reasons why something is left out."""

    comparisons: list[FoundComparison]
    evaluations: list[FoundEvaluation]
    analyses: list[FoundAnalysis]
    runs: list[FoundRun]
    left_out: list[str]


def find(folders: list[Path]) -> Found:
    """What is in these folders and below. UserError where one holds nothing, or nothing can be read."""
    found, errors = Found([], [], [], [], []), []
    kinds = (COMPARE, FoundComparison, found.comparisons), (METRICS, FoundRun, found.runs)
    kinds = (*kinds, (EVALUATION, FoundEvaluation, found.evaluations), (ANALYSIS, FoundAnalysis, found.analyses))
    seen = set()
    for folder in folders:
        files = [(path, *kind) for kind in kinds for path in sorted(folder.rglob(kind[0])) if _is_one(path)]
        if not files:
            raise UserError(
                f"{folder} holds no run, comparison, evaluation or analysis: name a folder that one of them wrote"
            )
        for path, _, kind, into in files:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                into.append(kind.read(path.parent))
            except UserError as error:
                errors.append(error)
    if not (found.comparisons or found.evaluations or found.analyses or found.runs):
        raise errors[0]
    called = named_apart(call([run.history for run in found.runs]), [run.folder for run in found.runs])
    found.runs[:] = [replace(run, called=name) for run, name in zip(found.runs, called, strict=True)]
    found.left_out.extend(map(str, errors))
    return found


def _is_one(path: Path) -> bool:
    """Whether a file belongs to a run, and is none of another program's that has its name."""
    return path.name != METRICS or (path.parent / "config.yaml").exists()
