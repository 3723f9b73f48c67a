"""Stepping environments with an agent, and storing what happened."""

from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch

from dreamer_mpc.agent import Carry, Dreamer
from dreamer_mpc.errors import UserError
from dreamer_mpc.planners import Planner
from dreamer_mpc.replay import Episode, Replay
from envs import reset_rows


@dataclass
class Counters:
    """Where a run stands. env_steps = agent_steps x action repeat, but for steps that an episode's end cut short."""

    env_steps: int = 0  # steps of the simulator
    agent_steps: int = 0  # actions executed
    updates: int = 0  # gradient steps
    episodes: int = 0  # training episodes finished


@dataclass
class _Stage:
    """The episode in progress of one environment, frame by frame."""

    image: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)

    def append(self, image: np.ndarray, action: np.ndarray, reward: float) -> None:
        self.image.append(image)
        self.action.append(action)
        self.reward.append(reward)

    def episode(self) -> Episode:
        is_first = np.arange(len(self.reward)) == 0
        return Episode(
            np.stack(self.image), np.stack(self.action), np.array(self.reward, dtype=np.float32), is_first
        )


class Collector:
    """Steps training environments, one batched plan a step, and adds each finished episode to replay.

    action[t] led into image[t] and reward[t] was paid on arriving there; at an episode's first image both are zero.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv, agent: Dreamer, replay: Replay, counters: Counters, seed: int):
        self.envs, self.agent, self.replay, self.counters = envs, agent, replay, counters
        self._rng = np.random.default_rng(seed)
        self._image, _ = envs.reset(seed=[seed + i for i in range(envs.num_envs)])  # [B, H, W, C]
        self._is_first = np.ones(envs.num_envs, dtype=bool)
        self._carry: Carry = agent.initial(envs.num_envs)
        self._stages = [self._start(i) for i in range(envs.num_envs)]

    def collect(self, env_steps: int, planner: Planner | None, action_noise: float = 0.0) -> list[float]:
        """Step until the run stands at `env_steps`; returns of the episodes that ended. No planner: random actions."""
        returns = []
        while self.counters.env_steps < env_steps:
            returns += self._step(planner, action_noise)
        return returns

    def collect_episodes(self, episodes: int) -> list[float]:
        """Step with random actions until `episodes` more have ended."""
        returns: list[float] = []
        while len(returns) < episodes:
            returns += self._step(None, 0.0)
        return returns

    def _step(self, planner: Planner | None, action_noise: float) -> list[float]:
        actions = self._random() if planner is None else self._plan(planner, action_noise)  # [B, A]
        image, reward, terminated, truncated, info = self.envs.step(actions)
        self.counters.env_steps += int(np.sum(info["env_steps"]))
        self.counters.agent_steps += self.envs.num_envs
        done = terminated | truncated
        for i, stage in enumerate(self._stages):
            stage.append(image[i], actions[i], float(reward[i]))
        self._image, self._is_first = image, done
        return self._finish(done) if done.any() else []

    def _finish(self, done: np.ndarray) -> list[float]:
        """Store the episodes that ended, and start new ones in their rows."""
        returns = []
        for i in np.flatnonzero(done):
            if (length := len(self._stages[i].reward)) > self.replay.capacity:
                raise UserError(
                    f"an episode of {length} frames does not fit a replay of {self.replay.capacity}: "
                    f"raise --replay.capacity and --env-steps, or end episodes earlier with --max-env-steps"
                )
            self.replay.add(self._stages[i].episode())
            returns.append(float(sum(self._stages[i].reward)))
            self.counters.episodes += 1
        self._image, _ = reset_rows(self.envs, done)
        for i in np.flatnonzero(done):
            self._stages[i] = self._start(int(i))
        return returns

    def _start(self, i: int) -> _Stage:
        stage = _Stage()
        stage.append(self._image[i], np.zeros(self.envs.single_action_space.shape, dtype=np.float32), 0.0)
        return stage

    def _random(self) -> np.ndarray:
        shape = (self.envs.num_envs, *self.envs.single_action_space.shape)
        # Nothing is carried while no planner acts; one that starts in mid-episode starts from the zero state.
        self._carry = self.agent.initial(self.envs.num_envs)
        return self._rng.uniform(-1, 1, shape).astype(np.float32)

    def _plan(self, planner: Planner, action_noise: float) -> np.ndarray:
        device = self.agent.device
        image, is_first = (torch.from_numpy(x).to(device) for x in (self._image, self._is_first))
        action, self._carry, *_ = self.agent.act(planner, self._carry, image, is_first, action_noise)
        return action.cpu().numpy()
