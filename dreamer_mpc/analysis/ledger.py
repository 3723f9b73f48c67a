"""The measurements of an analysis in its folder, kept unit by unit; several processes may add to one folder."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dreamer_mpc.evaluation.record import AFRESH, damaged, merged, read_made_with, usable
from dreamer_mpc.report.words import plural
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import to_csv, try_folder, write_text
from dreamer_mpc.util.owner import in_turn

Measured = dict[str, Any]  # one row of rows.csv
ROWS, MADE_WITH = "rows.csv", "analysis.json"
TEXT = ("checkpoint", "task", "group", "part", "method", "model", "planner")  # columns that are no numbers


class Ledger:
    """rows.csv has the measurements; analysis.json the settings, and for each unit that is done where and when it was.

    `unit` of a row is the unit's number in analysis.json. Units that it does not name do not count: rows.csv is written
    first. Nor do units of which rows are missing, and those that follow them: `notes` names them, and they are measured
    again. A unit with more rows than it had is refused. Checkpoints are identified by their content: `names` maps the
    SHA-256 of each to its name. Before `begin` nothing is written. `folder` is absolute (`output_path`).
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], checkpoints: dict[str, str], overwrite: bool = False):
        self.folder, self.overwrite = folder, overwrite
        self._own = json.loads(json.dumps(made_with))
        self._checkpoints = checkpoints
        self.rows: list[Measured] = []
        self.done: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []  # for the user
        if overwrite:
            self.made_with = self._own | {"checkpoints": dict(checkpoints)}
        else:
            with usable(folder):
                self._read()
        self.names = {sha256: name for name, sha256 in self.made_with["checkpoints"].items()}

    def begin(self) -> None:
        """Make the folder; called after every check at the start has passed."""
        try:
            try_folder(self.folder)
        except OSError as error:
            raise cannot_write(f"to {self.folder}", error, "name another folder with --out") from error
        with usable(self.folder), in_turn(self.folder):
            if self.overwrite:
                for name in (ROWS, MADE_WITH):
                    (self.folder / name).unlink(missing_ok=True)
            self._read()
            self._write()

    def of(self, unit: str) -> list[Measured]:
        """The measurements of one unit, if it is done."""
        number = self.done[unit]["number"] if unit in self.done else None
        return [row for row in self.rows if row["unit"] == number]

    def add(self, unit: str, rows: list[Measured], device: str, **about: Any) -> None:
        """Keep a unit, beside what other processes have added since; `about` is recorded with it."""
        done = {"device": device, "torch": torch.__version__, "date": datetime.now(UTC).date().isoformat(), **about}
        with usable(self.folder), in_turn(self.folder):
            self._read()
            number = max((each["number"] for each in self.done.values()), default=0) + 1
            self.rows += [{"unit": number} | row for row in rows]
            self.done[unit] = {"number": number, "rows": len(rows)} | done
            self._write()

    def write(self, name: str, text: str) -> None:
        """Write a file into the folder atomically; UserError on a disk error."""
        with usable(self.folder):
            write_text(self.folder / name, text)

    def _read(self) -> None:
        """What the folder holds, with this call's settings; UserError where they contradict each other."""
        path, new = self.folder / MADE_WITH, self._own | {"checkpoints": dict(self._checkpoints)}
        old = read_made_with(path, ("checkpoints", "units"))
        if old is None:
            if (self.folder / ROWS).exists():
                raise damaged(path)  # the settings of these rows are unknown
            self.made_with, self.rows, self.done = new, [], {}
            return
        known = {sha256: name for name, sha256 in old["checkpoints"].items()}
        new["checkpoints"] = {known.get(sha256, name): sha256 for name, sha256 in self._checkpoints.items()}
        self.done = old.pop("units") if (self.folder / ROWS).exists() else {}
        old.pop("units", None)
        if any(isinstance(value, dict) and not isinstance(old.get(key), dict) for key, value in new.items()):
            raise damaged(path)
        self.made_with = merged(self.folder, "analysis", old, new)
        try:
            units = {each["number"]: unit for unit, each in self.done.items()}
            rows: dict[str, list[tuple[int, Measured]]] = {unit: [] for unit in self.done}
            for line, row in _read_rows(self.folder / ROWS):
                if row["unit"] in units:
                    rows[units[row["unit"]]].append((line, row))
            for unit, own in rows.items():
                self._check(unit, own)
        except (TypeError, KeyError, ValueError) as error:
            raise damaged(path) from error
        counted = [numbered for unit in self.done for numbered in rows[unit]]
        self.rows = [row for _, row in sorted(counted, key=lambda numbered: numbered[0])]

    def _check(self, unit: str, rows: list[tuple[int, Measured]]) -> None:
        """UserError where a unit has a row too many; where rows are missing, it and the later ones are not `done`.

        Units of before the number of rows was recorded are taken as they are.
        """
        if unit not in self.done:  # left out with an earlier one
            return
        wanted = self.done[unit].get("rows", len(rows))
        if len(rows) > wanted:
            only = [row for _, row in rows]
            line = next((line for i, (line, row) in enumerate(rows) if row in only[:i]), rows[-1][0])
            raise UserError(
                f"{self.folder / ROWS}, line {line} is one row too many of {unit}, which had {wanted}: remove it; "
                f"or {AFRESH}"
            )
        if len(rows) < wanted:
            note = f"{self.folder / ROWS} lacks {plural(wanted - len(rows), 'row')} of {unit}: it is measured again"
            self.notes += [note] if note not in self.notes else []
            self._forget(unit)

    def _forget(self, unit: str) -> None:
        """Leave a unit and the later ones of its part out of `done`."""
        part, _, first = unit.rpartition(": ")
        for other in list(self.done):
            same, _, number = other.rpartition(": ")
            if same == part and int(number) >= int(first):
                del self.done[other]

    def _write(self) -> None:
        if self.rows:
            empty = dict.fromkeys(key for row in self.rows for key in row)  # older rows may lack a column
            write_text(self.folder / ROWS, to_csv(empty | _rounded(row) for row in self.rows))
        write_text(self.folder / MADE_WITH, json.dumps(self.made_with | {"units": self.done}, indent=1) + "\n")


def _rounded(row: Measured) -> Measured:
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def _read_rows(path: Path) -> list[tuple[int, Measured]]:
    """The measurements in a file, if it exists, with the line of each; UserError if its content is not valid."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [(reader.line_num, row) for row in reader]
        parsed = [(line, {key: _parsed(key, text) for key, text in row.items()}) for line, row in rows if row["unit"]]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise damaged(path) from error
    return parsed


def _parsed(key: str, text: str) -> Any:
    if key in TEXT:
        return text
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
