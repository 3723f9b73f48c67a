"""Checkpoints of one task under many planners: playing the episodes, keeping them, and summarising them."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import torch

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import (
    ALL,
    CompareConfig,
    Config,
    EpisodeSettings,
    EvalConfig,
    EvaluationConfig,
    check_runs,
    missing_parts,
    planner_from,
    planner_names,
    with_setting,
)
from dreamer_mpc.config.make import load_agent, make_envs, side_by_side_envs
from dreamer_mpc.envs.dmc import ENDLESS_TASK_STEPS
from dreamer_mpc.evaluation.episodes import Evaluation, evaluate
from dreamer_mpc.evaluation.progress import EpisodesProgress
from dreamer_mpc.evaluation.record import Episodes, Record
from dreamer_mpc.evaluation.subject import Subject, one_world, same_task
from dreamer_mpc.evaluation.summary import summarise_scores
from dreamer_mpc.evaluation.visualize import write_visuals
from dreamer_mpc.planners import Planner
from dreamer_mpc.report.rows import Row, drawn_by
from dreamer_mpc.report.words import plural
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import output_path
from dreamer_mpc.util.intervals import holm

BASELINE = "policy"
VIDEO_STEPS = EvaluationConfig.video_steps


def contestants(config: CompareConfig, subjects: list[Subject]) -> tuple[dict[str, Planner], list[str]]:
    """label -> planner, from --planners and --sweep; and the planners of `all` that some checkpoint cannot run.

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
    # If no planner is left, report why the first one was left out.
    _check_all_run(planners or {name: planner_from(config, name) for name in left_out[:1]}, subjects)
    return planners, left_out


def swept(config: CompareConfig, sweep: str) -> dict[str, Planner]:
    """label -> planner for each value of `planner.setting=value,value`; UserError on any other format.

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
                words = [f"{x:.12g}" if isinstance(x, float) else str(x) for x in _each(value)]
                varied[f"{label} {setting}={'+'.join(words) or 'none'}"] = changed
        planners = varied
    return planners


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass
class Comparison:
    """Planners on checkpoints of one task, and the record of their episodes. An evaluation has a single checkpoint.

    `trained` describes the environments. Episodes are played in batches of `batch`, by default the number of
    environments; each batch starts from its own seed, so that an interrupted comparison gives the same returns as an
    uninterrupted one.
    """

    config: EpisodeSettings
    trained: Config
    subjects: dict[str, Subject]  # by their names in the record, as are planners
    planners: dict[str, Planner]
    record: Episodes
    device: torch.device
    batch: int | None = None
    left_out: list[str] = field(default_factory=list)  # planners of `all` that some checkpoint cannot run

    @classmethod
    def of_one(cls, config: EvalConfig, subject: Subject) -> "Comparison":
        """The comparison of the command `eval`: one checkpoint, its episodes in one batch, kept in memory."""
        names = config.planner or ("dream-mpc,policy" if subject.trained.agent == "dreamer" else "cem")
        planners = {name: planner_from(config, name) for name in planner_names(names)}
        _check_all_run(planners, [subject])
        device = choose_device(config.device)
        env, quality = config.env or subject.trained.env, config.render_quality or subject.trained.evaluated_in
        args = config.env_args or (() if config.env else subject.trained.env_args)  # those of another one say nothing
        trained = replace(subject.trained, env=env, env_args=args, render_quality=quality)
        episodes = Episodes(output_path(config.out or subject.run.evaluation), named=config.out is not None)
        return cls(config, trained, {str(subject.path): subject}, planners, episodes, device, config.episodes)

    @classmethod
    def of_several(cls, config: CompareConfig, subjects: list[Subject]) -> "Comparison":
        """The comparison of the command `compare`: its folder may already hold some of the episodes."""
        device = choose_device(config.device)
        same_task(subjects)
        one_world(subjects, config.render_quality)
        by_content = {hashlib.sha256(s.path.read_bytes()).hexdigest(): s for s in reversed(subjects)}
        by_content = {sha256: by_content[sha256] for sha256 in reversed(by_content)}  # each once, in their order
        planners, left_out = contestants(config, subjects)
        first = subjects[0]
        trained = replace(first.trained, render_quality=config.render_quality or first.trained.evaluated_in)
        made_with = {
            **first.task(),
            "seed": config.seed,
            "render_quality": trained.render_quality,
            "device": device_name(device),
            "planners": {label: asdict(planner) for label, planner in planners.items()},
        }
        qualities = {sha256: subject.trained.render_quality for sha256, subject in by_content.items()}
        others = {sha256: own for sha256, own in qualities.items() if own != trained.render_quality}
        if others:
            made_with["trained_with"] = others  # render qualities
        checkpoints = {str(subject.path): sha256 for sha256, subject in by_content.items()}
        folder = output_path(config.out or first.run.comparison)
        record = Record(folder, made_with, checkpoints, config.overwrite)
        named = {record.names[sha256]: subject for sha256, subject in by_content.items()}
        return cls(config, trained, named, planners, record, device, left_out=left_out)

    def played(self) -> int:
        """Number of requested episodes that are already played."""
        most = self.config.episodes
        return sum(len(self.record.of(label, name, most)) for label in self.planners for name in self.subjects)

    def play(self) -> None:
        """Play the missing episodes and write the missing videos, and show how far that is."""
        config, record = self.config, self.record
        total = len(self.planners) * len(self.subjects) * config.episodes
        if self.played() == total and not any(map(self._video_steps, self.planners)):
            record.begin()
            return
        envs = make_envs(self.trained, side_by_side_envs(config.num_envs, config.episodes), self.device)
        try:
            with EpisodesProgress(total, self.played(), steps=_steps(self.trained)) as progress:
                if envs.num_envs < min(config.num_envs, config.episodes):
                    progress.line(f"{plural(envs.num_envs, 'environment')} at once, as many as CPU cores (--num-envs)")
                for number, (checkpoint, subject) in enumerate(self.subjects.items()):
                    settings = replace(subject.trained, env=self.trained.env, compile=config.compile)
                    agent = load_agent(subject.checkpoint, settings, envs.single_action_space.shape[0], self.device)
                    if number == 0:
                        record.begin()
                    for label in self.planners:
                        video_steps = self._video_steps(label) if number == 0 else 0
                        self._play(label, checkpoint, subject, agent, envs, progress, video_steps)
        finally:
            envs.close()

    def _play(
        self,
        label: str,
        checkpoint: str,
        subject: Subject,
        agent: Agent,
        envs: gymnasium.vector.VectorEnv,
        progress: EpisodesProgress,
        video_steps: int,
    ) -> None:
        """Play one planner's missing episodes on one checkpoint; a missing video needs the first batch again."""
        config, record, planner = self.config, self.record, self.planners[label]
        while (missing := record.missing(label, checkpoint, config.episodes)) or video_steps:
            first = 0 if video_steps else missing.start
            last = missing.stop if first == missing.start else config.episodes
            count = min(self.batch or envs.num_envs, last - first)
            on_step = progress.start(label, first, count, envs.num_envs)
            result = evaluate(agent, planner, envs, count, config.seed + first, video_steps, on_step)
            if mishaps := result.mishaps():
                progress.line(f"{label}: {mishaps}")
            if first == missing.start:
                record.add(label, checkpoint, first, config.seed + first, result, device_name(agent.device))
            progress.finish(result.returns, result.lengths, counted=first == missing.start)
            if video_steps:
                self._write_visuals(label, subject, agent, result, progress)
            video_steps = 0

    def _write_visuals(
        self, label: str, subject: Subject, agent: Agent, result: Evaluation, progress: EpisodesProgress
    ) -> None:
        world = drawn_by(self.trained.render_quality, subject.trained.render_quality)
        stem, title = self.record.stem(label), f"{self.trained.env}, {label}{world}"
        for path in write_visuals(stem, agent, self.planners[label], label, result, title, progress.line):
            progress.line(f"wrote {path}")

    def _video_steps(self, label: str) -> int:
        """Steps of the first episode to record for the video of `label`; 0 if it exists or is not requested."""
        return VIDEO_STEPS if self.config.video and self.record.lacks_video(label) else 0

    def rows(self) -> list[Row]:
        """The summary of the episodes."""
        return summarise(self.record, self.planners, list(self.subjects), self.config.episodes)


def _steps(trained: Config) -> int | None:
    """Agent steps of an episode of dm_control, which is the time limit of most of its tasks; None of another."""
    env_steps = trained.max_env_steps or (None if ":" in trained.env else ENDLESS_TASK_STEPS)
    return env_steps and -(-env_steps // trained.action_repeat)


def _check_all_run(planners: dict[str, Planner], subjects: list[Subject]) -> None:
    for label, planner in planners.items():
        for subject in subjects:
            check_runs(label, planner, subject.trained, f"{subject.path} holds")


def summarise(record: Episodes, planners: Iterable[str], checkpoints: list[str], episodes: int) -> list[Row]:
    """One row per planner: statistics of its returns, of their paired differences to the bare policy, and its cost."""
    played = {label: [record.of(label, name, episodes) for name in checkpoints] for label in planners}
    scores = {label: np.array([[e["return"] for e in rows] for rows in strata]).T for label, strata in played.items()}
    rows = []
    for label, strata in played.items():
        baseline = scores.get(BASELINE) if label != BASELINE else None
        every = sum(strata, [])
        ms, envs = ([episode[key] for episode in every] for key in ("ms_per_action", "num_envs"))
        row = summarise_scores(label, scores[label], baseline, ms, envs, every[0]["model_evaluations"])
        rows.append(row | {key: every[-1][key] for key in ("device", "torch", "date")})
    tested = [row for row in rows if row["difference_p"] is not None]
    for row, adjusted in zip(tested, holm([row["difference_p"] for row in tested]), strict=True):
        row["difference_p_holm"] = adjusted
    return rows
