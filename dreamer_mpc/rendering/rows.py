"""Rows of environments whose images are drawn here, for all rows at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from dreamer_mpc.envs.frames import LUMA
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.rendering.renderer import Renderer
from dreamer_mpc.util.device import to_device
from dreamer_mpc.world_model.protocol import ImageForm


class DrawnState(NamedTuple):
    """The state of one row."""

    env: Any  # of the environment
    frames: UInt8[Tensor, "H W C"]


def to_gray(images: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B H W 1"]:
    """The brightness of each pixel, as `envs.frames.to_gray` computes it."""
    red, green, blue = (images[..., i].int() * LUMA[i] for i in range(3))
    return ((red + green + blue + 128) >> 8).to(torch.uint8)[..., None]


class DrawnRows(RowVectorEnv):
    """`rows`, whose observations are scenes, with images of them: uint8 tensors [B, H, W, C] on `device`.

    Everything else is that of `rows`. As there, rows outside a mask keep their images, those before their first reset
    and lost ones are black, and images are new tensors each time.
    """

    def __init__(self, rows: RowVectorEnv, form: ImageForm, device: torch.device, renderer: Any = None):
        self._rows, self._form, self._device = rows, form, device
        images = gymnasium.spaces.Box(0, 255, form.shape, np.uint8)
        super().__init__(rows.num_envs, (images, rows.single_action_space))
        self._renderer = renderer or Renderer(rows.stage(), rows.num_envs, form.size, device)
        self._frames = torch.zeros(rows.num_envs, *form.shape, dtype=torch.uint8, device=device)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[Tensor, "B H W C"], dict[str, Any]]:
        """Reset all rows, or those of `options["reset_mask"]`, bool [B]; the other rows keep their images."""
        scenes, infos = self._rows.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        images = self._drawn(scenes)
        return self._show(np.asarray(mask, dtype=bool), images.repeat(1, 1, 1, self._form.frames)), infos

    def step_async(self, actions: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Begin a step of all rows, or of those in the mask `rows`, bool [B], with actions [B, A]."""
        self._rows.step_async(actions, rows)
        self._stepping = np.ones(self.num_envs, dtype=bool) if rows is None else np.array(rows, dtype=bool)

    def step_wait(self) -> tuple[UInt8[Tensor, "B H W C"], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Wait for the step: images, rewards, terminated and truncated [B], infos. Does not wait for the device."""
        scenes, *results = self._rows.step_wait()
        images = torch.cat([self._frames[..., self._form.channels :], self._drawn(scenes)], dim=-1)
        shown = self._show(self._stepping, images)
        if "lost" in results[-1]:
            shown = self._show(results[-1]["lost"], torch.zeros_like(shown))
        return shown, *results

    def get_states(self) -> list[DrawnState]:
        """The state of each row; EnvError where the environment cannot copy it."""
        states = self._rows.get_states()
        return [DrawnState(state, frames.clone()) for state, frames in zip(states, self._frames, strict=True)]

    def set_states(self, states: Sequence[DrawnState]) -> UInt8[Tensor, "B H W C"]:
        """Let each row go to a state, its own or another row's; the newest frames are drawn again."""
        images = self._drawn(self._rows.set_states([state.env for state in states]))
        older = torch.stack([state.frames for state in states])[..., : -self._form.channels]
        return self._show(np.ones(self.num_envs, dtype=bool), torch.cat([older, images], dim=-1))

    def go_to(self, states: Sequence[DrawnState]) -> None:
        """`set_states` without drawing."""
        self._rows.go_to([state.env for state in states])
        self._frames = torch.stack([state.frames for state in states])

    def try_plans(self, states: Sequence[DrawnState], plans: np.ndarray) -> np.ndarray:
        """Rewards [B, P, H] of the plans [B, P, H, A] of each row, from its state; nothing is drawn."""
        rewards = self._rows.try_plans([state.env for state in states], plans)
        self._frames = torch.stack([state.frames for state in states])
        return rewards

    def close_extras(self) -> None:
        """Close the environments."""
        self._rows.close()

    def _call(self, rows: np.ndarray, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._rows._call(rows, method, args)

    def _ask(self, row: int, method: str) -> Any:
        return self._rows._ask(row, method)

    def _drawn(self, scenes: np.ndarray) -> UInt8[Tensor, "B H W C"]:
        images = self._renderer.draw(scenes)
        return to_gray(images) if self._form.channels == 1 else images

    def _show(self, rows: Bool[np.ndarray, " B"], images: UInt8[Tensor, "B H W C"]) -> UInt8[Tensor, "B H W C"]:
        """Replace the images of `rows`; the images of all."""
        if rows.all():
            self._frames = images
        else:
            mask = to_device(torch.from_numpy(rows), self._device)
            self._frames = torch.where(mask[:, None, None, None], images, self._frames)
        return self._frames.clone()
