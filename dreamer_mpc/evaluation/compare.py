"""Checkpoints of one task under many planners: what is played, kept, and what it adds up to."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import (
    ALL,
    CompareConfig,
    Config,
    check_runs,
    missing_parts,
    planner_from,
    planner_names,
    trained_config,
    with_setting,
)
from dreamer_mpc.config.make import load_agent, make_envs, side_by_side_envs
from dreamer_mpc.evaluation.episodes import Evaluation, evaluate
from dreamer_mpc.evaluation.record import Record
from dreamer_mpc.evaluation.visualize import write_visuals
from dreamer_mpc.planners import Planner
from dreamer_mpc.report.plot import COMPARE, draw_comparison
from dreamer_mpc.report.progress import ComparisonProgress
from dreamer_mpc.runs.checkpoint import Checkpoint, load_checkpoint, load_newest
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import to_csv
from dreamer_mpc.util.intervals import count_failed, holm, iqm, mean_interval, p_value

BASELINE = "policy"
VIDEO_STEPS = 250


@dataclass(frozen=True)
class Subject:
    """A trained agent to evaluate: a checkpoint, and the configuration it was trained with."""

    path: Path
    checkpoint: Checkpoint
    trained: Config

    @classmethod
    def load(cls, path: str | Path) -> "Subject":
        """From a checkpoint file, or the newest one of a run folder that is whole; UserError where there is none.

        Damaged ones are named on the terminal.
        """

        def read(file: Path) -> "Subject":
            checkpoint = load_checkpoint(file)
            return cls(file, checkpoint, trained_config(checkpoint, str(file)))

        _, subject, notes = load_newest(path, read)
        for note in notes:
            print(note)
        return subject

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


def contestants(config: CompareConfig, subjects: list[Subject]) -> tuple[dict[str, Planner], list[str]]:
    """label -> planner, of --planners and --sweep; and planners of `all` that some checkpoint cannot run.

    UserError on a wrong name, key or value, where a planner that was named lacks an actor, and where none is left.
    """
    named = {word.strip() for word in (config.planners or "").split(",")} - {ALL}
    wanted = planner_names(config.planners or (BASELINE if config.sweep else ALL))
    planners = {name: planner_from(config, name) for name in wanted}
    lacking = {n for n, planner in planners.items() for s in subjects if missing_parts(planner, s.trained)}
    left_out = [name for name in planners if name in lacking and name not in named]
    planners = {name: planner for name, planner in planners.items() if name not in left_out}
    for sweep in config.sweep:
        planners |= swept(config, sweep)
    # With no planner left, the first that was left out says why.
    for label, planner in (planners or {name: planner_from(config, name) for name in left_out[:1]}).items():
        for subject in subjects:
            check_runs(label, planner, subject.trained, f"{subject.path} holds")
    return planners, left_out


def swept(config: CompareConfig, sweep: str) -> dict[str, Planner]:
    """label -> planner for each value of `planner.setting=value,value`; UserError where it is something else.

    Settings joined by colons, as in `planner.setting=value,value:setting=value`, are varied together: all their pairs.
    """
    name, _, rest = sweep.strip().partition(".")
    planners: dict[str, Planner] = {}
    for part in rest.split(":"):
        setting, _, values = part.partition("=")
        setting = setting.strip().replace("-", "_")
        texts = [value.strip() for value in values.split(",") if value.strip()]
        if not setting or not texts:
            raise UserError(f"--sweep {sweep!r} is not planner.setting=value,value: e.g. dream-mpc.iterations=1,2,5,10")
        varied = {}
        for label, planner in (planners or {name: planner_from(config, name)}).items():
            for text in texts:
                changed = with_setting(planner, name, setting, text)
                value = getattr(changed, setting)
                words = f"{value:.12g}" if isinstance(value, float) else str(value)
                varied[f"{label} {setting}={words}"] = changed
        planners = varied
    return planners


class Comparison:
    """Checkpoints of one task, the planners to compare on them, and the record of what was played."""

    def __init__(self, config: CompareConfig, subjects: list[Subject]):
        self.config, self.device = config, choose_device(config.device)
        same_task(subjects)
        by_content = {hashlib.sha256(s.path.read_bytes()).hexdigest(): s for s in reversed(subjects)}
        self.subjects = {sha256: by_content[sha256] for sha256 in reversed(by_content)}  # each once, in their order
        self.planners, self.left_out = contestants(config, subjects)
        first = subjects[0]
        self.trained = replace(first.trained, render_quality=config.render_quality or first.trained.render_quality)
        made_with = {
            **first.task(),
            "seed": config.seed,
            "render_quality": self.trained.render_quality,
            "device": device_name(self.device),
            "planners": {label: asdict(planner) for label, planner in self.planners.items()},
        }
        checkpoints = {str(subject.path): sha256 for sha256, subject in self.subjects.items()}
        folder = Path(config.out) if config.out else first.run / "compare"
        self.record = Record(folder, made_with, checkpoints, config.overwrite)
        self.checkpoints = [self.record.names[sha256] for sha256 in self.subjects]

    def played(self) -> int:
        """Episodes that are there, of those that are wanted."""
        counts = (len(self.record.of(label, name)) for label in self.planners for name in self.checkpoints)
        return sum(min(count, self.config.episodes) for count in counts)

    def play(self) -> None:
        """Play the episodes that are missing, and write the videos that are."""
        config, record = self.config, self.record
        total = len(self.planners) * len(self.subjects) * config.episodes
        if self.played() == total and not any(map(self._video_steps, self.planners)):
            record.begin()
            return
        envs = make_envs(self.trained, side_by_side_envs(config.num_envs, config.episodes), self.device)
        try:
            with ComparisonProgress(total, self.played()) as progress:
                for number, (checkpoint, subject) in enumerate(
                    zip(self.checkpoints, self.subjects.values(), strict=True)
                ):
                    settings = replace(subject.trained, compile=config.compile)
                    agent = load_agent(subject.checkpoint, settings, envs.single_action_space.shape[0], self.device)
                    if number == 0:
                        record.begin()
                    for label in self.planners:
                        video_steps = self._video_steps(label) if number == 0 else 0
                        self._play(label, checkpoint, agent, envs, progress, video_steps)
        finally:
            envs.close()

    def _play(
        self,
        label: str,
        checkpoint: str,
        agent: Agent,
        envs: gymnasium.vector.VectorEnv,
        progress: ComparisonProgress,
        video_steps: int,
    ) -> None:
        """One planner's missing episodes on one checkpoint, in batches of the environments side by side.

        Each batch starts from a seed of its own, so that a comparison that was interrupted gives the same returns as
        one that was not. A video that is missing costs the first batch again.
        """
        config, record, planner = self.config, self.record, self.planners[label]
        while video_steps or len(record.of(label, checkpoint)) < config.episodes:
            there = len(record.of(label, checkpoint))
            first = 0 if video_steps else there
            count = min(envs.num_envs, config.episodes - first)
            on_step = progress.start(label, first, count)
            result = evaluate(agent, planner, envs, count, config.seed + first, video_steps, on_step)
            if first == there:
                record.add(label, checkpoint, first, config.seed + first, result, device_name(agent.device))
            progress.finish(result.returns, result.lengths, counted=first == there)
            if video_steps:
                self._write_visuals(label, agent, result, progress)
            video_steps = 0

    def _write_visuals(self, label: str, agent: Agent, result: Evaluation, progress: ComparisonProgress) -> None:
        try:
            for path in write_visuals(self.record.stem(label), agent, self.planners[label], result, self.trained.env):
                progress.line(f"wrote {path}")
        except OSError as error:  # a full disk or no ffmpeg costs the video, not the comparison
            progress.line(f"no video of {label}: {error}")

    def _video_steps(self, label: str) -> int:
        """How much of the first episode to keep for the video of `label`: nothing where there is one, or none asked."""
        there = self.record.visuals(label)[0].exists() and not self.config.overwrite
        return VIDEO_STEPS if self.config.video and not there else 0

    def finish(self) -> list[dict[str, Any]]:
        """Write compare.csv and compare.png of these planners; the table's rows."""
        config, record = self.config, self.record
        rows = summarise(record, self.planners, self.checkpoints, config.episodes)
        record.write(COMPARE, to_csv(rows))
        draw_comparison(record.folder)
        return rows


def summarise(
    record: Record, planners: Iterable[str], checkpoints: list[str], episodes: int
) -> list[dict[str, Any]]:
    """One row a planner: statistics of its returns, of their paired differences to the bare policy, and its cost."""
    played = {label: [record.of(label, name)[:episodes] for name in checkpoints] for label in planners}
    scores = {label: _scores(strata) for label, strata in played.items()}
    rows = [_summary(label, scores[label], scores.get(BASELINE), sum(played[label], [])) for label in played]
    tested = [row for row in rows if row["difference_p"] is not None]
    for row, adjusted in zip(tested, holm([row["difference_p"] for row in tested]), strict=True):
        row["difference_p_holm"] = adjusted
    return rows


def _scores(strata: list[list[dict[str, Any]]]) -> Float[np.ndarray, "E C"]:
    return np.array([[row["return"] for row in rows] for rows in strata]).T


def _summary(
    label: str, scores: Float[np.ndarray, "E C"], baseline: Float[np.ndarray, "E C"] | None, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    summary: dict[str, Any] = {"planner": label, "episodes": scores.shape[0], "checkpoints": scores.shape[1]}
    summary |= _mean("return", scores) | {"return_std": float(scores.std(ddof=1)) if scores.size > 1 else 0.0}
    summary |= {"failed": count_failed(scores), "iqm": iqm(scores)}
    # Episode e has the same environment seed under every planner.
    differences = scores - baseline if baseline is not None and label != BASELINE else None
    summary |= _mean("difference", differences)
    summary |= {"difference_p": None if differences is None else p_value(differences), "difference_p_holm": None}
    summary |= {
        "ms_per_action": float(np.median([row["ms_per_action"] for row in rows])),
        "actions_per_s": float(np.median([1e3 * row["num_envs"] / row["ms_per_action"] for row in rows])),
        "model_evaluations": rows[0]["model_evaluations"],
        "num_envs": max(row["num_envs"] for row in rows),
    }
    return summary | {key: rows[-1][key] for key in ("device", "torch", "date")}


def _mean(name: str, scores: Float[np.ndarray, "E C"] | None) -> dict[str, float | None]:
    """The mean and its 95 % interval; None where there are no scores, or too few."""
    low, high = (None if scores is None else mean_interval(scores)) or (None, None)
    return {name: None if scores is None else float(scores.mean()), f"{name}_low": low, f"{name}_high": high}
