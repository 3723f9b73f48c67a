"""Environments as `gymnasium.Env`: 64x64 pixels in, actions in [-1, 1], alone or in spawned workers."""

from envs.dmc import RENDER_QUALITIES, list_tasks
from envs.errors import EnvError
from envs.gl import choose_gl_backend, match_egl_device
from envs.make import make_env
from envs.snapshot import Restorable
from envs.vector import make_vector_env, reset_rows, try_env
from envs.view import UNKNOWN, Facts

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
