"""One environment from its name."""

from collections.abc import Mapping
from typing import Any

import gymnasium

from dreamer_mpc.envs.custom import make_custom_env
from dreamer_mpc.envs.dmc import RENDER_QUALITIES, DMCEnv
from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.frames import MOST_STACKED, Frames
from dreamer_mpc.envs.gl import offer_gl_backend
from dreamer_mpc.envs.names import is_task
from dreamer_mpc.envs.scene import WARP


def make_env(
    name: str,
    *,
    action_repeat: int = 2,
    image_size: int = 64,
    render_quality: str = "full",
    camera: int | str | None = None,
    max_env_steps: int | None = None,
    env_args: Mapping[str, Any] | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
) -> gymnasium.Env:
    """The environment `domain-task` of dm_control, an id of gymnasium such as `HalfCheetah-v5`, or `module:factory`.

    Observations are uint8 [image_size, image_size, C], where C is 3, or 1 with `grayscale`, times `frame_stack`, the
    number of last frames that are given side by side; actions float32 [A] in [-1, 1]. One step repeats its
    action `action_repeat` times and returns the sum of the rewards; `info["env_steps"]` counts the simulator
    steps it took (fewer where the episode ends). `max_env_steps` ends an episode, as truncated, after that
    many simulator steps. `render_quality` (`full`; `small-shadows`, shadow maps of a quarter of the pixels;
    `fast`, no shadows and no multisampling) and `camera`, a number or a name, apply to dm_control and to gymnasium's
    MuJoCo environments. With the quality `warp`, of dm_control alone, observations are scenes, float32 [F], of which
    `dreamer_mpc.rendering` makes images of that form. `env_args` are arguments of the task, of `gymnasium.make`, or of
    the factory.

    Raises `EnvError`, one line with its remedy: unknown name, unusable setting or factory, no OpenGL.
    """
    if action_repeat < 1:
        raise EnvError(f"action_repeat must be 1 or more, got {action_repeat}")
    if image_size < 1:
        raise EnvError(f"image_size must be 1 or more, got {image_size}")
    if max_env_steps is not None and max_env_steps < 1:
        raise EnvError(f"max_env_steps must be 1 or more, got {max_env_steps}")
    if render_quality not in RENDER_QUALITIES:
        raise EnvError(f"render_quality must be one of {', '.join(RENDER_QUALITIES)}, got {render_quality!r}")
    if render_quality == WARP and not is_task(name):
        raise EnvError(f"{name}: render_quality warp draws tasks of dm_control alone: use full, small-shadows or fast")
    if not 1 <= frame_stack <= MOST_STACKED:
        raise EnvError(f"frame_stack must be between 1 and {MOST_STACKED}, got {frame_stack}")
    shared = {"action_repeat": action_repeat, "image_size": image_size, "max_env_steps": max_env_steps}
    shared |= {"env_args": dict(env_args or {}), "camera": camera, "render_quality": render_quality}
    if is_task(name):
        env = DMCEnv(name, **shared)
    else:
        offer_gl_backend()
        env = make_custom_env(name, **shared)
    framed = (grayscale or frame_stack > 1) and render_quality != WARP
    return Frames(env, grayscale=grayscale, stack=frame_stack) if framed else env
