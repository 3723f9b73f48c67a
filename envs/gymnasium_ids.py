"""Environments by their ids in gymnasium's registry, seen through their renderer."""

import contextlib
import difflib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.dmc import RENDER_QUALITIES, camera_names, camera_number
from dreamer_mpc.envs.errors import EnvError, describe_error, shorten, unfit_args
from dreamer_mpc.envs.names import MUJOCO

# Modules of gymnasium whose environments render; those of these ids have no continuous actions, or not by default.
RENDERED = (MUJOCO, "gymnasium.envs.classic_control", "gymnasium.envs.box2d")
DISCRETE = ("Acrobot", "CartPole", "LunarLander", "MountainCar")


def list_ids() -> list[str]:
    """The ids of gymnasium's own environments with continuous actions, in their latest versions."""
    latest: dict[str, int] = {}
    for spec in gymnasium.registry.values():
        own = str(spec.entry_point).startswith(RENDERED) and spec.namespace is None
        if own and spec.name not in DISCRETE and spec.version is not None:
            latest[spec.name] = max(spec.version, latest.get(spec.name, 0))
    return sorted(f"{name}-v{version}" for name, version in latest.items())


def make_gymnasium_env(
    name: str, image_size: int, camera: int | str | None, render_quality: str, args: dict[str, Any]
) -> gymnasium.Env:
    """The environment of an id, whose observations are what it renders, unless they are pixels already.

    MuJoCo's environments render in the size that is asked for, from `camera`, a number or a name. EnvError for an id
    that is not registered, and for a camera of any other environment.
    """
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name.rpartition(":")[2], gymnasium.registry, n=3)
        known = f"did you mean {' or '.join(near)}?" if near else "`envs` lists those that are known"
        raise EnvError(f"{name} is no id that gymnasium knows: {known}") from error
    mujoco = str(spec.entry_point).startswith(MUJOCO)
    if camera is not None and not mujoco:
        raise EnvError(f"{name} has no choice of cameras: leave --camera out")
    settings: dict[str, Any] = {"render_mode": "rgb_array", "disable_env_checker": True}
    if mujoco:
        settings |= {"width": image_size, "height": image_size}
    if camera is not None:
        settings |= {"camera_name": camera} if isinstance(camera, str) else {"camera_id": camera}
    try:
        with _without_warnings() if mujoco else contextlib.nullcontext():
            env = gymnasium.make(name, **settings | args)
        if mujoco:
            _prepare(name, env, camera, render_quality)
        images = env.observation_space
        if isinstance(images, gymnasium.spaces.Box) and images.dtype == np.uint8 and len(images.shape) == 3:
            return env
        return gymnasium.wrappers.AddRenderObservation(env, render_only=True)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(f"{name} needs a package that is not installed: {shorten(error)}") from error
    except EnvError:
        raise
    except Exception as error:
        if args and isinstance(error, TypeError):
            creator = gymnasium.envs.registration.load_env_creator
            maker = creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
            raise unfit_args(name, args, error, maker, *settings) from error
        raise EnvError(f"{name}: gymnasium.make raised {describe_error(error)}: check what it needs") from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """MuJoCo warns of gymnasium's own models, in every worker, and writes a log file into the present folder."""
    import mujoco

    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


def _prepare(name: str, env: gymnasium.Env, camera: int | str | None, render_quality: str) -> None:
    """Check the camera, of which MuJoCo ignores an unknown one, and set the quality, before the first frame."""
    model = env.unwrapped.model
    if camera is not None:
        camera_number(name, camera_names(model), camera)
    for setting, value in RENDER_QUALITIES[render_quality].items():
        setattr(model.vis.quality, setting, value)
