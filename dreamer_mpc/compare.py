"""Checkpoints of one task under many planners: episodes that are kept as they end, and what they add up to."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float

from dreamer_mpc.agent import Dreamer
from dreamer_mpc.checkpoint import find_checkpoint, load_checkpoint
from dreamer_mpc.config import (
    CompareConfig,
    Config,
    check_runs,
    config_from_dict,
    missing_parts,
    planner_from,
    planner_names,
    with_setting,
)
from dreamer_mpc.device import choose_device, device_name
from dreamer_mpc.errors import UserError
from dreamer_mpc.evaluate import Evaluation, evaluate
from dreamer_mpc.planners import PLANNERS, Planner
from dreamer_mpc.progress import ComparisonProgress
from dreamer_mpc.run_folder import write_text
from dreamer_mpc.statistics import bootstrap_interval, iqm, mean, probability_of_improvement
from dreamer_mpc.train import load_agent, make_envs, side_by_side_envs, write_visuals
from dreamer_mpc.video import comparison_picture

BASELINE = "policy"
VIDEO_STEPS = 250
EPISODE_COLUMNS = (
    "planner", "checkpoint", "episode", "env_seed", "return", "agent_steps", "ms_per_action", "num_envs",
    "model_evaluations", "device", "torch", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A trained agent to evaluate: a checkpoint, and the configuration it was trained with."""

    path: Path
    payload: dict[str, Any]
    trained: Config

    @classmethod
    def load(cls, path: str | Path) -> "Subject":
        """From a checkpoint file or run folder; UserError where there is none."""
        path = find_checkpoint(path)
        payload = load_checkpoint(path)
        return cls(path, payload, config_from_dict(payload["config"], str(path)))

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def task(self) -> dict[str, Any]:
        """What makes returns comparable."""
        return {key: getattr(self.trained, key) for key in ("env", "action_repeat", "camera", "max_env_steps")}


def same_task(subjects: list[Subject]) -> None:
    """UserError unless all were trained on one task."""
    first = subjects[0]
    for other in subjects[1:]:
        for key, value in first.task().items():
            if other.task()[key] != value:
                raise UserError(
                    f"checkpoints of different tasks: {first.path} was trained with {key} {value}, {other.path} with "
                    f"{key} {other.task()[key]}; compare one task at a time"
                )


def contestants(config: CompareConfig, subjects: list[Subject]) -> dict[str, Planner]:
    """label -> planner, of --planners and --sweep; UserError on a wrong name, key or value, or a missing actor."""
    named = config.planners not in (None, "all")
    if named:
        wanted = planner_names(config.planners)
    else:
        wanted = [BASELINE] if config.sweep and config.planners is None else list(PLANNERS)
    planners = {name: planner_from(config, name) for name in wanted}
    if not named:  # not asked for by name: those that every checkpoint can run
        lacking = {n for n, planner in planners.items() for s in subjects if missing_parts(planner, s.trained)}
        planners = {name: planner for name, planner in planners.items() if name not in lacking}
    for sweep in config.sweep:
        planners |= swept(config, sweep)
    for label, planner in planners.items():
        for subject in subjects:
            check_runs(label, planner, subject.trained, f"{subject.path} holds")
    return planners


def swept(config: CompareConfig, sweep: str) -> dict[str, Planner]:
    """label -> planner for each value of `planner.setting=value,value`; UserError where it is something else."""
    key, _, values = sweep.partition("=")
    name, _, setting = key.strip().partition(".")
    texts = [value.strip() for value in values.split(",") if value.strip()]
    if not setting or not texts:
        raise UserError(f"--sweep {sweep!r} is not planner.setting=value,value: e.g. dream-mpc.iterations=1,2,5,10")
    planner = planner_from(config, name)
    return {f"{name} {setting}={text}": with_setting(planner, name, setting, text) for text in texts}


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


def play(
    config: CompareConfig,
    subject: Subject,
    agent: Dreamer,
    envs: gymnasium.vector.VectorEnv,
    planners: dict[str, Planner],
    record: Record,
    progress: ComparisonProgress,
    video: bool,
) -> Iterator[Path]:
    """Play what is missing of every planner's episodes on one checkpoint; yields the videos that were written.

    Episodes are played in batches of the environments side by side, each batch from a seed of its own: a comparison
    that was interrupted gives the same returns as one that was not.
    """
    device = device_name(agent.device)
    for label, planner in planners.items():
        stem = record.folder / label.replace(" ", "-").replace("=", "-")
        trace_steps = VIDEO_STEPS if video and not stem.with_name(f"{stem.name}.mp4").exists() else 0
        first = len(record.of(label, subject.path))
        while first < config.episodes or trace_steps:
            # A video that an interrupted comparison still owes costs its episode again.
            first = 0 if trace_steps else first
            count = min(envs.num_envs, config.episodes - first)
            on_step = progress.start(label, first, count)
            seed = config.seed + first
            result = evaluate(agent, planner, envs, count, seed, trace_steps, on_step)
            if first >= len(record.of(label, subject.path)):
                record.add(label, subject.path, first, seed, result, device)
            progress.finish(result.returns, result.lengths)
            if trace_steps:
                yield from write_visuals(stem, agent, planner, result, subject.trained.env)
            trace_steps, first = 0, len(record.of(label, subject.path))


def compare(config: CompareConfig) -> tuple[list[dict[str, Any]], Path]:
    """Play all episodes, write compare.csv and compare.png; the table's rows and the folder."""
    subjects = [Subject.load(path) for path in config.checkpoint]
    same_task(subjects)
    planners = contestants(config, subjects)
    device = choose_device(config.device)
    trained = replace(
        subjects[0].trained,
        compile=config.compile,
        render_quality=config.render_quality or subjects[0].trained.render_quality,
    )
    envs = make_envs(trained, side_by_side_envs(config.num_envs, config.episodes), device)
    try:
        made_with = {
            **subjects[0].task(),
            "seed": config.seed,
            "render_quality": trained.render_quality,
            "checkpoints": {str(s.path): hashlib.sha256(s.path.read_bytes()).hexdigest() for s in subjects},
            "planners": {label: asdict(planner) for label, planner in planners.items()},
        }
        record = Record(Path(config.out) if config.out else subjects[0].run / "compare", made_with, config.overwrite)
        done = sum(len(record.of(label, s.path)[: config.episodes]) for label in planners for s in subjects)
        total = len(planners) * len(subjects) * config.episodes
        with ComparisonProgress(total, done) as progress:
            for subject in subjects:
                settings = replace(subject.trained, compile=config.compile)
                agent = load_agent(subject.payload, settings, envs.single_action_space.shape[0], device)
                video = config.video and subject is subjects[0]
                for path in play(config, subject, agent, envs, planners, record, progress, video):
                    progress.line(f"wrote {path}")
    finally:
        envs.close()
    rows = summarise(record, planners, [subject.path for subject in subjects], config.episodes)
    record.write("compare.csv", to_csv(rows))
    title = f"{trained.env}: {len(subjects)} checkpoint{'s' * (len(subjects) > 1)}, {config.episodes} episodes each"
    comparison_picture(record.folder / "compare.png", rows, title)
    return rows, record.folder


def summarise(
    record: Record, planners: Iterable[str], checkpoints: list[Path], episodes: int
) -> list[dict[str, Any]]:
    """One row a planner: statistics of its returns, of their paired differences to the bare policy, and its cost."""
    played = {label: [record.of(label, path)[:episodes] for path in checkpoints] for label in planners}
    scores = {label: _scores(strata) for label, strata in played.items()}
    return [_summary(label, scores[label], scores.get(BASELINE), sum(played[label], [])) for label in played]


def _scores(strata: list[list[dict[str, Any]]]) -> Float[np.ndarray, "E C"]:
    return np.array([[row["return"] for row in rows] for rows in strata]).T


def _summary(
    label: str, scores: Float[np.ndarray, "E C"], baseline: Float[np.ndarray, "E C"] | None, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    summary: dict[str, Any] = {"planner": label, "episodes": scores.shape[0], "checkpoints": scores.shape[1]}
    summary |= _estimate("return", mean, scores) | {"return_std": float(scores.std(ddof=1)) if scores.size > 1 else 0.0}
    summary |= _estimate("iqm", iqm, scores)
    paired = baseline is not None and label != BASELINE
    # Episode e has the same environment seed under every planner.
    summary |= _estimate("difference", mean, *([scores - baseline] if paired else []))
    summary |= _estimate(
        "probability_of_improvement", probability_of_improvement, *([scores, baseline] if paired else [])
    )
    summary |= {
        "ms_per_action": float(np.median([row["ms_per_action"] for row in rows])),
        "actions_per_s": float(np.median([1e3 * row["num_envs"] / row["ms_per_action"] for row in rows])),
        "model_evaluations": rows[0]["model_evaluations"],
        "num_envs": max(row["num_envs"] for row in rows),
    }
    return summary | {key: rows[-1][key] for key in ("device", "torch", "date")}


def _estimate(name: str, statistic, *scores: Float[np.ndarray, "E C"]) -> dict[str, float | None]:
    """The statistic and its 95 % stratified bootstrap interval; None where there is nothing to take it of."""
    if not scores:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = bootstrap_interval(statistic, *scores)
    return {name: float(statistic(*scores)), f"{name}_low": low, f"{name}_high": high}


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
