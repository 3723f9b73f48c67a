"""An agent in its environments: visiting states of episodes, and executing plans from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dreamer_mpc.agents.protocol import Agent, Carry
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.planners import Memory, Plan, Planner, Policy
from dreamer_mpc.planners.protocol import LatentDynamics, bounded, make_plan
from dreamer_mpc.util.device import Images, images_on, images_on_host, preserved_rng


class Visit(NamedTuple):
    """The states of B episodes at one step."""

    step: int  # of the agent
    state: Float[Tensor, "B S"]  # what the agent has inferred, from which is planned
    alive: Bool[np.ndarray, " B"]  # rows whose episode still goes on; those of the others stand in for another row's
    snapshots: list[Any] | None  # of the environments; None where they were not asked for


class Executed(NamedTuple):
    """What came of plans of H actions in the environment."""

    reward: Float[np.ndarray, "B H"]  # 0 after an episode's end
    state: Float[Tensor, "B H S"]  # inferred on arriving there
    image: UInt8[np.ndarray, "B H X Y 3"]
    valued: Bool[np.ndarray, "B H"]  # False from where an episode is terminated: nothing follows
    reached: Int[np.ndarray, " B"]  # actions that were executed
    going: Bool[np.ndarray, " B"]  # whether the episode goes on behind the plan

    @property
    def terminated(self) -> Bool[np.ndarray, " B"]:
        """Rows in which the environment ended the episode on the way."""
        return ~self.valued[:, -1]

    @property
    def whole(self) -> Bool[np.ndarray, " B"]:
        """Rows in which the time limit did not cut the plan off."""
        return (self.reached == self.reward.shape[1]) | self.terminated


@dataclass(frozen=True)
class Follow:
    """A planner that executes the next action of its memory, a plan that someone else has made."""

    requires = ()

    @torch.no_grad()
    def plan(self, model: LatentDynamics, state: Float[Tensor, "B S"], memory: Memory | None = None) -> Plan:
        """The memory's first action; the last one is repeated behind the plan's end."""
        actions = memory.actions
        rest = torch.cat([actions[:, 1:], actions[:, -1:]], dim=1)
        value = actions.new_zeros(len(actions))
        return make_plan(model, state, actions, value, actions[:, None], value[:, None], 0, remembered=rest)


FOLLOW, POLICY = Follow(), Policy()


@dataclass
class Bench:
    """An agent and rows of its environment; row i plays episode i of a batch."""

    agent: Agent
    envs: RowVectorEnv

    def visit(self, planner: Planner, seed: int, steps: Sequence[int], snapshots: bool = False) -> list[Visit]:
        """Play one episode in each row, from environment seed `seed` + row, and stop by at the agent's `steps`.

        The state of torch's generator is restored at the end.
        """
        with preserved_rng(self.agent.device):
            torch.manual_seed(seed)
            return self._visit(planner, seed, set(steps), snapshots)

    def _visit(self, planner: Planner, seed: int, steps: set[int], snapshots: bool) -> list[Visit]:
        rows, visits = self.envs.num_envs, []
        image, _ = self.envs.reset(seed=[seed + row for row in range(rows)])
        carry, alive = self.agent.initial(rows), np.ones(rows, dtype=bool)
        for step in range(max(steps) + 1):
            carry, action = self.act(planner, carry, image, first=step == 0)
            if step in steps:
                visits.append(self._here(step, carry.state, alive, snapshots))
            image, _, terminated, truncated = self.step(action, alive)
            alive = alive & ~(terminated | truncated)
            if not alive.any():
                break
        return visits

    def _here(self, step: int, state: Float[Tensor, "B S"], alive: Bool[np.ndarray, " B"], snapshots: bool) -> Visit:
        stands_in = np.where(alive, np.arange(len(alive)), np.flatnonzero(alive)[0])
        found = self.envs.get_states() if snapshots else None
        return Visit(
            step, state[torch.from_numpy(stands_in).to(state.device)].clone(), alive,
            None if found is None else [found[row] for row in stands_in],
        )  # fmt: skip

    def act(self, planner: Planner, carry: Carry, image: Images, first: bool = False) -> tuple[Carry, np.ndarray]:
        """Observe and plan; the carry, and the actions for the environments."""
        device = self.agent.device
        is_first = torch.full((len(image),), first, device=device)
        act = self.agent.act(planner, carry, images_on(image, device), is_first)
        return act.carry, bounded(planner, act.action.cpu().numpy())

    def step(self, action: np.ndarray, alive: Bool[np.ndarray, " B"]) -> tuple[Any, ...]:
        """A step of the rows that are alive: images, rewards, terminated, truncated."""
        self.envs.step_async(action, alive)
        return self.envs.step_wait()[:4]

    def execute(
        self,
        state: Float[Tensor, "B S"],
        actions: Float[Tensor, "B H A"],
        answered: int | None = None,
        seed: int = 0,
        alive: Bool[np.ndarray, " B"] | None = None,
    ) -> Executed:
        """Execute plans from where the environments are, in rows that are `alive`, and where the agent is at `state`.

        From action number `answered` on, the policy takes the actions in the states that are reached. With the same
        `seed`, the agent's draws are the same, so that two plans differ by their actions alone.
        """
        with preserved_rng(self.agent.device):
            torch.manual_seed(seed)
            alive = np.ones(len(actions), dtype=bool) if alive is None else alive
            return self._execute(state, actions, actions.shape[1] if answered is None else answered, alive)

    def _execute(
        self,
        state: Float[Tensor, "B S"],
        actions: Float[Tensor, "B H A"],
        answered: int,
        alive: Bool[np.ndarray, " B"],
    ) -> Executed:
        rows, horizon = actions.shape[:2]
        valued, reached, found = np.ones(rows, dtype=bool), np.zeros(rows, dtype=int), []
        ahead = torch.cat([actions[:, 1:], actions[:, -1:]], dim=1).contiguous()
        memory = Memory(ahead, torch.ones(rows, dtype=torch.bool, device=actions.device))
        carry, action = Carry(state, actions[:, 0].contiguous(), memory), actions[:, 0].cpu().numpy()
        for k in range(1, horizon + 1):
            image, reward, terminated, truncated = self.step(action, alive)
            valued, reached = valued & ~(terminated & alive), reached + alive
            alive = alive & ~(terminated | truncated)
            follows = k < answered
            carry, action = self.act(FOLLOW if follows else POLICY, carry if follows else _bare(carry), image)
            found.append((reward, carry.state.clone(), images_on_host(image), valued))
        reward, states, image, valued = zip(*found, strict=True)
        outcome = np.stack(reward, 1), torch.stack(states, 1), np.stack(image, 1), np.stack(valued, 1)
        return Executed(*outcome, reached, alive)

    def value(self, executed: Executed) -> Float[np.ndarray, "B H"]:
        """What the critic says of the states that were reached, each including its reward; that alone at an end."""
        value = self.agent.model.value(executed.state).mean(0).double().cpu().numpy()
        return np.where(executed.valued, value, executed.reward)

    def worth(self, executed: Executed, discount: float) -> Float[np.ndarray, " B"]:
        """Discounted rewards up to the last state that each plan reached, and the value of that state.

        After a termination nothing follows, so that there is no value. At the time limit the value stays, as in
        training: the limit is no part of the task (Pardo et al. 2018, partial-episode bootstrapping).
        """
        rows, last = np.arange(len(executed.reward)), np.maximum(executed.reached - 1, 0)
        gains = executed.reward.copy()
        gains[rows, last] = self.value(executed)[rows, last]  # it includes the last reward
        return (discount ** np.arange(gains.shape[1]) * gains).sum(1)


def _bare(carry: Carry) -> Carry:
    return carry._replace(memory=None)
