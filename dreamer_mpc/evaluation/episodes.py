"""Episodes under any planner, without exploration noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agents.protocol import Act, Agent, Carry
from dreamer_mpc.envs import UNKNOWN, EnvError, Facts, reset_rows
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.evaluation.summary import summarise_scores
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.protocol import bounded
from dreamer_mpc.report.rows import Row
from dreamer_mpc.report.words import plural
from dreamer_mpc.util.device import Images, images_on, images_on_host, preserved_rng
from dreamer_mpc.util.encode import to_jpeg

MOST_REPEATS = 3  # of one episode


@dataclass
class EpisodeRecording:
    """The first T steps of one episode, for videos: images, posterior states, actions, rewards and plan values."""

    image: list[np.ndarray] = field(default_factory=list)  # uint8 [H, W, C]
    state: list[Float[Tensor, " S"]] = field(default_factory=list)  # posterior, on the agent's device
    action: list[Float[Tensor, " A"]] = field(default_factory=list)  # chosen on seeing the image
    reward: list[float] = field(default_factory=list)  # received for that action
    value: list[float] = field(default_factory=list)  # J of the plan made on seeing the image
    memory: list = field(default_factory=list)  # of the planner, one row, before it planned
    view: list[bytes | None] = field(default_factory=list)  # the frame at full size, as JPEG; None: there was none
    facts: Facts = UNKNOWN

    def append(
        self, image: Images, view: np.ndarray | None, before: Carry, act: Act, reward: float, is_first: bool
    ) -> None:
        """Row 0 of a step; `view` is the frame at full size of what `image` shows to the agent."""
        self.image.append(images_on_host(image))
        self.view.append(None if view is None else to_jpeg(view))
        self.state.append(act.carry.state[0])
        self.action.append(act.action[0])
        self.reward.append(reward)
        self.value.append(float(act.value[0]))
        memory = None if before.memory is None or is_first else type(before.memory)(*(x[:1] for x in before.memory))
        self.memory.append(memory)


class Repeats:
    """The episodes that are played again because they ended by an accident, and how often."""

    def __init__(self) -> None:
        self.lost, self.failed, self.cut_short = 0, 0, 0  # by a lost process; by a simulator error; by one again
        self._times: dict[int, int] = {}  # of each episode

    @property
    def counts(self) -> tuple[int, int, int]:
        """Lost processes, simulator errors, and episodes that count as ended by one."""
        return self.lost, self.failed, self.cut_short

    def needs(self, episode: int, seed: int, info: dict[str, np.ndarray], row: int) -> bool:
        """Whether the `episode` that just ended in `row` is to be played again; EnvError if its process is lost again.

        A simulator that fails each time would stop every evaluation of this agent: then the episode counts as ended.
        """
        lost = "lost" in info and bool(info["lost"][row])
        failed = "simulator_error" in info and bool(info["simulator_error"][row])
        if not lost and not failed:
            return False
        self.lost += lost
        self.failed += failed
        self._times[episode] = self._times.get(episode, 0) + 1
        if self._times[episode] <= MOST_REPEATS:
            return True
        if lost:
            raise EnvError(
                f"the process of the evaluation episode with seed {seed} was lost {MOST_REPEATS + 1} times "
                f"({info['death'][row]}): if memory ran out, lower --eval.num-envs (--num-envs of eval and compare)"
            )
        self.cut_short += 1
        return False


@dataclass
class Evaluation:
    """Returns of E episodes under one planner, and the cost of an action."""

    returns: Float[np.ndarray, " E"]
    lengths: list[int]  # agent steps of each episode
    ms_per_action: float  # median wall time of one call: observe, plan, copy back
    batch: int  # environments planned for in that call
    model_evaluations: int  # per action
    recording: EpisodeRecording
    lost_environments: int = 0  # times that an episode was played again because its process was lost
    simulator_errors: int = 0  # times that the simulator failed in an episode
    cut_short: int = 0  # episodes in which it failed each time; they count up to there

    def mishaps(self) -> str | None:
        """What happened to the environments, in words."""
        counts = {"a lost process": self.lost_environments, "a simulator error": self.simulator_errors}
        words = [f"{plural(count, 'time')} after {what}" for what, count in counts.items() if count]
        if not words:
            return None
        kept = f"; {plural(self.cut_short, 'episode')} in which it came each time counts up to there"
        return f"played again from its seed, {' and '.join(words)}{kept if self.cut_short else ''}"

    def counts(self) -> dict[str, float]:
        """The mishaps for metrics.jsonl, as `train/...` counts those of training."""
        counts = {"lost_environments": self.lost_environments, "simulator_errors": self.simulator_errors}
        return {f"eval/{name}": count for name, count in counts.items() if count}

    def row(self, planner: str) -> Row:
        """The row for logs and tables, under the name of the planner."""
        ms, envs = [self.ms_per_action], [self.batch]
        return summarise_scores(planner, self.returns[:, None], None, ms, envs, self.model_evaluations)


def evaluate(
    agent: Agent,
    planner: Planner,
    envs: RowVectorEnv,
    episodes: int,
    seed: int,
    recorded_steps: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run `episodes` episodes, episode e from environment seed `seed + e`, in parallel over the rows of `envs`.

    An episode whose process is lost, or whose simulator fails, is played again from its seed (`Repeats`). The first
    `recorded_steps` steps of episode 0 are kept, with frames at full size, which change nothing that the agent sees.
    `on_step` is called after each step with the count of steps and of ended episodes. The state of torch's generator is
    restored at the end, so that an evaluation does not change the training around it.
    """
    with preserved_rng(agent.device):
        torch.manual_seed(seed)
        return _evaluate(agent, planner, envs, episodes, seed, recorded_steps, on_step)


def _evaluate(
    agent: Agent,
    planner: Planner,
    envs: RowVectorEnv,
    episodes: int,
    seed: int,
    recorded_steps: int,
    on_step: Callable[[int, int], None] | None,
) -> Evaluation:
    rows = envs.num_envs
    episode = np.arange(rows)  # the episode each row plays; those past the last are idle
    image, _ = envs.reset(seed=[seed + int(e) for e in episode])
    is_first = np.ones(rows, dtype=bool)
    facts = envs.facts() if recorded_steps else UNKNOWN
    carry, recording, times = agent.initial(rows), EpisodeRecording(facts=facts), []
    returns, lengths = np.zeros(episodes), [0] * episodes
    repeats, next_episode = Repeats(), rows
    while (episode < episodes).any():
        start = time.perf_counter()
        tensors = images_on(image, agent.device), torch.from_numpy(is_first).to(agent.device)
        act = agent.act(planner, carry, *tensors)
        executed = bounded(planner, act.action.cpu().numpy())  # waits for the device
        times.append(time.perf_counter() - start)
        seen = image
        recorded = episode[0] == 0 and len(recording.image) < recorded_steps
        view = envs.view(0) if recorded else None
        image, reward, terminated, truncated, info = envs.step(executed)
        if recorded:
            recording.append(seen[0], view, carry, act, float(reward[0]), bool(is_first[0]))
        carry = act.carry
        for i in np.flatnonzero(episode < episodes):
            returns[episode[i]] += reward[i]
            lengths[episode[i]] += 1
        is_first = terminated | truncated
        if is_first.any():
            seeds: list[int | None] = [None] * rows
            for i in map(int, np.flatnonzero(is_first)):
                if episode[i] < episodes and repeats.needs(int(episode[i]), seed + int(episode[i]), info, i):
                    returns[episode[i]], lengths[episode[i]] = 0.0, 0
                    recording = EpisodeRecording(facts=facts) if episode[i] == 0 else recording
                else:
                    episode[i], next_episode = next_episode, next_episode + 1
                seeds[i] = seed + int(episode[i])
            image, _ = reset_rows(envs, is_first, seeds)
        if on_step:
            on_step(len(times), min(next_episode, episodes) - int((episode < episodes).sum()))
    ms = 1e3 * float(np.median(times))
    return Evaluation(returns, lengths, ms, rows, act.model_evaluations, recording, *repeats.counts)
