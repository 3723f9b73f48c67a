"""Build what a config describes: environments, agent, and the size of the replay buffer."""

import os
import textwrap
from typing import Any

import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config.resolve import Trained, agent_of
from dreamer_mpc.config.schema import Config
from dreamer_mpc.envs import make_vector_env
from dreamer_mpc.envs.gl import match_egl_device, prepare_gl
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.util.arguments import read_env_args
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.gpus import idle_gpu


def make_envs(config: Config, num_envs: int, device: torch.device) -> RowVectorEnv:
    """`num_envs` environments set up by `config`, rendered on the GPU of `device` with an OpenGL backend that works.

    With the render quality `warp` their images are drawn on `device` and stay there, as tensors.
    """
    prepare_gl(config.env)
    if device.type == "cuda":
        match_egl_device(device.index)
    envs = make_vector_env(config.env, num_envs, **env_settings(config))
    if config.render_quality != WARP:
        return envs
    try:
        from dreamer_mpc.rendering.rows import DrawnRows  # loads an optional package

        return DrawnRows(envs, config.images, device)
    except BaseException:
        envs.close()
        raise


def choose_rendering_gpu(config: Config, device: torch.device) -> list[str]:
    """Have the environments that are made next drawn on the GPU of `--render-device`; lines for the user.

    Where it says nothing else, `make_envs` has them drawn on that of `device`. UserError where a GPU that was named
    cannot be.
    """
    asked = config.render_device
    if asked == "same":
        return []
    if asked == "idle":
        index = idle_gpu(device) if device.type == "cuda" else None
    else:
        index, count = int(asked.removeprefix("cuda:")), torch.cuda.device_count()
        if index >= count:
            raise UserError(f"no GPU {asked} to draw on: torch sees {count}; use --render-device same")
    if index is not None:
        prepare_gl(config.env)
        if match_egl_device(index):
            return [f"environments are drawn on cuda:{index}"]
    chosen = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if asked == "idle":
        reason = f"MUJOCO_EGL_DEVICE_ID={chosen} is set" if chosen else "no idle GPU was found to draw environments on"
        return [f"{reason}: --render-device idle changes nothing"]
    reason = f"MUJOCO_EGL_DEVICE_ID={chosen} is set: unset it, or" if chosen else "EGL does not name that GPU:"
    raise UserError(f"nothing can be drawn on {asked}, as {reason} use --render-device same")


def try_renderer(config: Config) -> None:
    """UserError where what draws the images of `config` cannot be loaded."""
    if config.render_quality == WARP:
        from dreamer_mpc.rendering.renderer import load_warp

        load_warp()


def env_settings(config: Config) -> dict[str, Any]:
    """The arguments of `make_env` besides the name, as `config` sets them."""
    names = ("action_repeat", "render_quality", "camera", "max_env_steps", "image_size", "grayscale", "frame_stack")
    return {name: getattr(config, name) for name in names} | {"env_args": read_env_args(config.env_args)}


def make_agent(config: Config, action_dim: int, device: torch.device) -> Agent:
    """The agent that `config` describes, with weights drawn from torch's global generator."""
    return Dreamer(
        action_dim,
        config.world_model,
        config.behavior if agent_of(config) == "dreamer" else None,
        config.optimizer,
        device,
        capture=config.compile == "auto",
        bf16=config.precision == "bf16",
        kernels=config.kernels == "auto",
        images=config.images,
    )


def load_agent(checkpoint: Trained, config: Config, action_dim: int, device: torch.device) -> Agent:
    """An agent with the weights of a checkpoint; UserError where the environment has another action size."""
    trained = checkpoint.action_dim
    if trained != action_dim:
        raise UserError(
            f"the checkpoint was trained on {checkpoint.config['env']} with {trained} action dimensions, "
            f"this environment ({config.env}) has {action_dim}: use an environment with {trained}"
        )
    agent = make_agent(config, action_dim, device)
    try:
        agent.load_state_dict(checkpoint.agent)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Weights of another kind of network have other names, all of which torch lists.
        reason = textwrap.shorten(str(error).strip().splitlines()[-1], 200, placeholder=" ...")
        raise UserError(f"the checkpoint's weights do not fit --world-model and --behavior: {reason}") from error
    return agent


def side_by_side_envs(wanted: int, episodes: int) -> int:
    """Number of environments to step at once: at most as many as requested, as CPU cores, and as episodes."""
    return max(1, min(wanted, episodes, len(os.sched_getaffinity(0))))


def replay_capacity(config: Config) -> int:
    """Frames that the replay of this run holds; UserError where a training environment's share is too small."""
    # With room for two sequences, some sequence lies inside one long enough episode, wherever the episodes begin.
    least = 2 * config.replay.sequence_length
    if config.replay.capacity < config.num_envs * least:
        raise UserError(
            f"--replay.capacity {config.replay.capacity:,} has less than {least} frames (two sequences) for each of "
            f"{config.num_envs} training environments: raise it, or lower --num-envs or --replay.sequence-length"
        )
    # An episode adds one frame more than it has steps.
    most = int(1.02 * config.env_steps / config.action_repeat) + 2000 + config.num_envs * least
    return min(config.replay.capacity, most) // config.num_envs * config.num_envs
