"""The training loop: seed episodes, then collect, update, evaluate when due, save when due."""

import contextlib
import math
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import record_function

from dreamer_mpc.config import (
    Config,
    check_start,
    planner_from,
    resolve,
    to_dict,
    to_yaml,
    trained_config,
    training_planner,
)
from dreamer_mpc.config.make import env_settings, load_agent, make_agent, make_envs, replay_capacity, side_by_side_envs
from dreamer_mpc.data.collect import Collector, Counters
from dreamer_mpc.data.replay import GIB, Replay, check_storage, choose_storage, frame_bytes, free_disk
from dreamer_mpc.evaluation.episodes import Evaluation, evaluate
from dreamer_mpc.evaluation.visualize import write_visuals
from dreamer_mpc.planners import SampledPolicy
from dreamer_mpc.report.progress import Progress, plural
from dreamer_mpc.runs.checkpoint import checkpoint_path, keep_best
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import Logger
from dreamer_mpc.runs.saving import Saver
from dreamer_mpc.training.faults import FaultWatch
from dreamer_mpc.training.profiling import Profiler
from dreamer_mpc.training.schedule import Due, Pace, Schedule
from dreamer_mpc.training.state import MetricMeans, TrainingState
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.randomness import global_state, restore_global_state, seed_everything
from dreamer_mpc.util.stop import Stop, Stopped
from envs import EnvError, try_env

NOTHING_SAVED = "stopped before the first step: there was nothing to save"


def default_run_dir(config: Config) -> str:
    """runs/<env>-<planner>-seed<seed>, the training's planner in it where that is another."""
    other = f"-trained-by-{config.trained_by}" if config.trained_by != config.planner else ""
    return f"runs/{config.env.replace(':', '.')}-{config.planner}{other}-seed{config.seed}"


class Trainer:
    """One run: owns its environments, agent, replay and folder, and the state of its loop.

    With `payload`, of a checkpoint, it goes on as if it had never stopped: bit for bit on a CPU. `started` is when the
    program was, `time.monotonic`; `stop` says when the run is to end early.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        payload: dict[str, Any] | None = None,
        started: float | None = None,
        stop: Stop | None = None,
    ):
        self._started = time.monotonic() if started is None else started
        self._stop = stop or Stop()
        self.config = config = resolve(config)
        self.folder = folder
        self.device = choose_device(config.device)
        seed_everything(config.seed)
        self.planner = planner_from(config, config.planner)
        self.train_planner = training_planner(config)
        self.counters = Counters(**payload["counters"]) if payload else Counters()
        pace = Pace.of(config)
        self.state = TrainingState(Schedule(pace))
        if payload:
            self.state = TrainingState.from_state_dict(payload["training"], pace, self.device)
        self.schedule = self.state.schedule
        self._config_dict = to_dict(config)
        self._records = payload["records"] if payload else 0  # of metrics
        self.evaluation: Evaluation | None = None  # the last one
        self._unsaved = False  # the disk refused the last checkpoint
        self._set_up = False  # whether this process made an update
        self._episode_seconds = 0.0  # of seed episodes
        self._saves, self._saving_seconds = 0, 0.0  # by this process
        self._notes: list[str] = []
        with contextlib.ExitStack() as opened:
            self._open(opened, replay_capacity(config), payload)
            self._opened = opened.pop_all()

    def _open(self, opened: contextlib.ExitStack, capacity: int, payload: dict[str, Any] | None) -> None:
        """Environments, agent and replay; what must be closed again goes to `opened`."""
        config = self.config
        self.envs = make_envs(config, config.num_envs, self.device)
        opened.callback(self.envs.close)
        rows = side_by_side_envs(config.eval.num_envs, config.eval.episodes)
        self.eval_envs = make_envs(config, rows, self.device)
        opened.callback(self.eval_envs.close)
        action_dim = self.envs.single_action_space.shape[0]
        if payload:
            self.agent = load_agent(payload, config, action_dim, self.device)
        else:
            self.agent = make_agent(config, action_dim, self.device)
        self._stop.check(NOTHING_SAVED)
        self.replay, self.replay_line = self._make_replay(capacity, action_dim, opened)
        self.collector = Collector(self.envs, self.agent, self.replay, self.counters, config.seed)
        self._faults = FaultWatch(self.folder.diagnosis, self.replay, config.train.max_skipped_in_a_row)
        self._saver = Saver(self.folder, self.replay, config.train.keep_checkpoints)
        if payload:
            self._restore(payload)
        else:
            self.collector.begin(config.train.seed_episodes)  # one that cannot even be reset leaves no run folder

    def _make_replay(self, capacity: int, action_dim: int, opened: contextlib.ExitStack) -> tuple[Replay, str]:
        config = self.config
        required = capacity * frame_bytes(action_dim)
        device, memmap, line = choose_storage(config.replay.storage, required, self.device, self.folder.path)
        if memmap:
            opened.callback(memmap.unlink, missing_ok=True)  # its frames are saved elsewhere
        replay = Replay(capacity, action_dim, config.num_envs, device=device, memmap=memmap, seed=config.seed)
        saved = f"saved as it grows, at last {required / GIB:.2f} GiB on disk"
        return replay, f"{line}, {capacity:,} frames; {saved} ({free_disk(self.folder.path) / GIB:.0f} GiB free)"

    def _restore(self, payload: dict[str, Any]) -> None:
        """Everything but networks, counters and the loop's state, which are there already."""
        self.replay.load_state_dict(payload["replay"])
        self._saver.restore(payload)
        saved = trained_config(payload, "the checkpoint")
        same_planner = training_planner(saved) == self.train_planner
        broken = self.collector.load_state_dict(payload["collector"], with_memory=same_planner)
        if broken:
            self._notes.append(
                f"{plural(len(broken), 'episode')} in progress could not be repeated from seed and actions and "
                "counts as ended: this environment does not repeat itself, or was changed"
            )
        self.schedule.resumed(self.counters.env_steps)
        restore_global_state(payload["random"], self.device)

    def run(self) -> None:
        """Train until `env_steps`; the last evaluation is left in `self.evaluation`.

        Raises `Stopped` where the run was asked to stop and its checkpoint is written; UserError where that, or the
        last one, could not be written; what environments raise, after a checkpoint.
        """
        config, counters = self.config, self.counters
        self._stop.check(NOTHING_SAVED)
        self._claim_folder()
        with (
            Progress(config.env_steps, counters.env_steps) as self._progress,
            Logger(self.folder, config.logger, self._progress.line) as self._logger,
        ):
            if config.resume:
                self._logger.truncate(self._records)
            for line in self._introduction():
                self._progress.line(line)
            self._profiler = Profiler(self.folder.path / "profile", self.device, config.profile, self._progress.line)
            self._saved_at, self._tried_at = self._position(), time.monotonic()
            try:
                self._loop()
            except Stopped:
                self._save(last=True)
                raise Stopped(
                    f"stopped at {counters.env_steps:,} env steps; "
                    f"go on with: python run.py --resume {shlex.quote(str(self.folder.path))}"
                ) from None
            self._profiler.close()
            self._report_saves()
            if self.device.type == "cuda":
                self._progress.line(f"peak GPU memory {torch.cuda.max_memory_allocated(self.device) / GIB:.2f} GiB")

    def close(self) -> None:
        """End the environments' workers."""
        self._opened.close()

    def _claim_folder(self) -> None:
        # Deleted and written only now: a run that could not be set up leaves its folder as it was.
        if self.config.overwrite and not self.config.resume:
            RunFolder.create(self.folder.path, overwrite=True)
        try:
            self.folder.write_config(to_yaml(self.config))
            self.folder.write_versions({"device": device_name(self.device)})
        except OSError as error:
            raise UserError(
                f"cannot write run folder {self.folder.path} ({error.strerror}): free space or change --run-dir"
            ) from error

    def _introduction(self) -> list[str]:
        config = self.config
        agent = {"dreamer": "Dreamer", "planet": "PlaNet (world model alone)"}[config.agent]
        acting = config.planner
        if config.train_planner not in (None, config.planner):
            acting = f"{config.train_planner} in training, {config.planner} in evaluation,"
        if isinstance(self.train_planner, SampledPolicy):
            acting = acting.replace("policy", "policy (sampled while collecting)", 1)
        return [
            f"{config.env}: {agent}, acted by {acting} on {device_name(self.device)}, run folder {self.folder.path}",
            f"{config.env_steps:,} env steps = {config.env_steps // config.action_repeat:,} agent steps "
            f"(action repeat {config.action_repeat}); {config.train.updates} updates every "
            f"{config.train.every:,} env steps",
            "1 environment: collecting and updating take turns (sequential, as in the paper)"
            if config.num_envs == 1
            else f"{config.num_envs} environments, planned in one batch: they step while updates run (interleaved)",
            self.replay_line,
            *self._notes,
        ]

    def _loop(self) -> None:
        """Between two of the things that it does the run can stop: then the state is whole."""
        while (due := self.schedule.due(self.counters.env_steps)) is not Due.NOTHING:
            self._stop.check()
            if due is Due.RECORD:
                self._end_round()
                continue
            try:
                self._advance(due)
            except (EnvError, UserError, torch.OutOfMemoryError):
                self._save()  # what was trained is not lost
                raise
            if self.schedule.save_due(time.monotonic() - self._tried_at):
                self._save()

    def _advance(self, due: Due) -> None:
        """An evaluation, a step of the environments, or an update between them."""
        if due is Due.EVALUATION:
            self._evaluate()
        elif due is Due.SEED_STEP:
            self._step_at_random()
        elif due is Due.UPDATE:
            self._update(self.schedule.take_update())
            self._show("updating")
        else:
            self._step()
            self._show("collecting" if self.config.num_envs == 1 else "training")

    def _step_at_random(self) -> None:
        """A step of the seed episodes, and what follows them."""
        state, counters = self.state, self.counters
        self._show("seed episodes")
        began = time.monotonic()
        self.collector.send(None, most=self.config.train.seed_episodes - len(state.returns))
        self._receive()
        self._episode_seconds += time.monotonic() - began
        if len(state.returns) < self.config.train.seed_episodes:
            return
        self._logger.write(asdict(counters), self._collected())
        self._progress.line(f"{len(state.returns)} seed episodes, mean return {np.mean(state.returns):.1f}")
        state.returns = []
        self.schedule.seeded(counters.env_steps)
        if self.schedule.evaluation_due:
            self._save(say=True)

    def _end_round(self) -> None:
        state, counters = self.state, self.counters
        metrics = state.metrics.read()
        self._logger.write(asdict(counters), metrics | self._collected())
        for line in self._faults.check(self.agent, counters.updates, metrics):
            self._progress.line(line)
        self._show("", train_return=state.returns[-1] if state.returns else None)
        state.metrics, state.returns = MetricMeans(), []
        self.schedule.recorded(counters.env_steps)
        if self.schedule.evaluation_due or self._unsaved:
            self._save(say=True)

    def _collected(self) -> dict[str, float]:
        """What is logged of the episodes that ended since the last record."""
        returns, collector = self.state.returns, self.collector
        counts = {"simulator_errors": collector.simulator_errors, "lost_environments": collector.lost_environments}
        mean = {"train/return": float(np.mean(returns))} if returns else {}
        return mean | {f"train/{name}": count for name, count in counts.items() if count}

    def _step(self) -> None:
        """A step of the environments, with the updates that go on beside it."""
        self.collector.send(self.train_planner, self.config.train.action_noise)
        for left in range(self.schedule.take_updates_beside(self.counters.env_steps), 0, -1):
            self._update(left)
        self._receive()
        self._profiler.after_step()

    def _receive(self) -> None:
        """The end of a step; what a user must know who has an environment that terminates is said once a run."""
        state = self.state
        state.returns += self.collector.receive()
        if self.collector.terminations and not state.terminates:
            state.terminates = True
            self._progress.line(
                f"{self.config.env} terminated an episode: the agent does not model that yet, "
                "imagination and values go on past it"
            )

    def _update(self, left: int) -> None:
        """An update, with which `left` are left before a step. On a GPU it is asked for, not waited for."""
        replay = self.config.replay
        self._profiler.before_update(left)
        with record_function("update"):
            batch = self.replay.sample(replay.batch_size, replay.sequence_length, self.device)
            self.state.metrics.add(self.agent.update(batch))
        self.counters.updates += 1
        if not self._set_up:
            self._set_up = True
            self._report_set_up()

    def _report_set_up(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seeding = self._episode_seconds
        seconds = time.monotonic() - self._started - seeding
        beside = f", beside {seeding:.1f} s of seed episodes" if seeding else ""
        self._progress.line(f"set-up before the first update: {seconds:.1f} s{beside}")

    def _report_saves(self) -> None:
        seconds, share = self._saving_seconds, self._saving_seconds / (time.monotonic() - self._started)
        self._progress.line(f"{plural(self._saves, 'checkpoint')} took {seconds:.1f} s, {share:.1%} of the run")

    def _evaluate(self) -> None:
        config, counters = self.config, self.counters
        self._profiler.finish()  # an evaluation would swell it
        self._show("evaluating")
        trace_steps = config.eval.video_steps if config.eval.video else 0
        self.evaluation = evaluate(
            self.agent,
            self.planner,
            self.eval_envs,
            config.eval.episodes,
            config.eval.seed,
            trace_steps,
            on_step=lambda _: self._stop.check(),
        )
        summary = self.evaluation.summary()
        logged = {f"eval/{name}": value for name, value in summary.items() if value is not None}
        self._logger.write(asdict(counters), logged)
        self._show("", eval_return=summary["return_mean"])
        self._progress.line(
            f"evaluation at {counters.env_steps:,} env steps: return {summary['return_mean']:.1f} "
            f"± {summary['return_std']:.1f} over {config.eval.episodes} episodes"
        )
        if trace_steps:
            stem = self.folder.videos / f"{counters.env_steps:08d}"
            try:
                write_visuals(stem, self.agent, self.planner, self.evaluation, config.env)
            except OSError as error:  # a full disk or no ffmpeg costs the video, not the run
                self._progress.line(f"no video at {counters.env_steps:,} env steps: {error}")
        self._keep_if_best(summary["return_mean"])
        self.schedule.evaluated(counters.env_steps)
        if self.schedule.finished:
            self._save(last=True)

    def _keep_if_best(self, mean_return: float) -> None:
        """Keep the checkpoint that was written before this evaluation where no other one did as well."""
        best = -math.inf if self.state.best_return is None else self.state.best_return
        if self._unsaved or not mean_return > best:
            return
        try:
            keep_best(self.folder.checkpoints, checkpoint_path(self.folder.checkpoints, self.counters.env_steps))
        except (OSError, UserError) as error:
            self._progress.line(f"the best checkpoint so far is not kept: {error}")
        else:
            self.state.best_return = mean_return

    def _show(self, phase: str, **returns: float | None) -> None:
        self._progress.update(self.counters.env_steps, self.counters.updates, phase, **returns)

    def _save(self, say: bool = False, last: bool = False) -> None:
        """Write a checkpoint if anything happened since the last one.

        Where the disk refuses it, that is said, and training goes on; UserError if there is no more time: it was the
        `last`. `say` that it was written.
        """
        if self._position() == self._saved_at and not self._unsaved:
            return
        path = checkpoint_path(self.folder.checkpoints, self.counters.env_steps)
        self._tried_at = time.monotonic()
        self._logger.sync()
        try:
            self._saver.save(self.counters.env_steps, self._payload())
        except UserError as error:
            if last:
                unsaved = f"{self._saved_at[0]:,} to {self.counters.env_steps:,}"
                raise UserError(f"{error}; env steps {unsaved} are not saved") from error
            if not self._unsaved:
                self._progress.line(f"{error}; training goes on, the next round tries again")
            self._unsaved = True
            return
        self._saves += 1
        self._saving_seconds += time.monotonic() - self._tried_at
        if say or self._unsaved:
            self._progress.line(f"checkpoint {path}")
        self._unsaved, self._saved_at = False, self._position()

    def _position(self) -> tuple[Any, ...]:
        """Changes with everything that a checkpoint should hold."""
        return (*asdict(self.counters).values(), self.schedule.evaluation_due, self.schedule.finished)

    def _payload(self) -> dict[str, Any]:
        return {
            "config": self._config_dict,
            "counters": asdict(self.counters),
            "action_dim": self.agent.model.action_dim,
            "agent": self.agent.state_dict(),
            "training": self.state.state_dict(),
            "records": self._logger.records,
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "random": global_state(self.device),
        }


def claim_folder(config: Config) -> RunFolder:
    """The folder of a new run, once settings and environment were tried. UserError, or EnvError as `try_env`."""
    check_start(config)
    replay_capacity(config)
    check_storage(config.replay.storage, choose_device(config.device))
    try_env(config.env, config.num_envs, **env_settings(config))
    path = Path(config.run_dir or default_run_dir(config))
    # What is to be overwritten is deleted when the new run is ready to start, not before.
    return RunFolder(path) if config.overwrite and path.exists() else RunFolder.create(path)
