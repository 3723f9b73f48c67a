"""The episodes of a comparison in a folder, kept as they end."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dreamer_mpc.errors import UserError
from dreamer_mpc.evaluate import Evaluation
from dreamer_mpc.run_folder import write_text

EPISODE_COLUMNS = (
    "planner", "checkpoint", "episode", "env_seed", "return", "agent_steps", "ms_per_action", "num_envs",
    "model_evaluations", "device", "torch", "date",
)  # fmt: skip



class Record:
    """The episodes of a comparison, in a folder: every batch is there as soon as it has ended.

    episodes.csv has a row an episode; compare.json says what they were made with, so that another comparison is not
    mixed into this one.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], overwrite: bool = False):
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                made_with = self._merge(made_with)
                self.rows = _read_rows(folder / "episodes.csv")
            self.write("compare.json", json.dumps(made_with, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): name another folder with --out") from error

    def _merge(self, new: dict[str, Any]) -> dict[str, Any]:
        """What is there and what comes, together; UserError where they contradict each other."""
        path = self.folder / "compare.json"
        try:
            old = json.loads(path.read_text())
        except FileNotFoundError:
            return new
        except ValueError as error:
            raise _damaged(path) from error
        merged = dict(old)
        for key, value in new.items():
            if isinstance(value, dict):
                there = old.get(key, {})
                changed = [f"{key} {name}" for name in value if name in there and there[name] != value[name]]
                merged[key] = there | value
            else:
                changed = [f"{key} {old.get(key)}"] if old.get(key) != value else []
            if changed:
                raise UserError(
                    f"{self.folder} holds another comparison, with other {changed[0]}: "
                    "name another folder with --out, or start again with --overwrite"
                )
        return merged

    def of(self, label: str, checkpoint: Path) -> list[dict[str, Any]]:
        """The episodes of one planner on one checkpoint, in order."""
        rows = [row for row in self.rows if (row["planner"], row["checkpoint"]) == (label, str(checkpoint))]
        return sorted(rows, key=lambda row: row["episode"])

    def add(self, label: str, checkpoint: Path, first: int, seed: int, result: Evaluation, device: str) -> None:
        """Keep a batch: episodes `first` and on, played on environment seeds from `seed` on."""
        for i, (total, length) in enumerate(zip(result.returns, result.lengths, strict=True)):
            values = (
                label, str(checkpoint), first + i, seed + i, float(total), length, result.ms_per_action, result.batch,
                result.model_evaluations, device, torch.__version__, datetime.now(UTC).date().isoformat(),
            )  # fmt: skip
            self.rows.append(dict(zip(EPISODE_COLUMNS, values, strict=True)))
        self.write("episodes.csv", to_csv(self.rows))

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all."""
        write_text(self.folder / name, text)


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of one shape as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The episodes in a file, if there is one; UserError where it is something else."""
    if not path.exists():
        return []
    numbers = {"episode": int, "env_seed": int, "return": float, "agent_steps": int, "ms_per_action": float}
    numbers |= {"num_envs": int, "model_evaluations": int}
    try:
        with path.open(newline="") as file:
            return [
                {key: numbers.get(key, str)(row[key]) for key in EPISODE_COLUMNS}
                for row in csv.DictReader(file, strict=True)
            ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged: name another folder with --out, or start again with --overwrite")
