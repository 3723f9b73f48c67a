"""One environment from its name."""

import gymnasium

from dreamer_mpc.envs.custom import make_custom_env
from dreamer_mpc.envs.dmc import RENDER_QUALITIES, DMCEnv
from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.gl import offer_gl_backend


def make_env(
    name: str,
    *,
    action_repeat: int = 2,
    image_size: int = 64,
    render_quality: str = "full",
    camera: int | None = None,
    max_env_steps: int | None = None,
) -> gymnasium.Env:
    """The environment `domain-task` of dm_control, or a custom one named `module:factory`.

    Observations are uint8 [image_size, image_size, 3], actions float32 [A] in [-1, 1]. One step repeats its
    action `action_repeat` times and returns the sum of the rewards; `info["env_steps"]` counts the simulator
    steps it took (fewer where the episode ends). `max_env_steps` ends an episode, as truncated, after that
    many simulator steps. `render_quality` (`full`; `small-shadows`, shadow maps of a quarter of the pixels;
    `fast`, no shadows and no multisampling) and `camera` apply to dm_control only.

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
    shared = {"action_repeat": action_repeat, "image_size": image_size, "max_env_steps": max_env_steps}
    if ":" in name:
        offer_gl_backend()
        return make_custom_env(name, **shared)
    return DMCEnv(name, render_quality=render_quality, camera=camera, **shared)
