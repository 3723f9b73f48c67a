"""Stepping environments with an agent, and storing what happened."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.profiler import record_function

from dreamer_mpc.agent import Carry, Dreamer
from dreamer_mpc.device import to_device
from dreamer_mpc.planners import Planner
from dreamer_mpc.replay import Replay
from envs import reset_rows
from envs.vector import LocalVectorEnv, WorkerVectorEnv


@dataclass
class Counters:
    """Where a run stands. env_steps = agent_steps x action repeat, but for steps that an episode's end cut short."""

    env_steps: int = 0  # steps of the simulator
    agent_steps: int = 0  # actions executed
    updates: int = 0  # gradient steps
    episodes: int = 0  # training episodes finished


class Collector:
    """Steps training environments, one batched plan a step, and appends every frame to replay, row i to stream i.

    action[t] led into image[t] and reward[t] was paid on arriving there; at an episode's first image both are zero.
    A step is `send`, then `receive`; in between workers step and render, and the caller may do something else.
    """

    def __init__(
        self,
        envs: LocalVectorEnv | WorkerVectorEnv,
        agent: Dreamer,
        replay: Replay,
        counters: Counters,
        seed: int,
    ):
        self.envs, self.agent, self.replay, self.counters = envs, agent, replay, counters
        self._rng = np.random.default_rng(seed)
        self._rows = np.arange(envs.num_envs)
        self._shape = (envs.num_envs, *envs.single_action_space.shape)
        self._shared = replay.device.type == agent.device.type
        self._carry: Carry = agent.initial(envs.num_envs)
        self._action: Float[np.ndarray, "B A"] | Float[Tensor, "B A"]  # sent, and not received yet
        self._returns = np.zeros(envs.num_envs)  # of the episodes in progress
        image, _ = envs.reset(seed=[seed + i for i in range(envs.num_envs)])  # [B, H, W, C]
        self._none_first = torch.zeros(envs.num_envs, dtype=torch.bool, device=agent.device)
        self._image, self._is_first = self._begin(self._rows, image), ~self._none_first

    def collect(self, env_steps: int, planner: Planner | None, action_noise: float = 0.0) -> list[float]:
        """Step until the run stands at `env_steps`; returns of the episodes that ended. No planner: random actions."""
        returns = []
        while self.counters.env_steps < env_steps:
            self.send(planner, action_noise)
            returns += self.receive()
        return returns

    def collect_episodes(self, episodes: int, planner: Planner | None = None, action_noise: float = 0.0) -> list[float]:
        """Step until `episodes` more have ended; their returns."""
        returns: list[float] = []
        while len(returns) < episodes:
            self.send(planner, action_noise)
            returns += self.receive()
        return returns

    def send(self, planner: Planner | None, action_noise: float = 0.0) -> None:
        """Plan for all environments and let them begin the step. No planner: random actions."""
        with record_function("plan"):
            if planner is None:
                # Nothing is carried while no planner acts; one that starts in mid-episode starts from the zero state.
                self._carry = self.agent.initial(len(self._rows))
                self._action = executed = self._rng.uniform(-1, 1, self._shape).astype(np.float32)
            else:
                act = self.agent.act(planner, self._carry, self._image, self._is_first, action_noise)
                executed = act.action.cpu().numpy()  # waits for the device
                self._action, self._carry = act.action if self._shared else executed, act.carry
        self.envs.step_async(executed)

    def receive(self) -> list[float]:
        """Wait for the step's end and store it; returns of the episodes that ended, whose rows start new ones."""
        with record_function("wait for environments"):
            image, reward, terminated, truncated, info = self.envs.step_wait()
        done = terminated | truncated
        self.counters.env_steps += int(np.sum(info["env_steps"]))
        self.counters.agent_steps += len(self._rows)
        self._returns += reward
        with record_function("store"):
            self._image = self._store(self._rows, image, self._action, reward, np.zeros_like(done))
        self._is_first = self._none_first
        return self._restart(done) if done.any() else []

    def _restart(self, done: np.ndarray) -> list[float]:
        """Start new episodes in the rows that ended, bool [B]; the returns of the old ones."""
        rows = np.flatnonzero(done)
        returns = self._returns[rows].tolist()
        self._returns[rows] = 0.0
        self.counters.episodes += len(rows)
        with record_function("reset environments"):
            image, _ = reset_rows(self.envs, done)
        at = to_device(torch.from_numpy(rows), self.agent.device)
        self._image = self._image.index_copy(0, at, self._begin(rows, image[rows]))
        self._is_first = to_device(torch.from_numpy(done), self.agent.device)
        return returns

    def _begin(self, rows: np.ndarray, image: np.ndarray) -> UInt8[Tensor, "N H W C"]:
        """Store the first frames of episodes in `rows`; as `_store`."""
        action = np.zeros((len(rows), *self._shape[1:]), dtype=np.float32)
        return self._store(rows, image, action, np.zeros(len(rows)), np.ones(len(rows), dtype=bool))

    def _store(
        self,
        rows: np.ndarray,
        image: np.ndarray,
        action: np.ndarray | Tensor,
        reward: np.ndarray,
        is_first: np.ndarray,
    ) -> UInt8[Tensor, "N H W C"]:
        """Append a frame of each of `rows` to replay; the images on the agent's device, where they are sent once."""
        seen = to_device(torch.from_numpy(image), self.agent.device)
        self.replay.append(rows, seen if self._shared else image, action, reward, is_first)
        return seen
