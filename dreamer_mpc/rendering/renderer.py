"""Scenes in, images out, on one device: mujoco_warp's ray caster for many worlds at once."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreamer_mpc.envs.scene import INSTALL, Stage
from dreamer_mpc.util.device import to_device
from dreamer_mpc.util.errors import UserError, in_one_line

SAMPLES = 2  # rays of a pixel along each axis: as many as the multisampling of dm_control's tasks, 4
SHADOW = 0.0  # of a light's rays that reach the shadow


class Renderer:
    """Draws the scenes of `num_envs` environments that share one stage, in one batch.

    A scene is copied to the device once, and everything that mujoco_warp reads lies in that copy. The same scenes give
    the same images, bit for bit, whichever rows they are in. UserError where warp cannot be loaded.
    """

    def __init__(self, stage: Stage, num_envs: int, image_size: int, device: torch.device):
        self._warp, mujoco_warp = load_warp()
        self._device, self._size = device, image_size
        self._scenes = torch.zeros(num_envs, stage.layout.width, device=device)
        with self._on_device():
            self._model = mujoco_warp.put_model(stage.model)
            self._data = mujoco_warp.make_data(stage.model, nworld=num_envs)
            self._place(stage)
            self._context = mujoco_warp.create_render_context(
                stage.model,
                nworld=num_envs,
                cam_res=(image_size, image_size),
                render_rgb=True,
                render_depth=False,
                render_seg=False,
                use_shadows=True,
                render_skybox=True,
                shadow_light_fraction=SHADOW,
                samples_per_pixel=SAMPLES,
                use_fast_math=False,
            )
        # [B, 4 H W]: blue, green, red, alpha
        self._pixels = self._warp.to_torch(self._context.rgb_data).view(torch.uint8)
        self._refit, self._render = mujoco_warp.refit_bvh, mujoco_warp.render

    def draw(self, scenes: Float[np.ndarray, "B F"]) -> UInt8[Tensor, "B H W 3"]:
        """The images of the scenes, new ones each time; black where there is no scene. Does not wait for the device."""
        self._scenes.copy_(to_device(torch.from_numpy(scenes), self._device))
        with self._on_device():
            self._refit(self._model, self._data, self._context)
            self._render(self._model, self._data, self._context)
        images = self._pixels.view(len(scenes), self._size, self._size, 4)[..., :3].flip(-1)
        return images * (self._scenes[:, :1, None, None] > 0)

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """warp works on torch's device and in torch's stream."""
        warp = self._warp
        device = warp.device_from_torch(self._device)
        with warp.ScopedDevice(device):
            if not device.is_cuda:
                yield
                return
            with warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(self._device))):
                yield

    def _place(self, stage: Stage) -> None:
        """Let model and data read their numbers from the scenes."""
        warp, parts, rows = self._warp, stage.layout.parts(), len(self._scenes)

        def at(name: str, *shape: int) -> Tensor:
            return self._scenes[:, parts[name]].view(rows, -1, *shape)

        vector, matrix, color = warp.vec3, warp.mat33, warp.vec4
        self._model.geom_size = warp.from_torch(at("size", 3), dtype=vector)
        self._model.geom_rgba = warp.from_torch(at("color", 4), dtype=color)
        self._data.geom_xpos = warp.from_torch(at("position", 3), dtype=vector)
        self._data.geom_xmat = warp.from_torch(at("rotation", 3, 3), dtype=matrix)
        self._data.cam_xpos = warp.from_torch(at("camera_position", 3), dtype=vector)
        self._data.cam_xmat = warp.from_torch(at("camera_rotation", 3, 3), dtype=matrix)
        if stage.layout.lights:
            self._data.light_xpos = warp.from_torch(at("light_position", 3), dtype=vector)
            self._data.light_xdir = warp.from_torch(at("light_direction", 3), dtype=vector)


def load_warp() -> tuple[ModuleType, ModuleType]:
    """The modules warp and mujoco_warp; UserError where they are not there, or are not those that are meant."""
    try:
        import warp

        warp.config.log_level = warp.LOG_ERROR  # no line for each kernel that it compiles
        warp.init()
        import mujoco_warp  # after that, as it says more
    except Exception as error:
        raise UserError(
            f"render_quality warp: mujoco_warp cannot be loaded ({in_one_line(error)}): {INSTALL}"
        ) from error
    return warp, mujoco_warp
