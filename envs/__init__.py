"""Environments as `gymnasium.Env`: 64x64 pixels in, actions in [-1, 1], alone or in spawned workers."""

from dreamer_mpc.envs.dmc import RENDER_QUALITIES, list_tasks
from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.gl import choose_gl_backend, match_egl_device
from dreamer_mpc.envs.make import make_env
from dreamer_mpc.envs.snapshot import Restorable
from dreamer_mpc.envs.vector import make_vector_env, reset_rows, try_env
from dreamer_mpc.envs.view import UNKNOWN, Facts

__all__ = [
    "RENDER_QUALITIES",
    "UNKNOWN",
    "EnvError",
    "Facts",
    "Restorable",
    "choose_gl_backend",
    "list_tasks",
    "make_env",
    "make_vector_env",
    "match_egl_device",
    "reset_rows",
    "try_env",
]
