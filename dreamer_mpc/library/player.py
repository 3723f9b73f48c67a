"""Acting step by step with a trained agent, in environments that the caller steps."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer_mpc.agents.protocol import Agent, Carry
from dreamer_mpc.envs.actions import to_bounds
from dreamer_mpc.library.arrays import Array, Form, read
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.protocol import bounded
from dreamer_mpc.util.checks import check_whole
from dreamer_mpc.util.device import preserved_rng

Bounds = tuple[Any, Any]  # low and high, [A] each


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
        _check_planner(planner)
        check_whole("seed", seed, 0)
        self.planner, self.image_shape, self._agent, self._seed = planner, tuple(image_shape), agent, seed
        self._bounds = None if bounds is None else _read_bounds(bounds, agent.model.action_dim)
        self._carry: Carry | None = None
        self._generators: list[Tensor] | None = None  # states, of the host and of a GPU
        self._is_first = np.zeros(0, dtype=bool)
        self._form: Form | None = None
        self._value: Tensor | None = None

    def __call__(self, image: Any) -> Array:
        """The actions after seeing `image`. ValueError, in one line, where it or the plan does not fit."""
        agent, carry, is_first = self._agent, self._carry, self._is_first
        images, form = read("an image", image, self.image_shape, torch.uint8, agent.device)
        if carry is None:
            carry, is_first = agent.initial(len(images)), np.ones(len(images), dtype=bool)
        elif len(images) != len(is_first):
            raise ValueError(
                f"got {len(images)} in place of {len(is_first)} images: give this player those of all its environments "
                "in each call, or begin again with reset()"
            )
        with preserved_rng(agent.device):
            self._resume_generators()
            act = agent.act(self.planner, carry, images, torch.from_numpy(is_first).to(agent.device))
            bounded(self.planner, act.action.cpu().numpy())
            self._keep_generators()
        self._carry, self._value, self._form = act.carry, act.value, form
        self._is_first = np.zeros_like(is_first)
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
        if self._carry is None:
            raise ValueError("the player has seen no image yet: the next call begins an episode in each environment")
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


def _check_planner(planner: Any) -> None:
    """ValueError for what is no planner."""
    wanted = "a planner must be a name or an object with a method plan(model, state, memory)"
    if isinstance(planner, type):
        raise ValueError(f"{wanted}, got the class {planner.__name__}: give {planner.__name__}()")
    if not callable(getattr(planner, "plan", None)):
        raise ValueError(f"{wanted}, got {type(planner).__name__}")
    try:
        signature = inspect.signature(planner.plan)
    except ValueError:  # a function that was not written in Python may have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise ValueError(f"{wanted}, got {type(planner).__name__} with plan{signature}") from error


def _read_bounds(bounds: Bounds, action_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """ValueError unless `bounds` are a finite low and a high above it for each part of an action."""
    got = " ".join(str(bounds).split())[:80]
    try:
        low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float32), (action_dim,)) for bound in bounds)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bounds must be (low, high), each a number or {action_dim} numbers, got {got}") from error
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(f"bounds must be finite, low below high for each of {action_dim} numbers, got {got}")
    return low, high
