"""The training loop: seed episodes, then collect, update, evaluate when due, save when due."""

import contextlib
import shlex
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch.profiler import record_function

from dreamer_mpc.config import Config, resolve, to_dict, training_planner
from dreamer_mpc.data.collect import Counters
from dreamer_mpc.envs import EnvError
from dreamer_mpc.evaluation.episodes import Evaluation
from dreamer_mpc.evaluation.player import Played
from dreamer_mpc.report.rows import to_metrics
from dreamer_mpc.report.words import plural
from dreamer_mpc.runs.checkpoint import Checkpoint, load_checkpoint, snapshot_path
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.logger import Logger
from dreamer_mpc.runs.resume import changes_of_settings, changing_results
from dreamer_mpc.training import reporting
from dreamer_mpc.training.beside import Evaluator
from dreamer_mpc.training.checkpoints import Checkpoints, Position
from dreamer_mpc.training.initial import Initial
from dreamer_mpc.training.profiling import Profiler
from dreamer_mpc.training.progress import Progress
from dreamer_mpc.training.schedule import Due, Pace, Schedule
from dreamer_mpc.training.setup import NOTHING_SAVED, begin_folder, open_parts
from dreamer_mpc.training.skipped import SkippedUpdateWatch
from dreamer_mpc.training.state import MetricMeans, TrainingState
from dreamer_mpc.util.device import choose_device
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.memory import is_out_of_memory
from dreamer_mpc.util.program import program
from dreamer_mpc.util.randomness import global_state, restore_global_state, seed_everything
from dreamer_mpc.util.stop import Stop, Stopped

# Updates that are asked for before a plan is waited for, by the kind of device: on a GPU, so that it has work while
# actions are sent to the environments. They read nothing of the step.
AHEAD = {"cuda": 1}


class Trainer:
    """One run: owns its environments, agent, replay and folder, and the state of its loop.

    With `checkpoint` it goes on as if it had never stopped: bit for bit on a CPU; a new run may start from the weights
    of `initial`. `started` is when the program was, `time.monotonic`; `stop` says when the run is to end early.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        checkpoint: Checkpoint | None = None,
        started: float | None = None,
        stop: Stop | None = None,
        initial: Initial | None = None,
    ):
        started = time.monotonic() if started is None else started
        self._stop = stop or Stop()
        self.config = config = resolve(config)
        self.folder, self.device = folder, choose_device(config.device)
        self._set_up_time = reporting.SetUpTime(started, self.device)
        seed_everything(config.seed)
        self.train_planner = training_planner(config)
        self.counters = replace(checkpoint.counters) if checkpoint else Counters()
        self.state = self._state(checkpoint)
        self.schedule = self.state.schedule
        self._config_dict = to_dict(config)
        self._records = checkpoint.records if checkpoint else 0  # of metrics
        self.evaluation: Evaluation | None = None  # the last one
        self._more_seeds = False  # it was said that there are more seed episodes than were asked for
        with contextlib.ExitStack() as opened:
            parts = open_parts(config, folder, self.counters, checkpoint, initial, self._stop, opened)
            self._opened = opened.pop_all()
        self.envs, self.agent = parts.envs, parts.agent
        self.evaluator = Evaluator(config, folder, self.agent, parts.eval_envs, parts.beside, self._opened)
        self.replay, self.collector, self._saver, self._notes = parts.replay, parts.collector, parts.saver, parts.notes
        self._about = {"init_from": initial.record()} if initial else {}  # the run, beside versions and device
        self._changes = changes_of_settings(checkpoint, config) if checkpoint else {}
        self._marked = changing_results(self._changes)
        if self._marked:
            self._about["changed"] = {"env_steps": self.counters.env_steps, **self._marked}
        most, optimizer = config.train.max_skipped_in_a_row, config.optimizer.kind
        self._skipped = SkippedUpdateWatch(folder.skipped_updates, self.replay, most, optimizer)
        if checkpoint:
            self.state.resumed(self.counters, config.train.seed_episodes, self._can_update())
            restore_global_state(checkpoint.random, self.device)

    def _state(self, checkpoint: Checkpoint | None) -> TrainingState:
        pace = Pace.of(self.config)
        if checkpoint is None:
            return TrainingState(Schedule(pace))
        return TrainingState.from_state_dict(checkpoint.training, pace, self.device)

    def run(self) -> None:
        """Train until `env_steps`; the last evaluation is left in `self.evaluation`.

        Raises `Stopped` where the run was asked to stop and its checkpoint is written; UserError where that, or the
        last one, could not be written; what environments raise, after a checkpoint.
        """
        config, counters = self.config, self.counters
        self._stop.check(NOTHING_SAVED)
        begin_folder(self.folder, config, self.device, self._about)
        with (
            Progress(
                config.env_steps, counters.env_steps, stop=self._stop, alternating=config.num_envs == 1
            ) as self._progress,
            Logger(self.folder, config.logger, self._progress.line) as self._logger,
        ):
            line = self._progress.line
            if config.resume:
                self._logger.truncate(self._records, counters.env_steps)
                self._say(reporting.missing_metrics(self._logger.records, self._records, counters.env_steps))
            if self._marked:  # a record of their own: those after it are of other settings than those before
                self._logger.write(asdict(counters), {f"changed/{name}": 1.0 for name in self._marked})
            self._say(reporting.introduction(config, self.train_planner, self.device, self.folder))
            self._say([*self.agent.notes, *self._notes])
            self._profiler = Profiler(self.folder.path / "profile", self.device, config.profile, line)
            self._throughput = reporting.Throughput(counters)
            self._checkpoints = Checkpoints(self.folder.checkpoints, self._saver, self._position(changes={}), line)
            self.evaluator.say, self.evaluator.on_step = line, self._stop.check
            self._save()  # of new settings, which a run that stops or is killed soon keeps
            try:
                self._resume_evaluation()
                self._loop()
            except Stopped:
                self._save(last=True)
                raise Stopped(
                    f"stopped at {counters.env_steps:,} env steps; "
                    f"go on with: {program()} --resume {shlex.quote(str(self.folder.path))}"
                ) from None
            self._profiler.close()
            line(self._checkpoints.cost(time.monotonic() - self._set_up_time.started))
            self._say(reporting.evaluations_beside(self.evaluator))
            self._say(reporting.peak_memory(self.device))

    def close(self) -> None:
        """End the environments' workers."""
        self._opened.close()

    # the loop

    def _can_update(self) -> bool:
        """Whether replay has a sequence for an update."""
        return self.replay.holds(self.config.replay.sequence_length)

    def _loop(self) -> None:
        """Between two of the things that it does the run can stop: then the state is whole."""
        while (due := self.schedule.due(self.counters.env_steps)) is not Due.NOTHING:
            self._stop.check()
            if due is Due.RECORD:
                self._end_round()
                continue
            try:
                self._advance(due)
            except BaseException as error:
                if isinstance(error, EnvError):
                    self._stop.check()  # Ctrl-C ends an environment's own processes too, and its step then fails
                at_once = self._stop.requested  # by a second Ctrl-C
                ended = isinstance(error, (SystemExit, KeyboardInterrupt)) and not at_once  # by code of others
                if ended or isinstance(error, (EnvError, UserError)) or is_out_of_memory(error):
                    self._save()  # what was trained is not lost
                raise
            if self.schedule.save_due(self._checkpoints.seconds_since_try()):
                self._save()

    def _advance(self, due: Due) -> None:
        """An evaluation or its result, a step of the environments, or an update between them."""
        if due is Due.EVALUATION:
            self._evaluate()
        elif due is Due.RESULT:
            self._receive_evaluation(wait=True)
        elif due is Due.SEED_STEP:
            self._step_at_random()
        elif due is Due.UPDATE:
            self._update(self.schedule.take_update())
            self._show(due)
        else:
            self._step()
            self._show(due)

    def _seeds_left(self) -> int:
        """How many of the seed episodes that were asked for are not over; negative where there were more."""
        return self.config.train.seed_episodes - self.state.seeds - len(self.state.returns)

    def _needs_seeds(self) -> bool:
        return self._seeds_left() > 0 or not self._can_update()

    def _play_seeds(self) -> None:
        """A step with random actions."""
        left, began = self._seeds_left(), time.monotonic()
        if self.counters.env_steps >= self.config.env_steps:  # the environment decides how long they are
            ended = len(self.state.returns)
            raise UserError(reporting.endless_seeding(self.config, ended, left, self.counters.env_steps))
        self._show(Due.SEED_STEP)
        if left <= 0 and not self._more_seeds:
            self._more_seeds = True
            self._progress.line(reporting.more_seeding(self.config))
        self.collector.plan(None, most=left if left > 0 else None)
        self.collector.send()
        self._receive()
        self._set_up_time.seed_seconds += time.monotonic() - began

    def _step_at_random(self) -> None:
        """A step of the seed episodes, and what follows them.

        As many as were asked for; then more of them in all environments, until replay has a sequence for an update.
        """
        if self._needs_seeds():
            self._play_seeds()
        if self._needs_seeds():
            return
        returns = self.state.returns
        self._logger.write(asdict(self.counters), self._collected())
        if returns:
            self._progress.line(f"{plural(len(returns), 'seed episode')}, mean return {np.mean(returns):.1f}")
        self.state.returns = []
        self.schedule.seeded(self.counters.env_steps)
        self._throughput.restart(self.counters)

    def _step(self) -> None:
        """A step of the environments, with the updates that go on beside it."""
        self.collector.plan(self.train_planner, self.config.train.action_noise)
        updates = self.schedule.take_updates_beside(self.counters.env_steps)
        ahead = min(updates, AHEAD.get(self.device.type, 0))
        for left in range(updates, updates - ahead, -1):
            self._update(left)
        self.collector.send()
        for left in range(updates - ahead, 0, -1):
            self._update(left)
        self._receive()
        self._profiler.after_step()
        self._receive_evaluation()

    def _receive(self) -> None:
        """The end of a step; what a user must know who has an environment that terminates is said once a run."""
        self.state.returns += self.collector.receive()
        if self.collector.terminations and not self.state.terminates:
            self.state.terminates = True
            if not self.config.world_model.continuation:
                self._progress.line(reporting.terminated(self.config.env))

    def _update(self, left: int) -> None:
        """An update, with which `left` are left before a step. On a GPU it is asked for, not waited for."""
        replay = self.config.replay
        self._profiler.before_update(left)
        with record_function("update"):
            batch = self.replay.sample(replay.batch_size, replay.sequence_length, self.device)
            learned = self.agent.update(batch)
            self.state.metrics.add(learned.metrics)
            if self.replay.states:
                self.replay.refresh(batch.index, learned.states)
        self.counters.updates += 1
        self._say(self._set_up_time.after_update())

    def _end_round(self) -> None:
        """The record of a round, and what begins the next one."""
        state, counters = self.state, self.counters
        metrics = state.metrics.read()  # waits for the updates
        self._logger.write(asdict(counters), metrics | self._collected() | self._throughput.read(counters))
        self._say(self._skipped.check(self.agent, counters.updates, metrics))
        self._show(train_return=state.returns[-1] if state.returns else None)
        state.metrics, state.returns = MetricMeans(), []
        self.schedule.recorded(counters.env_steps)
        if self._checkpoints.unsaved and not self.schedule.evaluation_due:
            self._save(say=True)

    # evaluations

    def _evaluate(self) -> None:
        """Evaluate the agent, or begin to, beside training; a checkpoint is written first."""
        env_steps = self.counters.env_steps
        self._receive_evaluation(wait=True)  # of the one before: never two at once
        self._save(say=True)
        if self.evaluator.beside and (snapshot := self._checkpoints.snapshot()):
            self.evaluator.begin(env_steps, snapshot)
            self.schedule.evaluation_begun(asdict(self.counters))
            return
        self._profiler.finish()  # an evaluation would swell it
        self._show(Due.EVALUATION)
        self._record_evaluation(asdict(self.counters), self.evaluator.play(env_steps), self._checkpoints.last())
        self.schedule.evaluated(env_steps)
        self._throughput.restart(self.counters)
        if self.schedule.finished:
            self._save(last=True)

    def _receive_evaluation(self, wait: bool = False) -> None:
        """Record the evaluation that is played beside training, if its result is there, or after waiting for it."""
        counters = self.schedule.evaluating
        if counters is None:
            return
        began = time.monotonic()
        played = self.evaluator.result()
        if played is None and wait:
            self._show(Due.RESULT)
            last = "last " if self.schedule.due(self.counters.env_steps) is Due.RESULT else ""
            self._progress.line(f"waiting for the {last}evaluation, at {counters['env_steps']:,} env steps")
            played = self.evaluator.result(wait=True)
            self._progress.line(f"training waited {time.monotonic() - began:.1f} s for it")
            self._throughput.restart(self.counters)
        if played is None:
            return
        self._record_evaluation(counters, played, snapshot_path(self.folder.checkpoints, counters["env_steps"]))
        self.schedule.evaluation_ended()
        if self.schedule.finished:
            self._save(last=True)

    def _resume_evaluation(self) -> None:
        """Begin again with the evaluation that was played beside training when the run was stopped or killed."""
        if not self.schedule.evaluating:
            return
        env_steps = self.schedule.evaluating["env_steps"]
        snapshot = snapshot_path(self.folder.checkpoints, env_steps)
        try:
            load_checkpoint(snapshot)
        except UserError:  # it is damaged; or the checkpoint after this one is, with which the snapshot was removed
            self._progress.line(f"the evaluation at {env_steps:,} env steps is left out: {snapshot} cannot be read")
            self.schedule.evaluation_lost()
        else:
            self.evaluator.begin(env_steps, snapshot)

    def _record_evaluation(self, counters: dict[str, int], played: Played, checkpoint: Path | None) -> None:
        """Log an evaluation of the agent at `counters`; keep its `checkpoint` if it is the best so far."""
        self.evaluation = played.evaluation
        row, mishaps = self.evaluation.row(self.config.planner), self.evaluation.mishaps()
        quality = reporting.drawn_apart(self.config)
        drawn = {f"eval/drawn_with_{quality}": 1.0} if quality else {}  # records hold numbers alone
        self._logger.write(counters, to_metrics(row) | self.evaluation.counts() | drawn)
        self._say([mishaps] if mishaps else [])
        self._show(eval_return=row["return_mean"])
        self._progress.line(reporting.evaluated(row, counters["env_steps"], quality))
        self._say(played.notes)
        for path in played.shown:
            self._logger.show(counters["env_steps"], path)
        if self._checkpoints.keep_best(checkpoint, row["return_mean"], self.state.best_return):
            self.state.best_return = row["return_mean"]

    # what the user sees, and what is saved

    def _collected(self) -> dict[str, float]:
        """What is logged of the episodes that ended since the last record."""
        returns, collector = self.state.returns, self.collector
        counts = {"simulator_errors": collector.simulator_errors, "lost_environments": collector.lost_environments}
        mean = {"train/return": float(np.mean(returns))} if returns else {}
        return mean | {f"train/{name}": count for name, count in counts.items() if count}

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._progress.line(line)

    def _show(self, due: Due | None = None, **returns: float | None) -> None:
        phase = reporting.phase(due, self.config.num_envs) if due else ""  # the one before
        self._progress.update(self.counters.env_steps, self.counters.updates, phase, **returns)

    def _save(self, say: bool = False, last: bool = False) -> None:
        self._checkpoints.save(self._position(self._changes), self._checkpoint, say, last)

    def _position(self, changes: dict[str, str]) -> Position:
        """Changes with everything that a checkpoint should hold; `changes` of settings since the one it resumed."""
        schedule = self.schedule
        evaluating = schedule.evaluating and schedule.evaluating["env_steps"]
        return (*asdict(self.counters).values(), schedule.evaluation_due, evaluating, schedule.finished, changes)

    def _checkpoint(self) -> Checkpoint:
        """All but the files of replay; the records that it counts are on the disk before it."""
        self._logger.sync()
        return Checkpoint(
            config=self._config_dict,
            counters=replace(self.counters),
            action_dim=self.agent.model.action_dim,
            agent_kind=self.agent.kind,
            world_model_kind=self.agent.world_model_kind,
            agent=self.agent.state_dict(),
            training=self.state.state_dict(),
            records=self._logger.records,
            collector=self.collector.state_dict(),
            replay=self.replay.state_dict(),
            random=global_state(self.device),
        )
