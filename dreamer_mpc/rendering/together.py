"""A trial, not finished: frames of all environments of one dm_control task, drawn by MuJoCo in one OpenGL context and one picture.

Works for tasks whose model does not change when an episode begins.
"""

import numpy as np
import torch

from dreamer_mpc.util.device import to_device


class Together:
    """Draws physics states [B, N] as images [B, size, size, 3] on `device`."""

    def __init__(self, name: str, quality: str, camera: int, num_envs: int, size: int, device: torch.device):
        import mujoco
        from dm_control import suite

        from dreamer_mpc.envs.dmc import RENDER_QUALITIES

        self._mujoco, self._device, self._size, self._envs = mujoco, device, size, num_envs
        self._physics = suite.load(*name.split("-", 1)).physics
        visual = self._physics.model.vis
        visual.global_.offwidth, visual.global_.offheight = max(size * num_envs, 64), max(size, 64)
        for key, value in RENDER_QUALITIES[quality].items():
            setattr(visual.quality, key, value)
        self._model = self._physics.model.ptr
        self._data = [mujoco.MjData(self._model) for _ in range(num_envs)]
        self._scenes = [mujoco.MjvScene(self._model, 1000) for _ in range(num_envs)]
        self._options, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._picture = np.empty((size, size * num_envs, 3), np.uint8)

    def draw(self, states: np.ndarray) -> torch.Tensor:
        mujoco, size = self._mujoco, self._size
        for state, data, scene in zip(states, self._data, self._scenes, strict=True):
            state = np.ascontiguousarray(state, dtype=np.float64)
            mujoco.mj_setState(self._model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
            mujoco.mj_kinematics(self._model, data)
            mujoco.mj_comPos(self._model, data)
            mujoco.mj_camlight(self._model, data)
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, scene)

        def render() -> None:
            context = self._physics.contexts.mujoco.ptr
            for i, scene in enumerate(self._scenes):
                mujoco.mjr_render(mujoco.MjrRect(size * i, 0, size, size), scene, context)
            mujoco.mjr_readPixels(self._picture, None, mujoco.MjrRect(0, 0, size * self._envs, size), context)

        with self._physics.contexts.gl.make_current() as context:
            context.call(render)
        images = self._picture[::-1].reshape(size, self._envs, size, 3).swapaxes(0, 1)
        return to_device(torch.from_numpy(np.ascontiguousarray(images)), self._device)
