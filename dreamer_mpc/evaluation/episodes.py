"""Episodes under any planner, without exploration noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dreamer_mpc.agents.protocol import Act, Agent, Carry
from dreamer_mpc.evaluation.summary import summarise_scores
from dreamer_mpc.planners import Planner
from dreamer_mpc.report.rows import Row
from dreamer_mpc.util.device import preserved_rng
from envs import reset_rows


@dataclass
class EpisodeRecording:
    """The first T steps of one episode, for videos: images, posterior states, actions, rewards and plan values."""

    image: list[np.ndarray] = field(default_factory=list)  # uint8 [H, W, C]
    state: list[Float[Tensor, " S"]] = field(default_factory=list)  # posterior, on the agent's device
    action: list[Float[Tensor, " A"]] = field(default_factory=list)  # chosen on seeing the image
    reward: list[float] = field(default_factory=list)  # received for that action
    value: list[float] = field(default_factory=list)  # J of the plan made on seeing the image
    memory: list = field(default_factory=list)  # of the planner, one row, before it planned

    def append(self, image: np.ndarray, before: Carry, act: Act, reward: float, is_first: bool) -> None:
        """Row 0 of a step."""
        self.image.append(image)
        self.state.append(act.carry.state[0])
        self.action.append(act.action[0])
        self.reward.append(reward)
        self.value.append(float(act.value[0]))
        memory = None if before.memory is None or is_first else type(before.memory)(*(x[:1] for x in before.memory))
        self.memory.append(memory)


@dataclass
class Evaluation:
    """Returns of E episodes under one planner, and the cost of an action."""

    returns: Float[np.ndarray, " E"]
    lengths: list[int]  # agent steps of each episode
    ms_per_action: float  # median wall time of one call: observe, plan, copy back
    batch: int  # environments planned for in that call
    model_evaluations: int  # per action
    recording: EpisodeRecording

    def row(self, planner: str) -> Row:
        """The row for logs and tables, under the name of the planner."""
        ms, envs = [self.ms_per_action], [self.batch]
        return summarise_scores(planner, self.returns[:, None], None, ms, envs, self.model_evaluations)


def evaluate(
    agent: Agent,
    planner: Planner,
    envs: gymnasium.vector.VectorEnv,
    episodes: int,
    seed: int,
    recorded_steps: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run `episodes` episodes, episode e from environment seed `seed + e`, in parallel over the rows of `envs`.

    The first `recorded_steps` steps of episode 0 are kept. `on_step` is called after each step with the step count.
    The state of torch's generator is restored at the end, so that an evaluation does not change the training around it.
    """
    with preserved_rng(agent.device):
        torch.manual_seed(seed)
        return _evaluate(agent, planner, envs, episodes, seed, recorded_steps, on_step)


def _evaluate(
    agent: Agent,
    planner: Planner,
    envs: gymnasium.vector.VectorEnv,
    episodes: int,
    seed: int,
    recorded_steps: int,
    on_step: Callable[[int], None] | None,
) -> Evaluation:
    rows = envs.num_envs
    episode = np.arange(rows)  # the episode each row plays; those past the last are idle
    image, _ = envs.reset(seed=[seed + int(e) for e in episode])
    is_first = np.ones(rows, dtype=bool)
    carry, recording, times = agent.initial(rows), EpisodeRecording(), []
    returns, lengths = np.zeros(episodes), [0] * episodes
    next_episode = rows
    while (episode < episodes).any():
        start = time.perf_counter()
        tensors = (torch.from_numpy(x).to(agent.device) for x in (image, is_first))
        act = agent.act(planner, carry, *tensors)
        executed = act.action.cpu().numpy()  # waits for the device
        times.append(time.perf_counter() - start)
        seen = image
        image, reward, terminated, truncated, _ = envs.step(executed)
        if episode[0] == 0 and len(recording.image) < recorded_steps:
            recording.append(seen[0], carry, act, float(reward[0]), bool(is_first[0]))
        carry = act.carry
        for i in np.flatnonzero(episode < episodes):
            returns[episode[i]] += reward[i]
            lengths[episode[i]] += 1
        is_first = terminated | truncated
        if is_first.any():
            seeds: list[int | None] = [None] * rows
            for i in np.flatnonzero(is_first):
                episode[i], seeds[i], next_episode = next_episode, seed + next_episode, next_episode + 1
            image, _ = reset_rows(envs, is_first, seeds)
        if on_step:
            on_step(len(times))
    return Evaluation(returns, lengths, 1e3 * float(np.median(times)), rows, act.model_evaluations, recording)
