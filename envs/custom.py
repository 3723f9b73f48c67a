"""Custom environments with pixels, named `module:factory`, and those of gymnasium, named by their ids.

Every error in them becomes an `EnvError` of one line.
"""

import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.actions import StepResult, repeat_action, to_bounds
from dreamer_mpc.envs.errors import EnvError, arguments_of, describe_error, shorten
from dreamer_mpc.envs.gymnasium_ids import make_gymnasium_env
from dreamer_mpc.envs.imports import import_module, is_of_folder, is_standard
from dreamer_mpc.envs.names import is_gymnasium_id
from dreamer_mpc.envs.snapshot import Restorable, is_restorable, not_restorable
from dreamer_mpc.envs.surroundings import Surroundings, seed_generators
from dreamer_mpc.envs.view import declared_names, declared_speed

LARGEST_BOUND = 1e9  # larger bounds, such as those of np.finfo, count as no bounds
# Returns are up to 1 / (1 - discount) times as large, and their squared errors, sums of those over a batch, and squared
# norms of their gradients must stay below 3.4e38, the largest number of float32 and of bfloat16.
LARGEST_REWARD = 1e10
BRIGHTEST = 255  # value of a pixel
# Array libraries: einops, which the agent uses, takes any imported module of such a name for the real one.
LOOKED_FOR = {"cupy", "jax", "mlx", "oneflow", "paddle", "pytensor", "tensorflow", "tinygrad"}
# Imported before a user's of that name; all but the package itself only from a clone.
OWN_PACKAGES = ("envs", "dreamer_mpc", "run", "tests", "benchmarks", "scripts")

# Environments of this process that are not closed, by the identity of what a factory returned.
_IN_USE: "weakref.WeakValueDictionary[int, CustomEnv]" = weakref.WeakValueDictionary()


class Wrong(Exception):
    """An invalid answer of an environment and the expected one: the end of a sentence that `guarded` begins."""


def guarded(name: str, call: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `function(*args, **kwargs)`, which is user code; its exceptions become an `EnvError` that names both.

    This includes SystemExit: a library's `sys.exit` must not end a training run as if it were complete.
    """
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except Wrong as wrong:
        raise EnvError(f"{name}: {call} {wrong}") from None
    except BaseException as error:
        raise EnvError(f"{name}: {call} raised {describe_error(error)}: {_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"install {missing}" if missing else "mend it in the environment's code"


def make_custom_env(
    name: str,
    *,
    action_repeat: int,
    image_size: int,
    max_env_steps: int | None,
    env_args: dict[str, Any] | None = None,
    camera: int | str | None = None,
    render_quality: str = "full",
) -> gymnasium.Env:
    """The environment that `module:factory` returns, or that an id names, wrapped as in `make_env`; or `EnvError`."""
    settings = {"action_repeat": action_repeat, "image_size": image_size, "max_env_steps": max_env_steps}
    args = env_args or {}
    with Surroundings() as surroundings:
        if is_gymnasium_id(name):
            env = make_gymnasium_env(name, image_size, camera, render_quality, args)
        else:
            env = _call_factory(name, _load_factory(name, args), args)
        guarded(name, "the factory", _check_env, env)
        made = guarded(name, "the environment", CustomEnv, env, name=name, surroundings=surroundings, **settings)
    _IN_USE[id(made.unwrapped)] = made
    return made


class CustomEnv(gymnasium.Wrapper, Restorable):
    """Resizes images, maps actions from [-1, 1] to the environment's bounds, repeats and counts them, checks answers.

    The environment's `info` is dropped: nothing reads it, and its entries may not match across rows. A seed of `reset`
    also seeds the global generators that the environment sees, which are its own (`Surroundings`). Its state can be
    copied if it inherits from `Restorable` itself.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        name: str,
        surroundings: Surroundings,
        action_repeat: int,
        image_size: int,
        max_env_steps: int | None,
    ) -> None:
        super().__init__(env)
        self._surroundings = surroundings
        self.metadata = {"render_fps": 30, **env.metadata, "render_modes": ["rgb_array"]}
        self._name = name
        self.steps_per_s = declared_speed(env, action_repeat)
        self.action_names = declared_names(env.unwrapped)
        self._action_repeat = action_repeat
        self._image_size = image_size
        self._max_env_steps = max_env_steps
        self._env_steps = 0
        self._image = None
        self._shape = env.observation_space.shape
        self._low, self._high = env.action_space.low, env.action_space.high
        self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._low.shape, np.float32)

    @property
    def render_mode(self) -> str:
        """Always `rgb_array`: an environment without a renderer uses its observation."""
        return "rgb_array"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start a new episode; `info["env_steps"]` is 0."""

        def ask() -> np.ndarray:
            if seed is not None:
                seed_generators(seed)
            return _read_reset(self.env.reset(seed=seed, options=options), self._shape)

        self._image = self._guarded("reset()", ask)
        self._env_steps = 0
        return self._resize(self._image), {"env_steps": 0}

    def step(self, action: np.ndarray):
        """Repeat `action` [A]; ValueError for an action that is not finite."""
        control = to_bounds(action, self._low, self._high)
        self._image, *result = repeat_action(self._step_once, control, self._action_repeat)
        return self._resize(self._image), *result

    def render(self) -> np.ndarray:
        """The present frame for a video, uint8 [height, width, 3] in the environment's own size."""
        if self._guarded("render_mode", lambda: self.env.render_mode) == "rgb_array":
            return self._guarded("render()", self.env.render)
        return np.array(self._image)

    @property
    def restorable(self) -> bool:
        """Whether the environment itself is."""
        return self._guarded("restorable", lambda: is_restorable(self.env))

    def get_state(self) -> tuple[Any, int, np.ndarray]:
        """The environment's own state, and what is counted and kept here; EnvError where it has none."""
        if not self.restorable:
            raise not_restorable(self._name)
        return self._guarded("get_state()", self.env.get_state), self._env_steps, self._image

    def set_state(self, state: tuple[Any, int, np.ndarray]) -> np.ndarray:
        """Go back to `state`; the image is the one that the environment answers."""

        def ask() -> np.ndarray:
            image = self.env.set_state(inner)
            _check_observation(image, self._shape)
            return image

        inner, self._env_steps, self._image = state
        self._image = self._guarded("set_state()", ask)
        return self._resize(self._image)

    def close(self) -> None:
        """Close the environment; ignore any error that it raises."""
        try:
            self._guarded("close()", self.env.close)
        except EnvError:
            pass
        _IN_USE.pop(id(self.unwrapped), None)

    def _guarded(self, call: str, function: Callable[[], Any]) -> Any:
        with self._surroundings:
            return guarded(self._name, call, function)

    def _step_once(self, control: np.ndarray) -> StepResult:
        def ask() -> tuple[np.ndarray, float, bool, bool]:
            # Pass a copy: the environment may change it in place, and it is repeated.
            return _read_step(self.env.step(control.copy()), self._shape)

        observation, reward, terminated, truncated = self._guarded("step()", ask)
        self._env_steps += 1
        if self._max_env_steps is not None and self._env_steps >= self._max_env_steps:
            truncated = truncated or not terminated
        return observation, reward, terminated, truncated, {}

    def _resize(self, image: np.ndarray) -> np.ndarray:
        size = (self._image_size, self._image_size)
        if image.shape[:2] == size:
            return image
        import cv2

        image = np.ascontiguousarray(image)
        return guarded(self._name, "resizing its image", cv2.resize, image, size, interpolation=cv2.INTER_AREA)


def _load_factory(name: str, args: dict[str, Any]) -> Callable[..., gymnasium.Env]:
    module_name, _, factory_name = name.partition(":")
    if not module_name or not factory_name or module_name.startswith("."):
        raise EnvError(f"{name}: write module:factory, for example my_envs.robot:make")
    try:
        module = guarded(name, f"importing {module_name}", import_module, module_name)
    except EnvError as raised:
        cause = raised.__cause__
        if not isinstance(cause, ImportError):
            raise
        remedy = _how_to_import(module_name, cause)
        raise EnvError(f"{name}: cannot import {module_name} ({shorten(cause)}); {remedy}") from cause
    package = module_name.partition(".")[0]
    if package in LOOKED_FOR and is_of_folder(package):
        raise EnvError(f"{name}: einops would take your {package} for the library of that name: rename yours")
    factory = guarded(name, f"looking up {factory_name}", getattr, module, factory_name, None)
    if not callable(factory):
        hidden = f"; {_hidden(module_name)}" if is_standard(module_name) else ""
        raise EnvError(f"{name}: {module_name} has no function {factory_name}{hidden}")
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        named = f"with the arguments {', '.join(args)} of --env-args"
        given = named if args else "without arguments (--env-args gives some)"
        raise EnvError(f"{name}: the factory is called {given}, but {error}: {arguments_of(factory)}") from error
    except ValueError:  # some built-in functions have no signature; the call itself checks the arguments
        pass
    return factory


def _call_factory(name: str, factory: Callable[..., gymnasium.Env], args: dict[str, Any]) -> Any:
    """What the factory returns; an argument that something inside it does not take was the user's, in --env-args."""
    try:
        return guarded(name, "the factory", factory, **args)
    except EnvError as raised:
        cause = raised.__cause__
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(cause)) if type(cause) is TypeError else None
        if unexpected is None or unexpected[1] not in args:
            raise
        known = arguments_of(factory)
        raise EnvError(
            f"{name}: the factory cannot take {unexpected[1]} of --env-args ({describe_error(cause)}): leave it out, "
            f"or correct its name{f'; {known}' if known else ''}"
        ) from cause


def _how_to_import(module_name: str, error: ImportError) -> str:
    """The remedy where a module that the user named cannot be imported."""
    package, missing = module_name.partition(".")[0], error.name or ""
    if package in OWN_PACKAGES:
        return f"{package} is a package of this program, which hides yours of the same name: rename yours"
    if is_standard(module_name):
        return _hidden(module_name)
    if f"{module_name}.".startswith(f"{missing}."):
        return "it must lie in this folder or be installed"
    if isinstance(error, ModuleNotFoundError) and missing.partition(".")[0] != package:
        return f"it is there, but imports {missing}: install that"
    return "it is there: mend what it imports"


def _hidden(module_name: str) -> str:
    package = module_name.partition(".")[0]
    return f"{package} is a module of Python, which hides yours of the same name: rename yours"


def _check_env(env: Any) -> None:
    if not isinstance(env, gymnasium.Env):
        raise Wrong(f"must return a gymnasium.Env, got {_kind(env)}")
    if id(env.unwrapped) in _IN_USE:
        raise Wrong(
            "returned an environment that is already in use: it must make a new one each time, or, if there can be one "
            "in a process, --num-envs 2 --eval.num-envs 2 give each a process of its own"
        )
    images, actions = env.observation_space, env.action_space
    box = isinstance(images, gymnasium.spaces.Box)
    if not box or images.dtype != np.uint8 or len(images.shape) != 3 or images.shape[2] != 3 or 0 in images.shape:
        remedy = "gymnasium.wrappers.AddRenderObservation turns a render() into observations"
        raise Wrong(
            "made an environment that does not fit: observations must be pixels, a Box of uint8 [height, width, 3], "
            f"got {shorten(images)}; {remedy}"
        )
    if images.high.max() < BRIGHTEST:
        raise Wrong(
            f"made an environment that does not fit: pixels go from 0 to {BRIGHTEST}, but its observations end at "
            f"{images.high.max()} and would be seen as almost black; scale them to 0 to {BRIGHTEST}, and declare that"
        )
    continuous = isinstance(actions, gymnasium.spaces.Box) and actions.dtype.kind == "f"
    if not continuous or len(actions.shape) != 1 or 0 in actions.shape:
        raise Wrong(
            f"made an environment that does not fit: actions must be a Box of floats [A], got {shorten(actions)}; "
            "wrap it so that it takes continuous actions"
        )
    if not (np.abs(actions.low) <= LARGEST_BOUND).all() or not (np.abs(actions.high) <= LARGEST_BOUND).all():
        raise Wrong(
            "made an environment that does not fit: actions must have finite bounds (within 1e9), "
            f"got {shorten(actions)}; give the Box a low and a high"
        )


def _read_reset(result: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The observation of a reset's answer."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Wrong(f"must return (observation, info), got {_kind(result)}")
    observation, info = result
    _check_observation(observation, shape)
    _check_info(info)
    return observation


def _read_step(result: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, float, bool, bool]:
    """Observation, reward, terminated and truncated of a step's answer."""
    if not isinstance(result, tuple | list) or len(result) != 5:
        raise Wrong(f"must return (observation, reward, terminated, truncated, info), got {_kind(result)}")
    observation, reward, terminated, truncated, info = result
    _check_observation(observation, shape)
    _check_info(info)
    return observation, _number(reward), _truth("terminated", terminated), _truth("truncated", truncated)


def _check_observation(observation: Any, shape: tuple[int, ...]) -> None:
    fits = isinstance(observation, np.ndarray) and observation.dtype == np.uint8 and observation.shape == shape
    if not fits:
        declared = f"uint8 {list(shape)}, as its observation_space declares"
        raise Wrong(f"returned an observation that does not fit: it must be {declared}, got {_kind(observation)}")


def _check_info(info: Any) -> None:
    if not isinstance(info, dict):
        raise Wrong(f"returned an info that does not fit: it must be a dict, got {_kind(info)}")


def _number(reward: Any) -> float:
    array = np.asarray(reward)  # an array with one element is also accepted
    if array.size != 1 or array.dtype.kind not in "fiub":
        raise Wrong(f"returned a reward that does not fit: it must be one number, got {_kind(reward)}")
    value = float(array.item())
    if not abs(value) <= LARGEST_REWARD:
        raise Wrong(f"returned the reward {value}: it must be finite and within ±1e10, or squared errors overflow")
    return value


def _truth(which: str, flag: Any) -> bool:
    array = np.asarray(flag)
    if array.size != 1 or array.dtype.kind != "b":
        raise Wrong(f"returned a flag that does not fit: {which} must be a bool, got {_kind(flag)}")
    return bool(array.item())


def _kind(value: Any) -> str:
    """A short description of `value`: `int 3`, `float32 [64, 64, 3]`, `tuple of 4`, `torch.Tensor`."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, bool | int | float | str | np.generic):
        return f"{type(value).__name__} {shorten(value)}"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
