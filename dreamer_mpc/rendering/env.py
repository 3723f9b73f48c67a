"""One environment whose images are drawn here, for a program that steps it by itself."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from jaxtyping import UInt8

from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.rendering.rows import DrawnRows
from dreamer_mpc.world_model.protocol import ImageForm


class DrawnEnv(gymnasium.Env):
    """The only one of `rows`, whose observations are scenes, with images as arrays; else as `make_env` gives it."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, rows: RowVectorEnv, form: ImageForm, device: torch.device):
        self._rows = DrawnRows(rows, form, device)
        self.observation_space, self.action_space = self._rows.single_observation_space, rows.single_action_space
        facts = rows.facts()
        self.steps_per_s, self.action_names = facts.steps_per_s, facts.actions
        self.metadata = DrawnEnv.metadata | {"render_fps": self.steps_per_s}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "H W C"], dict[str, Any]]:
        """Start a new episode; see `DMCEnv.reset`."""
        super().reset(seed=seed)
        images, infos = self._rows.reset(seed=[seed])
        return images[0].cpu().numpy(), _first(infos)

    def step(self, action: np.ndarray) -> tuple[UInt8[np.ndarray, "H W C"], float, bool, bool, dict[str, Any]]:
        """One step; see `DMCEnv.step`."""
        images, reward, terminated, truncated, infos = self._rows.step(np.asarray(action)[None])
        return images[0].cpu().numpy(), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(infos)

    def render(self) -> np.ndarray | None:
        """The current frame for a video, as dm_control draws it, uint8 [480, 640, 3]."""
        return self._rows.view(0)

    def close(self) -> None:
        """End the simulation."""
        self._rows.close()


def _first(infos: dict[str, Any]) -> dict[str, Any]:
    """The entries of row 0 as those of one environment; gymnasium's masks of entries (`_name`) are left out."""
    return {name: values[0].item() for name, values in infos.items() if not name.startswith("_")}
