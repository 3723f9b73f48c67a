"""Acting step by step with a trained agent, in environments that the caller steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer_mpc.agents.protocol import Agent, Carry
from dreamer_mpc.envs.actions import to_bounds
from dreamer_mpc.library.arrays import Array, Form, read
from dreamer_mpc.planners import Plan, Planner
from dreamer_mpc.util.device import preserved_rng

Bounds = tuple[Any, Any]  # low and high, [A] each


class _Checked:
    """A planner whose plans are checked, as it may be a stranger's."""

    def __init__(self, planner: Planner):
        self._planner = planner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._planner, name)

    def plan(self, model: Any, state: Tensor, memory: Any = None) -> Plan:
        """ValueError, in one line, for what is no plan, or one whose actions are not in [-1, 1]."""
        plan, name = self._planner.plan(model, state, memory), type(self._planner).__name__
        if not isinstance(plan, Plan):
            raise ValueError(f"{name}.plan must return a Plan of dreamer_mpc.planners, got {type(plan).__name__}")
        most = float(plan.action.abs().max())
        if not most <= 1 + 1e-4:
            raise ValueError(f"{name}.plan must give actions in [-1, 1], got {most:.3g}")
        return plan


class Player:
    """Images in, actions out. It keeps the latent state, the last action and the planner's memory of every environment.

    `player(image)` takes uint8 [H, W, C] of one environment, or [N, H, W, C] of N, channels last, as a NumPy array or a
    torch tensor, and gives float32 [A] or [N, A] of the same library, on the same device. Actions are in [-1, 1], or in
    `bounds`. The first call begins an episode in every environment; `reset(mask)` says where the next call begins one.
    Draws come from a generator of its own, seeded with `seed`: the same images give the same actions, whatever else
    draws from torch's, and `run.py eval` with that seed plays the same episode.
    """

    def __init__(
        self, agent: Agent, planner: Planner, image_shape: Sequence[int], seed: int = 0, bounds: Bounds | None = None
    ):
        self.planner, self.image_shape, self._agent, self._seed = planner, tuple(image_shape), agent, seed
        self._checked = _Checked(planner)
        self._bounds = None if bounds is None else _read_bounds(bounds, agent.model.action_dim)
        self._carry: Carry | None = None
        self._generators: list[Tensor] | None = None  # states, of the host and of a GPU
        self._is_first = np.zeros(0, dtype=bool)
        self._form: Form | None = None
        self._value: Tensor | None = None

    def __call__(self, image: Any) -> Array:
        """The actions after seeing `image`. ValueError, in one line, where it does not fit."""
        agent = self._agent
        images, form = read("an image", image, self.image_shape, torch.uint8, agent.device)
        if self._carry is None:
            self._carry, self._is_first = agent.initial(len(images)), np.ones(len(images), dtype=bool)
        elif len(images) != len(self._is_first):
            raise ValueError(
                f"this player plays {len(self._is_first)} environments, got images of {len(images)}: give all of them "
                "in each call, or begin again with reset()"
            )
        with preserved_rng(agent.device):
            self._resume_generators()
            act = agent.act(self._checked, self._carry, images, torch.from_numpy(self._is_first).to(agent.device))
            self._keep_generators()
        self._carry, self._value, self._form = act.carry, act.value, form
        self._is_first = np.zeros_like(self._is_first)
        return form.answer(self._scaled(act.action))

    def reset(self, mask: Any = None) -> None:
        """Begin a new episode at the next call, in the environments of `mask`, bool [N], or in all.

        After `reset()` without a mask the number of environments may be another one. ValueError for a mask that does
        not fit.
        """
        if mask is None:
            self._carry = self._value = self._form = None
            self._is_first = np.zeros(0, dtype=bool)
            return
        rows = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if rows.dtype != bool or rows.shape != self._is_first.shape:
            raise ValueError(
                f"a mask must be bool [{len(self._is_first)}], one for each environment, got {rows.dtype} "
                f"{list(rows.shape)}"
            )
        self._is_first = self._is_first | rows

    @property
    def state(self) -> Array:
        """The latent states after the last call, float32 [S] or [N, S], for `imagine` and `decode`."""
        return self._last(lambda: self._carry.state)

    @property
    def value(self) -> Array:
        """J of the plans of the last call, [] or [N]."""
        return self._last(lambda: self._value)

    def _last(self, get: Any) -> Array:
        if self._form is None:
            raise ValueError("the player has seen no image yet: call it with one first")
        return self._form.answer(get())

    def _scaled(self, action: Tensor) -> Tensor:
        if self._bounds is None:
            return action
        return torch.from_numpy(np.stack([to_bounds(row, *self._bounds) for row in action.cpu().numpy()]))

    def _resume_generators(self) -> None:
        if self._generators is None:
            torch.manual_seed(self._seed)
            return
        torch.set_rng_state(self._generators[0])
        if self._agent.device.type == "cuda":
            torch.cuda.set_rng_state(self._generators[1], self._agent.device)

    def _keep_generators(self) -> None:
        self._generators = [torch.get_rng_state()]
        if self._agent.device.type == "cuda":
            self._generators.append(torch.cuda.get_rng_state(self._agent.device))


def _read_bounds(bounds: Bounds, action_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """ValueError unless `bounds` are a finite low and a high above it for each part of an action."""
    low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float32), (action_dim,)) for bound in bounds)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"bounds must be finite, low below high for each of {action_dim} numbers, got {bounds}")
    return low, high
