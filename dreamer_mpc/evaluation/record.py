"""The episodes of a comparison: in memory, or in a folder, kept batch by batch."""

import contextlib
import csv
import errno
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dreamer_mpc.config import completed_settings
from dreamer_mpc.evaluation.episodes import Evaluation
from dreamer_mpc.report.words import plural
from dreamer_mpc.util.errors import UserError, cannot_write
from dreamer_mpc.util.files import from_json, to_csv, try_folder, write_text

NUMBERS = {"episode": int, "env_seed": int, "return": float, "agent_steps": int, "ms_per_action": float}
NUMBERS |= {"num_envs": int, "model_evaluations": int}
LEAST = {"episode": 0, "return": -math.inf, "agent_steps": 1, "ms_per_action": 1e-9, "num_envs": 1}
LEAST |= {"model_evaluations": 0}
AFRESH = "name another folder with --out, or start again with --overwrite"
REMOVE = f"remove it, and the episode is played again; or {AFRESH}"
EPISODE_COLUMNS = (
    "planner", "checkpoint", "episode", "env_seed", "return", "agent_steps", "ms_per_action", "num_envs",
    "model_evaluations", "device", "torch", "date",
)  # fmt: skip


class Episodes:
    """Episodes that were played, kept in memory, and the folder for the result files, which the user may have named."""

    def __init__(self, folder: Path, named: bool = False):
        self.folder, self.named = folder, named
        self.notes: list[str] = []  # for the user
        self.rows: list[dict[str, Any]] = []  # one row per episode

    def begin(self) -> None:
        """Make the folder; called after every check at the start has passed.

        UserError where a named one cannot be used. In another one, such as that of an agent of others, the episodes are
        played all the same: they are printed before the file is written.
        """
        with usable(self.folder) if self.named else contextlib.suppress(OSError):
            try_folder(self.folder)

    def of(self, label: str, checkpoint: str, most: int | None = None) -> list[dict[str, Any]]:
        """The episodes of one planner on one checkpoint, in order: those whose number is below `most`."""
        rows = [row for row in self.rows if (row["planner"], row["checkpoint"]) == (label, checkpoint)]
        rows = [row for row in rows if most is None or row["episode"] < most]
        return sorted(rows, key=lambda row: row["episode"])

    def missing(self, label: str, checkpoint: str, episodes: int) -> range:
        """The first episodes below number `episodes` that were not played, as far as they follow each other."""
        there = {row["episode"] for row in self.of(label, checkpoint)}
        first = next((number for number in range(episodes) if number not in there), episodes)
        return range(first, next((number for number in range(first, episodes) if number in there), episodes))

    def add(self, label: str, checkpoint: str, first: int, seed: int, result: Evaluation, device: str) -> None:
        """Keep a batch: the episodes from number `first`, played on environment seeds from `seed`."""
        for i, (total, length) in enumerate(zip(result.returns, result.lengths, strict=True)):
            values = (
                label, checkpoint, first + i, seed + i, float(total), length, result.ms_per_action, result.batch,
                result.model_evaluations, device, torch.__version__, datetime.now(UTC).date().isoformat(),
            )  # fmt: skip
            self.rows.append(dict(zip(EPISODE_COLUMNS, values, strict=True)))

    def write(self, name: str, text: str) -> None:
        """Write a file into the folder atomically; UserError on a disk error."""
        with usable(self.folder):
            write_text(self.folder / name, text)

    def stem(self, label: str) -> Path:
        """The common prefix of the names of a planner's files."""
        return self.folder / label.replace(" ", "-").replace("=", "-")

    def lacks_video(self, label: str) -> bool:
        """Whether a video of a planner is still to be written."""
        return True


class Record(Episodes):
    """episodes.csv has one row per episode; compare.json says which settings and checkpoints they were played with.

    So another comparison is not mixed into this one. Each episode of a planner on a checkpoint is there at most once,
    with the environment seed that follows from `seed` of compare.json: a file with any other row is refused, and an
    episode whose row is missing is played again. Before `begin` nothing is written, and with `overwrite` nothing
    removed. Checkpoints are identified by their content: `names` maps the SHA-256 of each to its name.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], checkpoints: dict[str, str], overwrite: bool = False):
        super().__init__(folder)
        self.overwrite = overwrite
        self.made_with = made_with | {"checkpoints": dict(checkpoints)}
        if not overwrite:
            with usable(folder):
                self.made_with = self._merged(made_with, checkpoints)
                self.rows = _read_rows(folder / "episodes.csv", self.made_with)
            self.notes += self._lost()
        self.names = {sha256: name for name, sha256 in self.made_with["checkpoints"].items()}

    def begin(self) -> None:
        """Write compare.json; called after every check at the start has passed."""
        if self.overwrite:
            labels = {*self.made_with["planners"], *_labels(self.folder / "compare.json")}
            files = [self.folder / name for name in ("episodes.csv", "compare.csv", "compare.png")]
            files += [path for label in labels for path in self.visuals(label)]
            with usable(self.folder):
                for path in files:
                    path.unlink(missing_ok=True)
        self.write("compare.json", json.dumps(self.made_with, indent=1) + "\n")

    def add(self, label: str, checkpoint: str, first: int, seed: int, result: Evaluation, device: str) -> None:
        """Keep a batch in memory, and append it to episodes.csv; a disk that is full now is tried again later."""
        super().add(label, checkpoint, first, seed, result, device)
        with contextlib.suppress(UserError):
            self.keep()

    def keep(self) -> None:
        """Write all episodes to episodes.csv; UserError on a disk error."""
        self.write("episodes.csv", to_csv(self.rows))

    def visuals(self, label: str) -> list[Path]:
        """Video and picture of a planner, whether they are there or not."""
        stem = self.stem(label)
        return [stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}-decision.png")]

    def lacks_video(self, label: str) -> bool:
        """Whether a video of a planner is still to be written: an existing one is not written again."""
        return self.overwrite or not self.visuals(label)[0].exists()

    def _lost(self) -> list[str]:
        """A line on episodes whose rows are missing though later ones are there."""
        played: dict[tuple[str, str], set[int]] = {}
        for row in self.rows:
            played.setdefault((row["planner"], row["checkpoint"]), set()).add(row["episode"])
        lost = [(label, min(set(range(max(there))) - there)) for (label, _), there in played.items() if _gaps(there)]
        if not lost:
            return []
        count = sum(_gaps(there) for there in played.values())
        return [
            f"{self.folder / 'episodes.csv'} lacks {plural(count, 'episode')}, the first of them episode {lost[0][1]} "
            f"of {lost[0][0]}: what is asked for is played again from its seed"
        ]

    def _merged(self, new: dict[str, Any], checkpoints: dict[str, str]) -> dict[str, Any]:
        """The content of compare.json merged with this comparison's; UserError where they contradict each other."""
        path = self.folder / "compare.json"
        old = read_made_with(path)
        if old is None:
            if (self.folder / "episodes.csv").exists():
                raise damaged(path)  # the settings of these episodes are unknown
            return new | {"checkpoints": dict(checkpoints)}
        known = {sha256: name for name, sha256 in old["checkpoints"].items()}
        new = new | {"checkpoints": {known.get(sha256, name): sha256 for name, sha256 in checkpoints.items()}}
        old["planners"] = {name: completed_settings(settings) for name, settings in old["planners"].items()}
        old |= {key: {} for key, value in new.items() if isinstance(value, dict) and key not in old}
        new["planners"] = {name: completed_settings(settings) for name, settings in new["planners"].items()}
        if old.get("device") != new.get("device") and _hardware(old.get("device")) == _hardware(new.get("device")):
            self.notes.append(
                f"the episodes that are there were played by {old['device']}, the others now by {new['device']}: "
                "sums of several threads differ in their last digits, so that returns may too"
            )
            new["device"] = old["device"]  # episodes.csv has the one of each episode
        return merged(self.folder, "comparison", old, new)


def merged(folder: Path, noun: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Settings of a folder, `old`, with those of a call, `new`; groups are united. UserError on a contradiction."""
    for key, value in new.items():
        entries = value if isinstance(value, dict) else {}
        changed = [
            f"{key} {name}{difference(old[key][name], entries[name])}"
            for name in entries
            if old[key].get(name, entries[name]) != entries[name]
        ]
        if not isinstance(value, dict) and old.get(key) != value:
            changed = [f"{key} ({old.get(key)})"]
        if changed:
            raise UserError(f"{folder} holds another {noun}, with other {changed[0]}: {AFRESH}")
    return old | {key: old[key] | value if isinstance(value, dict) else value for key, value in new.items()}


def _hardware(device: Any) -> Any:
    """The name of a device without the threads of a CPU, which change from start to start."""
    return re.sub(r", \d+ threads?$", "", device) if isinstance(device, str) else device


def _gaps(there: set[int]) -> int:
    """How many numbers below the largest of `there` are not in it."""
    return max(there) + 1 - len(there)


def _read_rows(path: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    """The episodes in a file, if it exists; UserError, which names the line, where they are not those of `made_with`.

    Each is there once, with the seed of its number, and its numbers are finite.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines: dict[tuple[str, str, int], int] = {}  # where each episode is
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            if set(EPISODE_COLUMNS) - set(reader.fieldnames or EPISODE_COLUMNS):
                raise damaged(path)
            for cells in reader:
                if None in cells or None in cells.values():
                    raise ValueError("more or fewer cells than columns")
                row = {key: NUMBERS.get(key, str)(cells[key]) for key in EPISODE_COLUMNS}
                episode = row["planner"], row["checkpoint"], row["episode"]
                if episode in lines:
                    repeated = f"repeats line {lines[episode]}: remove one of them; or {AFRESH}"
                    raise UserError(f"{path}, line {reader.line_num} {repeated}")
                if wrong := _misfit(row, made_with):
                    raise UserError(f"{path}, line {reader.line_num} {wrong}: {REMOVE}")
                lines[episode] = reader.line_num
                rows.append(row)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num} is damaged: {REMOVE}") from error
    return rows


def _misfit(row: dict[str, Any], made_with: dict[str, Any]) -> str:
    """What is wrong with an episode, in words; "" if nothing is."""
    for key, least in LEAST.items():
        if not (math.isfinite(row[key]) and row[key] >= least):
            return f"has {key} {row[key]}, which no episode has"
    seed = made_with["seed"] + row["episode"]
    if row["env_seed"] != seed:
        return f"has env_seed {row['env_seed']} for episode {row['episode']}, whose seed is {seed}"
    for group in ("planners", "checkpoints"):
        name = row[group.removesuffix("s")]
        if name not in made_with[group]:
            return f"is of {name[:80]!r}, which compare.json does not name"
    return ""


def read_made_with(path: Path, groups: tuple[str, ...] = ("checkpoints", "planners")) -> dict[str, Any] | None:
    """The content of compare.json, None if it does not exist; UserError if it lacks one of `groups` or is not valid."""
    try:
        made_with = from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(path) from error
    found = [made_with.get(key) for key in groups] if isinstance(made_with, dict) else [None]
    if not all(isinstance(group, dict) for group in found):
        raise damaged(path)
    return made_with


def difference(old: Any, new: Any) -> str:
    """The first setting in which two planners differ, in words; empty for entries without settings."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    key = next(key for key in {**new, **old} if old.get(key) != new.get(key))
    return f" ({key} {old.get(key)} -> {new.get(key)})"


def _labels(path: Path) -> list[str]:
    """The planners that compare.json names; none where it cannot be read."""
    try:
        return list((read_made_with(path) or {"planners": {}})["planners"])
    except UserError:
        return []


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system on reading or writing in `folder` into a UserError."""
    try:
        yield
    except OSError as error:
        in_the_way = (error.filename2 or error.filename) if error.errno == errno.EISDIR else None
        raise cannot_write(in_the_way or f"to {folder}", error, "name another folder with --out") from error


def damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged or missing: {AFRESH}")
