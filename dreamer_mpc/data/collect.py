"""Stepping environments with an agent, and storing the transitions in replay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.profiler import record_function

from dreamer_mpc.agents.protocol import Agent, Carry
from dreamer_mpc.data.reenact import reenact
from dreamer_mpc.data.replay import Replay
from dreamer_mpc.envs import reset_rows
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.protocol import Memory, bounded
from dreamer_mpc.util.counters import Counters
from dreamer_mpc.util.device import Images, images_on, images_on_host, to_device, to_host
from dreamer_mpc.util.randomness import generator_state, restore_generator


def episode_seed(seed: int, row: int, number: int) -> int:
    """Seed of the `number`-th episode in environment `row` of a run with `seed`; from 0 to 2**31 - 1."""
    return int(np.random.SeedSequence([seed, row, number]).generate_state(1)[0] >> 1)


class _Planned(NamedTuple):
    """A step that was planned."""

    rows: Bool[np.ndarray, " B"]  # the rows that step; the others are idle
    executed: Callable[[], Float[np.ndarray, "B A"]]  # waits for the device
    action: Float[np.ndarray, "B A"] | Float[Tensor, "B A"] | None  # the same on replay's device, if it is there
    carry: Carry  # for the plan after this step
    observed: bool  # by the agent, which inferred latent states of the newest frames


class _Step(NamedTuple):
    """A step that was sent to the environments and whose result is not received yet."""

    rows: Bool[np.ndarray, " B"]
    executed: Float[np.ndarray, "B A"]
    action: Float[np.ndarray, "B A"] | Float[Tensor, "B A"]
    carry: Carry  # for the plan after this step
    observed: bool  # by the agent, which inferred latent states of the newest frames


class Collector:
    """Steps training environments with one batched plan per step; appends every frame to replay, row i to stream i.

    action[t] led into image[t] and reward[t] was paid on arriving there; at an episode's first image both are zero.
    If the environment terminated the episode, its last frame is marked terminal; a truncated episode has no such frame.
    A step is `plan`, `send`, then `receive`. On a GPU the plan is only asked for, and `send` waits for it; after `send`
    workers step and render. In between the caller may do something else. Between two steps, and after a step that
    failed, `state_dict` is consistent. Every episode is reset with its own seed, drawn
    from `seed`, so that an episode in progress can be played again on resume.
    """

    def __init__(
        self,
        envs: RowVectorEnv,
        agent: Agent,
        replay: Replay,
        counters: Counters,
        seed: int,
    ):
        self.envs, self.agent, self.replay, self.counters = envs, agent, replay, counters
        self.simulator_errors = 0  # episodes truncated by a simulator error
        self.lost_environments = 0  # episodes dropped because their worker process was lost
        self.terminations = 0  # episodes terminated by the environment since this collector was created
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._rows = np.arange(envs.num_envs)
        self._shape = (envs.num_envs, *envs.single_action_space.shape)
        self._shared = replay.device.type == agent.device.type
        self._carry: Carry = agent.initial(envs.num_envs)
        self._begun = np.zeros(envs.num_envs, dtype=bool)  # rows that are in an episode
        self._numbers = np.zeros(envs.num_envs, dtype=np.int64)  # of the episodes in progress, or of the next ones
        self._seeds = np.zeros(envs.num_envs, dtype=np.int64)  # of the episodes in progress
        self._actions: list[list[np.ndarray]] = [[] for _ in self._rows]  # executed in them
        self._returns = np.zeros(envs.num_envs)  # of them
        self._none_first = torch.zeros(envs.num_envs, dtype=torch.bool, device=agent.device)
        self._is_first = self._none_first
        shape = (envs.num_envs, *envs.single_observation_space.shape)
        self._image = torch.zeros(shape, dtype=torch.uint8, device=agent.device)
        self._planned: _Planned
        self._sent: _Step

    def collect(self, env_steps: int, planner: Planner | None, action_noise: float = 0.0) -> list[float]:
        """Step until the run has `env_steps`; gives the returns of finished episodes. No planner: random actions."""
        returns = []
        while self.counters.env_steps < env_steps:
            self.plan(planner, action_noise)
            self.send()
            returns += self.receive()
        return returns

    def begin(self, most: int | None = None) -> None:
        """Start episodes in idle rows, until all rows, or `most` of them, are in an episode."""
        waiting = ~self._begun
        if most is not None:
            waiting[np.flatnonzero(waiting)[max(most - int(self._begun.sum()), 0) :]] = False
        if not waiting.any():
            return
        rows, seeds = np.flatnonzero(waiting), [None] * len(self._rows)
        for row in rows:
            seeds[row] = self._seeds[row] = episode_seed(self._seed, int(row), int(self._numbers[row]))
        with record_function("reset environments"):
            image, _ = reset_rows(self.envs, waiting, seeds)
        image = _of_rows(image, rows) if len(rows) < len(self._rows) else image
        action, none = np.zeros((len(rows), *self._shape[1:]), dtype=np.float32), np.zeros(len(rows), dtype=bool)
        self._see(rows, self._store(rows, image, action, np.zeros(len(rows)), ~none, none))
        self._is_first = self._is_first | to_device(torch.from_numpy(waiting), self.agent.device)
        self._begun |= waiting

    def plan(self, planner: Planner | None, action_noise: float = 0.0, most: int | None = None) -> None:
        """Plan a step for all environments. No planner: random actions.

        At most `most` rows (by default all) are in an episode; the others are idle.
        """
        self.begin(most)
        stepping = self._begun.copy()
        with record_function("plan"):
            if planner is None:
                # Random actions carry no state; a planner that takes over in mid-episode starts from the zero state.
                executed = self._rng.uniform(-1, 1, self._shape).astype(np.float32)
                carry = self.agent.initial(len(self._rows))
                self._planned = _Planned(stepping, lambda: executed, None, carry, False)
            else:
                act = self.agent.act(planner, self._carry, self._image, self._is_first, action_noise)
                on_host = to_host(act.action)
                action = act.action if self._shared else None
                self._planned = _Planned(stepping, lambda: bounded(planner, on_host()), action, act.carry, True)

    def send(self) -> None:
        """Wait for the plan, and let the rows in an episode begin the step."""
        rows, wait, action, carry, observed = self._planned
        with record_function("wait for the plan"):
            executed = wait()
        self._sent = _Step(rows, executed, executed if action is None else action, carry, observed)
        self.envs.step_async(executed, rows)

    def receive(self) -> list[float]:
        """Wait for the step to finish and store it; gives the returns of the episodes that ended.

        Idle rows give no frame. Rows whose environment was lost give none either, and the frames of their episode are
        dropped from replay.
        """
        with record_function("wait for environments"):
            image, reward, terminated, truncated, info = self.envs.step_wait()
        nowhere = np.zeros(len(self._rows), dtype=bool)
        lost = info.get("lost", nowhere)
        stepped, executed, action, self._carry, observed = self._sent
        kept, rows = stepped & ~lost, self._rows
        if not kept.all():
            rows = self._rows[kept]
            image, action, reward = _of_rows(image, rows), _of_rows(action, rows), reward[rows]
        self.counters.env_steps += int(np.sum(info["env_steps"]))
        self.counters.agent_steps += len(rows)
        self._returns[rows] += reward
        for row in rows:
            self._actions[row].append(executed[row])
        with record_function("store"):
            if observed and self.replay.states:
                self.replay.remember(rows, self._carry.state)
            none = np.zeros(len(rows), dtype=bool)
            self._see(rows, self._store(rows, image, action, reward, none, terminated[rows]))
        self._is_first = self._none_first
        self.simulator_errors += int(np.sum(info.get("simulator_error", nowhere)))
        self.terminations += int((terminated & kept).sum())
        ended = (terminated | truncated) & kept
        returns = self._returns[ended].tolist()
        self.counters.episodes += len(returns)
        if lost.any():
            self.lost_environments += int(lost.sum())
            self.replay.drop(np.flatnonzero(lost))
        self._leave(ended | lost)
        return returns

    def state_dict(self) -> dict[str, Any]:
        """The state of the episodes in progress, for `load_state_dict`."""
        state, action, memory = self._carry
        empty = np.zeros((0, *self._shape[1:]), dtype=np.float32)
        return {
            "rng": generator_state(self._rng),
            "begun": torch.from_numpy(self._begun.copy()),
            "numbers": torch.from_numpy(self._numbers.copy()),
            "seeds": torch.from_numpy(self._seeds.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "actions": [torch.from_numpy(np.stack(row) if row else empty) for row in self._actions],
            "carry": {"state": state, "action": action, "memory": None if memory is None else memory._asdict()},
            "simulator_errors": self.simulator_errors,
            "lost_environments": self.lost_environments,
        }

    def load_state_dict(self, state: dict[str, Any], with_memory: bool = True) -> list[int]:
        """Restore `state_dict` and play the episodes in progress again up to their last step; replay has their frames.

        Returns the rows where that gives a different image or return: their episode counts as ended. `with_memory`:
        the same planner acts as before.
        """
        restore_generator(self._rng, state["rng"])
        self._begun, self._numbers, self._seeds, self._returns = (
            state[name].numpy().copy() for name in ("begun", "numbers", "seeds", "returns")
        )
        self._actions = [list(row.numpy()) for row in state["actions"]]
        self.simulator_errors, self.lost_environments = state["simulator_errors"], state["lost_environments"]
        device, carry = self.agent.device, state["carry"]
        memory = None
        if with_memory and carry["memory"] is not None:
            memory = Memory(**{name: value.to(device) for name, value in carry["memory"].items()})
        self._carry = Carry(carry["state"].to(device), carry["action"].to(device), memory)
        if not self._begun.any():
            return []
        actions = [np.array(row) for row in self._actions]
        image, returns, ended = reenact(self.envs, self._begun, self._seeds.tolist(), actions)
        seen = (images_on_host(image) == self.replay.newest(self._rows)).all(axis=(1, 2, 3))
        same = seen & (returns == self._returns) & ~ended
        self._see(self._rows, images_on(image, device))
        self._is_first = torch.tensor([not row for row in self._actions], device=device)
        broken = self._begun & ~same
        self.counters.episodes += int(broken.sum())
        self._leave(broken)
        return np.flatnonzero(broken).tolist()

    def _leave(self, left: np.ndarray) -> None:
        """The episodes of the rows `left`, bool [B], are over."""
        if not left.any():
            return
        for row in np.flatnonzero(left):
            self._actions[row] = []
        self._numbers[left] += 1
        self._returns[left] = 0.0
        self._begun &= ~left

    def _see(self, rows: np.ndarray, image: UInt8[Tensor, "N H W C"]) -> None:
        """Keep these as the newest images of `rows`."""
        if len(rows) < len(self._rows):
            image = self._image.index_copy(0, to_device(torch.from_numpy(rows), self.agent.device), image)
        self._image = image

    def _store(
        self,
        rows: np.ndarray,
        image: Images,
        action: np.ndarray | Tensor,
        reward: np.ndarray,
        is_first: np.ndarray,
        is_terminal: np.ndarray,
    ) -> UInt8[Tensor, "N H W C"]:
        """Append one frame for each of `rows` to replay; returns the images on the agent's device.

        They are sent there once, unless they were drawn there.
        """
        seen = images_on(image, self.agent.device)
        self.replay.append(rows, seen if self._shared else image, action, reward, is_first, is_terminal)
        return seen


def _of_rows(values: np.ndarray | Tensor, rows: Int64[np.ndarray, " N"]) -> np.ndarray | Tensor:
    """The `rows` of `values`, wherever they are; does not wait for a device."""
    if isinstance(values, np.ndarray):
        return values[rows]
    return values[to_device(torch.from_numpy(rows), values.device)]
