"""Messages of a training run to its user."""

import time
from collections.abc import Callable, Iterator

import torch

from dreamer_mpc.config import Config
from dreamer_mpc.config.schema import RenderQuality
from dreamer_mpc.data.collect import Counters
from dreamer_mpc.planners import Planner, Policy
from dreamer_mpc.report.rows import Row
from dreamer_mpc.report.words import mean_and_spread, plural
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.training.beside import Evaluator, plays_beside
from dreamer_mpc.training.progress import SEEDING
from dreamer_mpc.training.schedule import Due
from dreamer_mpc.util.device import device_name
from dreamer_mpc.util.memory import GIB

AGENTS = {("gaussian", "dreamer"): "Dreamer", ("categorical", "v3"): "DreamerV3"}  # by world model and behavior
PHASES = {Due.SEED_STEP: SEEDING, Due.UPDATE: "updating", Due.EVALUATION: "evaluating", Due.RESULT: "evaluating"}


def agent_name(config: Config) -> str:
    """The agent that `config` trains, in words."""
    world, behavior = config.world_model.kind, config.behavior.kind
    if config.agent == "planet":
        return f"PlaNet (world model alone{', categorical' if world == 'categorical' else ''})"
    return AGENTS.get((world, behavior), f"Dreamer ({world} world model, {behavior} behavior)")


def introduction(config: Config, train_planner: Planner, device: torch.device, folder: RunFolder) -> Iterator[str]:
    """Summary of the agent, the settings and the device."""
    acting = f"{agent_name(config)}, acted by {_acting(config, train_planner)}"
    yield f"{config.env}: {acting} on {device_name(device)}, run folder {folder.path}"
    yield (
        f"{config.env_steps:,} env steps = {config.env_steps // config.action_repeat:,} agent steps "
        f"(action repeat {config.action_repeat}); {plural(config.train.updates, 'update')} every "
        f"{config.train.every:,} env steps"
    )
    if plays_beside(config, device):
        yield "evaluations are played beside training, in a process of their own"
    if quality := drawn_apart(config):
        yield f"evaluations are drawn with {quality}, training with {config.render_quality}"
    if config.num_envs == 1:
        yield "1 environment: collecting and updating take turns (sequential, as in the paper)"
    else:
        yield f"{config.num_envs} environments, planned in one batch: they step while updates run (interleaved)"


def _acting(config: Config, train_planner: Planner) -> str:
    """What chooses actions, and where those of the bare policy are samples."""
    collects = train_planner == Policy(sample=True)
    evaluates = config.planner == "policy" and config.policy.sample
    if config.train_planner not in (None, config.planner):
        trains = f"{config.train_planner}{' (sampled while collecting)' if collects else ''}"
        return f"{trains} in training, {config.planner}{' (sampled)' if evaluates else ''} in evaluation,"
    where = {(True, True): "", (True, False): " while collecting", (False, True): " in evaluation"}
    return config.planner + (f" (sampled{where[collects, evaluates]})" if collects or evaluates else "")


def phase(due: Due, num_envs: int) -> str:
    """The current phase of a run, for the display."""
    if due is Due.STEP:
        return "collecting" if num_envs == 1 else "training"
    return PHASES[due]


def drawn_apart(config: Config) -> RenderQuality | None:
    """The render quality of evaluations, where training has another one."""
    return config.evaluated_in if config.evaluated_in != config.render_quality else None


def evaluated(row: Row, env_steps: int, quality: RenderQuality | None) -> str:
    """The result of an evaluation; `quality` as from `drawn_apart`."""
    words = mean_and_spread(row["return_mean"], row["return_std"], row["episodes"])
    drawn = f", drawn with {quality}" if quality else ""
    return f"evaluation at {env_steps:,} env steps: return {words} over {plural(row['episodes'], 'episode')}{drawn}"


def evaluations_beside(evaluator: Evaluator) -> Iterator[str]:
    """What evaluations beside training took, and what training waited for them."""
    if evaluator.number:
        yield (
            f"{plural(evaluator.number, 'evaluation')} beside training took {evaluator.seconds:.1f} s; "
            f"training waited {evaluator.waited:.1f} s for them and for the start of their process"
        )


def terminated(env: str) -> str:
    """Advice where an environment terminates episodes and the world model does not predict it."""
    return (
        f"{env} terminated an episode: imagination and values go on past it, "
        "unless a run is started with --world-model.continuation"
    )


def more_seeding(config: Config) -> str:
    """Why there are more seed episodes than were asked for."""
    return (
        f"{plural(config.train.seed_episodes, 'seed episode')} gave no {_sequence(config)}, which an update takes: "
        "more of them are played until there is one"
    )


def endless_seeding(config: Config, ended: int, left: int, env_steps: int) -> str:
    """Advice where a run reached its length in its seed episodes: `ended` of them are over, `left` are still to end."""
    over = f"the run is over after {env_steps:,} env steps, of which the seed episodes took all: "
    if left <= 0:
        return (
            f"{over}{ended} ended, and gave no {_sequence(config)}, which an update takes; raise --env-steps, or start "
            "another run with a lower --replay.sequence-length"
        )
    return (
        f"{over}{ended} of {ended + left} ended; raise --env-steps, lower --train.seed-episodes, or shorten episodes "
        "with --max-env-steps"
    )


def _sequence(config: Config) -> str:
    where = "environment" if config.replay.across_episodes else "episode"
    return f"{config.replay.sequence_length} frames of one {where}"


def missing_metrics(there: int, written: int, env_steps: int) -> Iterator[str]:
    """A line where a resumed run lacks some of the metrics that it wrote before its checkpoint."""
    if there < written:
        yield (
            f"metrics.jsonl has {there} of the {written} records that were written up to env step {env_steps:,}: "
            "the others are missing from it, and the run goes on"
        )


def peak_memory(device: torch.device) -> Iterator[str]:
    """Peak memory use of a GPU."""
    if device.type == "cuda":
        yield f"peak GPU memory {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB"


class Throughput:
    """Env steps and updates a second of training, between records; evaluations do not count."""

    def __init__(self, counters: Counters, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.restart(counters)

    def restart(self, counters: Counters) -> None:
        """Count from here on."""
        self._since, self._env_steps, self._updates = self._clock(), counters.env_steps, counters.updates

    def read(self, counters: Counters) -> dict[str, float]:
        """The rates since the last call, for metrics.jsonl; nothing where no time has passed."""
        seconds = self._clock() - self._since
        env_steps, updates = counters.env_steps - self._env_steps, counters.updates - self._updates
        self.restart(counters)
        if seconds <= 0:
            return {}
        return {"train/env_steps_per_s": env_steps / seconds, "train/updates_per_s": updates / seconds}


class SetUpTime:
    """Reports once, after the first update of this process, the set-up time since `started`, a `time.monotonic`."""

    def __init__(self, started: float, device: torch.device):
        self.started, self.seed_seconds = started, 0.0  # seconds of seed episodes
        self._device, self._said = device, False

    def after_update(self) -> Iterator[str]:
        """One line after the first update, which is waited for."""
        if self._said:
            return
        self._said = True
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.monotonic() - self.started - self.seed_seconds
        beside = f", beside {self.seed_seconds:.1f} s of seed episodes" if self.seed_seconds else ""
        yield f"set-up before the first update: {seconds:.1f} s{beside}"
