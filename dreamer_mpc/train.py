"""The training loop: seed episodes, then collect, update, evaluate when due, save when due."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch.profiler import record_function

from dreamer_mpc.agent import Dreamer
from dreamer_mpc.checkpoint import checkpoint_path, load_checkpoint, prune, save_checkpoint
from dreamer_mpc.collect import Collector, Counters
from dreamer_mpc.config import Config, agent_of, planner_from, resolve, to_dict, to_yaml
from dreamer_mpc.device import choose_device, device_name
from dreamer_mpc.errors import UserError
from dreamer_mpc.evaluate import Evaluation, evaluate
from dreamer_mpc.logger import Logger
from dreamer_mpc.profiling import Profiler
from dreamer_mpc.progress import Progress
from dreamer_mpc.ratio import UpdateRatio
from dreamer_mpc.replay import GIB, Replay, choose_storage, frame_bytes
from dreamer_mpc.run_folder import RunFolder
from dreamer_mpc.visualize import decision, episode_video
from envs import choose_gl_backend, make_vector_env, try_env
from envs.gl import match_egl_device


def default_run_dir(config: Config) -> str:
    """runs/<env>-<planner>-seed<seed>, the training's planner in it where that is another."""
    other = f"-trained-by-{config.train_planner}" if config.train_planner not in (None, config.planner) else ""
    return f"runs/{config.env.replace(':', '.')}-{config.planner}{other}-seed{config.seed}"


def make_envs(config: Config, num_envs: int, device: torch.device) -> gymnasium.vector.VectorEnv:
    """`num_envs` environments as `config` sets them up, rendered by an OpenGL that works, on the GPU of `device`."""
    if ":" not in config.env:
        choose_gl_backend()
        if device.type == "cuda":
            match_egl_device(device.index)
    return make_vector_env(config.env, num_envs, **env_settings(config))


def env_settings(config: Config) -> dict[str, Any]:
    """How `config` sets an environment up: what `make_env` takes beside its name."""
    names = ("action_repeat", "render_quality", "camera", "max_env_steps")
    return {name: getattr(config, name) for name in names}


def make_agent(config: Config, action_dim: int, device: torch.device) -> Dreamer:
    """The agent that `config` describes, its weights drawn from torch's generator."""
    return Dreamer(
        action_dim,
        config.world_model,
        config.behavior if agent_of(config) == "dreamer" else None,
        config.optimizer,
        device,
        capture=config.compile == "auto",
        bf16=config.precision == "bf16",
        kernels=config.kernels == "auto",
    )


def load_agent(payload: dict[str, Any], config: Config, action_dim: int, device: torch.device) -> Dreamer:
    """An agent with the weights of a checkpoint; UserError where the environment has another action size."""
    trained = payload["action_dim"]
    if trained != action_dim:
        raise UserError(
            f"the checkpoint was trained on {payload['config']['env']} with {trained} action dimensions, "
            f"this environment ({config.env}) has {action_dim}: use an environment with {trained}"
        )
    agent = make_agent(config, action_dim, device)
    try:
        agent.load_state_dict(payload["agent"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"the checkpoint's weights do not fit --world-model and --behavior: {reason}") from error
    return agent


def side_by_side_envs(wanted: int, episodes: int) -> int:
    """Environments to step at once: no more than asked for, than cores, or than episodes."""
    return max(1, min(wanted, episodes, len(os.sched_getaffinity(0))))


def replay_capacity(config: Config) -> int:
    """Frames that the replay of this run holds; UserError where a training environment's share is too small."""
    # Two sequences: however episodes lie in a share, one sequence is then inside an episode that is long enough.
    least = 2 * config.replay.sequence_length
    if config.replay.capacity < config.num_envs * least:
        raise UserError(
            f"--replay.capacity {config.replay.capacity:,} has less than {least} frames (two sequences) for each of "
            f"{config.num_envs} training environments: raise it, or lower --num-envs or --replay.sequence-length"
        )
    # An episode adds one frame more than it has steps.
    most = int(1.02 * config.env_steps / config.action_repeat) + 2000 + config.num_envs * least
    return min(config.replay.capacity, most) // config.num_envs * config.num_envs


class MetricMeans:
    """Means of the metrics of several updates, summed on the device and read once."""

    def __init__(self):
        self._updates, self._names, self._total = 0, [], None

    def add(self, metrics: dict[str, torch.Tensor]) -> None:
        self._names, values = list(metrics), torch.stack(list(metrics.values()))
        self._total = values if self._total is None else self._total + values
        self._updates += 1

    def read(self) -> dict[str, float]:
        """As they are logged; waits for the device."""
        if self._total is None:
            return {}
        means = dict(zip(self._names, (self._total / self._updates).tolist(), strict=True))
        skipped = round(means.pop("skipped") * self._updates)
        return {f"train/{name}": value for name, value in means.items()} | {"train/skipped_updates": skipped}


class Trainer:
    """One run: owns its environments, agent, replay and folder. `started` is when the program was, `time.monotonic`."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        payload: dict[str, Any] | None = None,
        started: float | None = None,
    ):
        self._started = time.monotonic() if started is None else started
        self.config = config = resolve(config)
        self.folder = folder
        self.device = choose_device(config.device)
        torch.manual_seed(config.seed)
        self.planner = planner_from(config, config.planner)
        self.train_planner = planner_from(config, config.train_planner or config.planner)
        self.counters = Counters(**payload["counters"]) if payload else Counters()
        capacity = replay_capacity(config)
        self.envs = make_envs(config, config.num_envs, self.device)
        rows = side_by_side_envs(config.eval.num_envs, config.eval.episodes)
        self.eval_envs = make_envs(config, rows, self.device)
        action_dim = self.envs.single_action_space.shape[0]
        if payload:
            self.agent = load_agent(payload, config, action_dim, self.device)
        else:
            self.agent = make_agent(config, action_dim, self.device)
        self.replay, self.replay_line = self._make_replay(capacity, action_dim)
        # A resumed run collects from seeds it has not seen.
        seed = config.seed * 1_000_003 + self.counters.episodes
        self.collector = Collector(self.envs, self.agent, self.replay, self.counters, seed % 2**31)
        self.evaluation: Evaluation | None = None  # the last one
        self._set_up = False  # whether an update was made

    def _make_replay(self, capacity: int, action_dim: int) -> tuple[Replay, str]:
        config = self.config
        required = capacity * frame_bytes(action_dim)
        device, memmap, line = choose_storage(config.replay.storage, required, self.device, self.folder.path)
        replay = Replay(capacity, action_dim, config.num_envs, device=device, memmap=memmap, seed=config.seed)
        return replay, f"{line}, {capacity:,} frames"

    def run(self) -> None:
        """Train until `env_steps`; the last evaluation is left in `self.evaluation`."""
        config, counters = self.config, self.counters
        # Deleted and written only now: a run that could not be set up leaves its folder as it was.
        if config.overwrite and not config.resume:
            RunFolder.create(self.folder.path, overwrite=True)
        self.folder.write_config(to_yaml(config))
        self.folder.write_versions({"device": device_name(self.device)})
        with (
            Logger(self.folder, config.logger) as logger,
            Progress(config.env_steps, counters.env_steps) as progress,
        ):
            if counters.env_steps:
                logger.truncate(counters.env_steps)
            for line in self._introduction():
                progress.line(line)
            self._profiler = Profiler(self.folder.path / "profile", self.device, config.profile, progress.line)
            next_eval = (counters.env_steps // config.eval.every + 1) * config.eval.every
            self._ratio = self._collect_seed_episodes(logger, progress)
            train_round = self._sequential_round if config.num_envs == 1 else self._interleaved_round
            next_round = counters.env_steps
            while counters.env_steps < config.env_steps:
                next_round = min(next_round + config.train.every, config.env_steps)
                metrics, returns = train_round(next_round, progress)
                logger.write(asdict(counters), metrics.read() | _train_returns(returns))
                progress.update(counters.env_steps, counters.updates, train_return=returns[-1] if returns else None)
                if counters.env_steps >= min(next_eval, config.env_steps):
                    next_eval = (counters.env_steps // config.eval.every + 1) * config.eval.every
                    self._save(progress)
                    self._evaluate(logger, progress)
            if self.evaluation is None:  # the seed episodes alone reached the end
                self._save(progress)
                self._evaluate(logger, progress)
            self._profiler.close()
            if self.device.type == "cuda":
                progress.line(f"peak GPU memory {torch.cuda.max_memory_allocated(self.device) / GIB:.2f} GiB")

    def close(self) -> None:
        """End the environments' workers."""
        self.envs.close()
        self.eval_envs.close()

    def _introduction(self) -> list[str]:
        config = self.config
        agent = {"dreamer": "Dreamer", "planet": "PlaNet (world model alone)"}[config.agent]
        acting = config.planner
        if config.train_planner not in (None, config.planner):
            acting = f"{config.train_planner} in training, {config.planner} in evaluation,"
        return [
            f"{config.env}: {agent}, acted by {acting} on {device_name(self.device)}, run folder {self.folder.path}",
            f"{config.env_steps:,} env steps = {config.env_steps // config.action_repeat:,} agent steps "
            f"(action repeat {config.action_repeat}); {config.train.updates} updates every "
            f"{config.train.every:,} env steps",
            "1 environment: collecting and updating take turns (sequential, as in the paper)"
            if config.num_envs == 1
            else f"{config.num_envs} environments, planned in one batch: they step while updates run (interleaved)",
            self.replay_line,
        ]

    def _collect_seed_episodes(self, logger: Logger, progress: Progress) -> UpdateRatio:
        """Play them; what is owed from then on."""
        config, counters, noise = self.config, self.counters, self.config.train.action_noise
        progress.update(counters.env_steps, counters.updates, "seed episodes")
        before, began = counters.env_steps, time.monotonic()
        # A resumed run has networks but no replay: its first episodes come from its planner, not at random.
        resumed = counters.updates > 0
        planner = self.train_planner if resumed else None
        returns = self.collector.collect_episodes(config.train.seed_episodes, planner, noise)
        self._seed_seconds = time.monotonic() - began
        logger.write(asdict(counters), _train_returns(returns))
        progress.line(f"{len(returns)} seed episodes, mean return {np.mean(returns):.1f}")
        start = before if resumed else counters.env_steps
        ratio = UpdateRatio(config.train.updates, config.train.every, start, config.env_steps)
        self._update(ratio.issue(counters.env_steps), MetricMeans(), progress)  # none, but for a resumed run
        return ratio

    def _sequential_round(self, env_steps: int, progress: Progress) -> tuple[MetricMeans, list[float]]:
        """The updates of a round, then steps until the run stands at `env_steps`; metrics, and returns of episodes."""
        counters, train = self.counters, self.config.train
        metrics, returns = MetricMeans(), []
        progress.update(counters.env_steps, counters.updates, "updating")
        self._update(train.updates, metrics, progress)
        progress.update(counters.env_steps, counters.updates, "collecting")
        while counters.env_steps < env_steps:
            self.collector.send(self.train_planner, train.action_noise)
            returns += self.collector.receive()
            self._profiler.after_step()
        return metrics, returns

    def _interleaved_round(self, env_steps: int, progress: Progress) -> tuple[MetricMeans, list[float]]:
        """Steps until the run stands at `env_steps`, with the updates owed while they are made; as above."""
        counters, train = self.counters, self.config.train
        metrics, returns = MetricMeans(), []
        in_flight = self.config.num_envs * self.config.action_repeat
        while True:
            self.collector.send(self.train_planner, train.action_noise)
            self._update(self._ratio.issue(counters.env_steps + in_flight), metrics, progress)
            returns += self.collector.receive()
            self._profiler.after_step()
            progress.update(counters.env_steps, counters.updates, "training")
            if counters.env_steps >= env_steps:
                return metrics, returns

    def _update(self, count: int, metrics: MetricMeans, progress: Progress) -> None:
        """`count` updates, whose metrics are added to `metrics`. On a GPU they are asked for, not waited for."""
        replay = self.config.replay
        for left in range(count, 0, -1):
            self._profiler.before_update(left)
            with record_function("update"):
                batch = self.replay.sample(replay.batch_size, replay.sequence_length, self.device)
                metrics.add(self.agent.update(batch))
            self.counters.updates += 1
            if not self._set_up:
                self._set_up = True
                self._report_set_up(progress)

    def _report_set_up(self, progress: Progress) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.monotonic() - self._started - self._seed_seconds
        progress.line(f"set-up before the first update: {seconds:.1f} s, beside {self._seed_seconds:.1f} s of episodes")

    def _evaluate(self, logger: Logger, progress: Progress) -> None:
        config, counters = self.config, self.counters
        self._profiler.finish()  # an evaluation would swell it
        progress.update(counters.env_steps, counters.updates, "evaluating")
        trace_steps = config.eval.video_steps if config.eval.video else 0
        self.evaluation = evaluate(
            self.agent, self.planner, self.eval_envs, config.eval.episodes, config.eval.seed, trace_steps
        )
        summary = self.evaluation.summary()
        logger.write(asdict(counters), {f"eval/{name}": value for name, value in summary.items()})
        progress.update(counters.env_steps, counters.updates, eval_return=summary["return_mean"])
        progress.line(
            f"evaluation at {counters.env_steps:,} env steps: return {summary['return_mean']:.1f} "
            f"± {summary['return_std']:.1f} over {config.eval.episodes} episodes"
        )
        if trace_steps:
            stem = self.folder.videos / f"{counters.env_steps:08d}"
            try:
                write_visuals(stem, self.agent, self.planner, self.evaluation, config.env)
            except OSError as error:  # a full disk or no ffmpeg costs the video, not the run
                progress.line(f"no video at {counters.env_steps:,} env steps: {error}")

    def _save(self, progress: Progress) -> None:
        path = checkpoint_path(self.folder.checkpoints, self.counters.env_steps)
        payload = {
            "config": to_dict(self.config),
            "counters": asdict(self.counters),
            "action_dim": self.agent.model.action_dim,
            "agent": self.agent.state_dict(),
        }
        save_checkpoint(path, payload)
        prune(self.folder.checkpoints, self.config.train.keep_checkpoints)
        progress.line(f"checkpoint {path}")


def write_visuals(stem: Path, agent: Dreamer, planner, evaluation: Evaluation, env: str) -> list[Path]:
    """`<stem>.mp4` of an evaluation's traced episode and `<stem>-decision.png` from its middle; what was written."""
    video, picture = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}-decision.png")
    episode_video(video, agent, evaluation.trace)
    drawn = decision(picture, agent, planner, evaluation.trace, len(evaluation.trace.image) // 2, env)
    return [video, picture] if drawn else [video]


def _train_returns(returns: list[float]) -> dict[str, float]:
    return {"train/return": float(np.mean(returns))} if returns else {}


def prepare(config: Config) -> tuple[RunFolder, dict[str, Any] | None]:
    """The run folder and, with `resume`, its last checkpoint."""
    if config.resume:
        folder = RunFolder.open(config.resume)
        payload = load_checkpoint(folder.path)
        done = payload["counters"]["env_steps"]
        if done >= config.env_steps:
            raise UserError(f"{folder.path} has reached its {done:,} env steps: give more with --env-steps")
    else:
        try_env(config.env, config.num_envs, **env_settings(config))
        path = Path(config.run_dir or default_run_dir(config))
        # What is to be overwritten is deleted when the new run is ready to start, not before.
        folder = RunFolder(path) if config.overwrite and path.exists() else RunFolder.create(path)
        payload = None
    return folder, payload
