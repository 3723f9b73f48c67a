"""dm_control's suite from pixels."""

import copy
import difflib
import os
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np

from dreamer_mpc.envs.actions import StepResult, repeat_action, to_bounds
from dreamer_mpc.envs.errors import EnvError, unfit_args
from dreamer_mpc.envs.gl import choose_gl_backend
from dreamer_mpc.envs.scene import WARP, Scene, Stage, check_installed
from dreamer_mpc.envs.snapshot import Restorable, not_restorable

ENDLESS_TASK_STEPS = 1000
VIDEO_SIZE = (480, 640)
RENDER_QUALITIES: dict[str, dict[str, int]] = {  # changes of MuJoCo's visual.quality
    "full": {},
    "small-shadows": {"shadowsize": 1024},  # 2048 in dm_control's tasks
    "fast": {"shadowsize": 0, "offsamples": 0},
    WARP: {},  # not MuJoCo's own renderer: `scene.py`
}
RANDOM_MODELS = ("lqr",)  # domains that randomise the model itself, so that a new seed needs a new model
# Fields of the model that the suite's tasks change when an episode begins, such as the place of a target.
CHANGED_FIELDS = (
    "dof_damping", "geom_pos", "geom_rgba", "geom_size", "light_pos", "mat_rgba", "site_pos", "site_rgba", "site_size",
    "wrap_prm",
)  # fmt: skip
ON_THE_GPU = ("quadruped-escape",)  # its terrain is uploaded to the OpenGL context when an episode begins
UNBOUNDED = 1e9  # dm_control uses 1e10 as the bounds of an unbounded actuator
CAMERAS = {"quadruped": 2}


def list_tasks() -> list[str]:
    """Every task of dm_control's suite as `domain-task`; `EnvError` without OpenGL."""
    choose_gl_backend()
    from dm_control import suite

    return sorted(f"{domain}-{task}" for domain, task in suite.ALL_TASKS)


def camera_names(model: Any) -> list[str]:
    """The names of a MuJoCo model's cameras, in the order of their numbers; empty for one without a name."""
    return [model.camera(i).name for i in range(model.ncam)]


def camera_number(env: str, names: list[str], camera: int | str) -> int:
    """The number of a camera that is given by number or name; EnvError for one that is not there."""
    if isinstance(camera, str) and camera and camera in names:
        return names.index(camera)
    if isinstance(camera, int) and -1 <= camera < len(names):
        return camera
    known = ", ".join(f"{i} ({name})" if name else str(i) for i, name in enumerate(names))
    raise EnvError(f"{env} has the cameras {f'-1 (free), {known}' if known else '-1 (free) alone'}, got {camera!r}")


class DMCState(NamedTuple):
    """Everything that the rest of an episode depends on."""

    physics: np.ndarray  # time, positions, velocities, activations, controls, warm start, mocap, applied forces
    sensors: np.ndarray  # those of accelerations are computed by a step alone
    model: dict[str, np.ndarray]  # `CHANGED_FIELDS`
    task: dict[str, Any]  # its attributes, with its random generator
    counters: tuple[int, bool, int | None]  # dm_control's count of steps and its flag for a reset, and ours
    image: np.ndarray  # the last one, or scene


class DMCEnv(gymnasium.Env, Restorable):
    """A task of dm_control's suite: uint8 images [size, size, 3], float32 actions [A] in [-1, 1].

    With the render quality `warp` it gives scenes, float32 [F], in place of images.
    An episode is terminated where dm_control ends it with discount 0, truncated at the time limit (tasks
    without one: 1000 env steps) and where the physics diverges: then `info["simulator_error"]` is true, and the image
    is the previous one, because MuJoCo jumps to its default pose. The arguments are those of `make_env`.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(
        self,
        name: str,
        *,
        action_repeat: int = 2,
        image_size: int = 64,
        render_quality: str = "full",
        camera: int | str | None = None,
        max_env_steps: int | None = None,
        env_args: dict[str, Any] | None = None,
    ) -> None:
        tasks = list_tasks()
        if name not in tasks:
            raise EnvError(_unknown(name, tasks))
        if render_quality == WARP:
            check_installed()
        self._domain, self._task = name.split("-", 1)
        self._action_repeat = action_repeat
        self._image_size = image_size
        self._render_quality = render_quality
        self._args = env_args or {}
        self._env = None
        self._views = {}  # (height, width) -> dm_control's Camera
        self._load(None)
        self._camera = self._choose_camera(camera)
        self._scene = self._make_scene() if render_quality == WARP else None
        limit = self._time_limit()
        self._max_env_steps = min(limit, max_env_steps or limit)
        self._env_steps = None  # of this episode; None: reset first
        self._image = None  # the last image before a simulator error
        self._low, self._high = self._action_bounds()
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        if self._scene:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self._scene.layout.width,), np.float32)
        self._states = os.environ.get("DREAMER_MPC_TOGETHER") == "1"  # a trial: physics in place of images
        if self._states:
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._state().shape, np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._low.shape, np.float32)
        self.steps_per_s = 1 / (action_repeat * self._env.control_timestep())
        self.metadata = DMCEnv.metadata | {"render_fps": self.steps_per_s}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start a new episode; a seed determines it and the following ones; without, the random stream continues."""
        super().reset(seed=seed)
        if seed is not None and self._domain in RANDOM_MODELS:
            self._load(seed)
        elif seed is not None:
            self._env.task.random.seed(seed)
        self._env.reset()
        self._env_steps = 0
        self._image = self._observe()
        return self._image.copy(), {"env_steps": 0}

    def step(self, action: np.ndarray):
        """Repeat `action` [A] and render once; ValueError for an action that is not finite."""
        reward, terminated, truncated, info = self._step_unseen(action)
        if "simulator_error" not in info:
            self._image = self._observe()
        return self._image.copy(), reward, terminated, truncated, info

    @property
    def restorable(self) -> bool:
        """False where an episode begins with another model, or with data that only the OpenGL context has."""
        return self._domain not in RANDOM_MODELS and f"{self._domain}-{self._task}" not in ON_THE_GPU

    def get_state(self) -> DMCState:
        """See `Restorable`; EnvError where it is not `restorable`."""
        import mujoco

        if not self.restorable:
            raise not_restorable(f"{self._domain}-{self._task}")
        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        physics = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return DMCState(
            physics,
            data.sensordata.copy(),
            {name: getattr(model, name).copy() for name in CHANGED_FIELDS},
            copy.deepcopy(vars(self._env.task)),
            (self._env._step_count, self._env._reset_next_step, self._env_steps),
            self._image.copy(),
        )

    def set_state(self, state: DMCState) -> np.ndarray:
        """Go back to `state`, and render it."""
        self.go_to(state)
        self._image = self._observe()
        return self._image.copy()

    def go_to(self, state: DMCState) -> None:
        """Go back to `state`; nothing is rendered."""
        import mujoco

        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        for name, values in state.model.items():
            getattr(model, name)[:] = values
        mujoco.mj_setState(model, data, state.physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_step1(model, data)  # what dm_control leaves behind after a step: all that follows from the state
        data.sensordata[:] = state.sensors
        vars(self._env.task).update(copy.deepcopy(state.task))
        self._env._step_count, self._env._reset_next_step, self._env_steps = state.counters
        self._image = state.image.copy()

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        reward, terminated, truncated, _ = self._step_unseen(action)
        return reward, terminated or truncated

    def stage(self) -> Stage:
        """What images of its scenes are made with; only with the render quality `warp`."""
        return self._scene.stage()

    def render(self) -> np.ndarray:
        """The current frame for a video, uint8 [480, 640, 3]."""
        return self._render(*VIDEO_SIZE)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actuators; empty where the model gives none."""
        model = self._env.physics.model
        return tuple(model.id2name(i, "actuator") for i in range(model.nu))

    def close(self) -> None:
        """Free the physics and its OpenGL context."""
        if self._env is not None:
            self._views.clear()
            self._env.physics.free()
        self._env = None

    def _load(self, seed: int | None) -> None:
        self.close()
        self._env = _load_suite(self._domain, self._task, seed, self._args)
        visual = self._env.physics.model.vis
        visual.global_.offheight = max(visual.global_.offheight, self._image_size)
        visual.global_.offwidth = max(visual.global_.offwidth, self._image_size)
        for name, value in RENDER_QUALITIES[self._render_quality].items():
            setattr(visual.quality, name, value)  # takes effect when the OpenGL context is created, at the first frame

    def _step_unseen(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """A step without its image."""
        if self._env_steps is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(), also after an episode's end")
        control = to_bounds(action, self._low, self._high)
        _, reward, terminated, truncated, info = repeat_action(self._simulate, control, self._action_repeat)
        if terminated or truncated:
            self._env_steps = None
        return reward, terminated, truncated, info

    def _simulate(self, control: np.ndarray) -> StepResult:
        from dm_control.rl.control import PhysicsError
        from mujoco import FatalError

        self._env_steps += 1
        try:
            time_step = self._env.step(control)
        except (PhysicsError, FatalError):
            return None, 0.0, False, True, {"simulator_error": True}
        reward = time_step.reward
        if not np.isfinite(reward):
            return None, 0.0, False, True, {"simulator_error": True}
        terminated = time_step.last() and time_step.discount == 0.0
        truncated = not terminated and (time_step.last() or self._env_steps >= self._max_env_steps)
        return None, reward, terminated, truncated, {}

    def _make_scene(self) -> Scene:
        physics, fixed = self._env.physics, self._domain not in RANDOM_MODELS
        name = f"{self._domain}-{self._task}"
        return Scene(name, physics.model.ptr, physics.data.ptr, self._camera, self._image_size, fixed)

    def _state(self) -> np.ndarray:
        import mujoco

        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def _observe(self) -> np.ndarray:
        if self._states:
            return self._state()
        return self._scene.read() if self._scene else self._render(self._image_size, self._image_size)

    def _render(self, height: int, width: int) -> np.ndarray:
        if (
            height,
            width,
        ) not in self._views:  # creating one for each frame would double the cost of a fast frame
            self._views[height, width] = self._make_view(height, width)
        return np.ascontiguousarray(self._views[height, width].render())

    def _make_view(self, height: int, width: int):
        from dm_control.mujoco.engine import Camera

        return Camera(self._env.physics, height, width, self._camera)

    @property
    def model(self) -> Any:
        """The MuJoCo model."""
        return self._env.physics.model

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high of the simulator's actions, which [-1, 1] is mapped to."""
        return self._low, self._high

    @property
    def max_env_steps(self) -> int:
        """Simulator steps of the longest episode."""
        return self._max_env_steps

    @property
    def cameras(self) -> list[str]:
        """The names of its cameras, in the order of their numbers; empty for one without a name."""
        return camera_names(self.model)

    def _choose_camera(self, camera: int | str | None) -> int:
        if camera is None:
            return CAMERAS.get(self._domain, 0)
        return camera_number(f"{self._domain}-{self._task}", self.cameras, camera)

    def _time_limit(self) -> int:
        limit = self._env._step_limit  # dm_control has no public attribute for it
        return ENDLESS_TASK_STEPS if np.isinf(limit) else round(limit)

    def _action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        spec = self._env.action_spec()
        unbounded = (spec.minimum < -UNBOUNDED) | (
            spec.maximum > UNBOUNDED
        )  # lqr: its controls are forces near 1
        return np.where(unbounded, -1.0, spec.minimum), np.where(unbounded, 1.0, spec.maximum)


def _load_suite(domain: str, task: str, seed: int | None, args: dict[str, Any]):
    """EnvError where the task does not take `args`."""
    from absl import logging
    from dm_control import suite

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # otherwise every worker warns that dm_control's own models are deprecated
    try:
        return suite.load(domain, task, task_kwargs={**args, "random": seed})
    except (TypeError, ValueError) as error:
        if not args:
            raise
        raise unfit_args(f"{domain}-{task}", args, error, suite._DOMAINS[domain].SUITE[task], "random") from error
    finally:
        logging.set_verbosity(verbosity)


def _unknown(name: str, tasks: list[str]) -> str:
    near = difflib.get_close_matches(name, tasks, n=3)
    if near:
        return f"unknown env {name!r}: did you mean {' or '.join(near)}? (or module:factory for your own)"
    return (
        f"unknown env {name!r}: name a dm_control task such as cheetah-run, an id of gymnasium such as HalfCheetah-v5 "
        "(`envs` lists them), or module:factory for your own"
    )
