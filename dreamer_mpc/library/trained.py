"""A trained agent for a program of one's own: to play, to imagine with, and to look into."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import Config, check_runs, planner_from, preset_kind
from dreamer_mpc.config.make import env_settings, load_agent
from dreamer_mpc.envs import make_env, make_vector_env
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.evaluation.subject import Subject
from dreamer_mpc.library.arrays import Array, read
from dreamer_mpc.library.player import Bounds, Player
from dreamer_mpc.planners import PLANNERS, Planner, make_planner
from dreamer_mpc.planners.rollout import LatentNoise, draw_noise, joined, policy_rollout, rollout
from dreamer_mpc.util.checks import check_kind, check_whole
from dreamer_mpc.util.device import choose_device, preserved_rng
from dreamer_mpc.world_model import ImageForm


class Dream(NamedTuple):
    """Imagined steps 1 .. H; without the leading N where one state was given."""

    states: Array  # [N, H, S], for `decode`
    actions: Array  # [N, H, A], in [-1, 1]; actions[k] led to states[k]
    rewards: Array  # [N, H], received on arriving in states[k]
    values: Array | None  # [N, H], the critic's means, each with the reward of its state; None without a critic


@dataclass(frozen=True, repr=False)
class TrainedAgent:
    """An agent with the weights of a checkpoint; made by `load`."""

    path: Path
    config: Config  # of its training
    env_steps: int  # that it was trained for
    agent: Agent

    def __repr__(self) -> str:
        return f"TrainedAgent({str(self.path)!r}, {self.config.env}, {self.env_steps:,} env steps)"

    @property
    def action_dim(self) -> int:
        """A, the numbers of an action."""
        return self.agent.model.action_dim

    @property
    def state_dim(self) -> int:
        """S, the size of a latent state."""
        return self.agent.state_dim

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that it sees."""
        return self.agent.model.world_model.images.shape

    def make_env(self, **changes: Any) -> gymnasium.Env:
        """The environment that it was trained in, which takes actions in [-1, 1]; `changes` are those of `make_env`.

        ValueError, in one line, for a setting that there is not or a value of another type; EnvError for other values.
        """
        own = env_settings(self.config)
        if unknown := [key for key in changes if key not in own]:
            raise ValueError(f"make_env has no setting {', '.join(unknown)}: known are {', '.join(own)}")
        kinds = get_type_hints(make_env)
        for key, value in changes.items():
            check_kind(key, value, kinds[key])
        settings = own | changes
        if settings["render_quality"] != WARP:
            return make_env(self.config.env, **settings)
        from dreamer_mpc.rendering.env import DrawnEnv  # loads an optional package

        form = ImageForm(settings["image_size"], 1 if settings["grayscale"] else 3, settings["frame_stack"])
        return DrawnEnv(make_vector_env(self.config.env, 1, **settings), form, self.agent.device)

    def player(
        self, planner: str | Planner | None = None, *, seed: int = 0, bounds: Bounds | None = None, **settings: Any
    ) -> Player:
        """A `Player` under a planner, by default the one of its evaluations.

        A planner is a name of `PLANNERS` or of a preset, with the agent's own settings but for `settings`, or an object
        of yours. ValueError or UserError, in one line, for an unknown name or setting.
        """
        planner = self.config.planner if planner is None else planner
        if isinstance(planner, str):
            planner = self._planner(planner, settings)
        elif settings:
            raise ValueError(f"{', '.join(settings)}: settings go with the name of a planner, not with an object")
        return Player(self.agent, planner, self.image_shape, seed, bounds)

    def _planner(self, name: str, settings: dict[str, Any]) -> Planner:
        planner = planner_from(self.config, name)
        own = {field.name: getattr(planner, field.name) for field in fields(planner)}
        planner = make_planner(name if name in PLANNERS else preset_kind(name), **own | settings)
        check_runs(name, planner, self.config, f"{self.path} holds")
        return planner

    @torch.no_grad()
    def imagine(
        self, state: Any, actions: Any = None, *, horizon: int = 15, noise: LatentNoise = "mean", seed: int = 0
    ) -> Dream:
        """Walk through the world model from latent states, float32 [S] or [N, S], such as `player.state`.

        Along `actions`, float32 [H, A] or [N, H, A] in [-1, 1], or for `horizon` steps under the mode of the policy.
        `noise`: `mean` takes the most likely step each time, `fresh` samples, from `seed`. ValueError, in one line, for
        inputs that do not fit.
        """
        if noise not in get_args(LatentNoise):
            raise ValueError(f"noise must be one of {', '.join(get_args(LatentNoise))}, got {noise!r}")
        check_whole("horizon", horizon, 1)
        check_whole("seed", seed, 0)
        model = self.agent.model
        start, form = read("a state", state, (self.state_dim,), torch.float32, self.agent.device)
        taken = None if actions is None else self._actions(actions, len(start))
        if taken is None and not hasattr(model, "policy"):
            raise ValueError(f"{self.path} holds a PlaNet agent, which has no policy: give imagine the actions")
        with preserved_rng(self.agent.device):
            torch.manual_seed(seed)
            if taken is None:
                draws = draw_noise(model, start, horizon, noise)
                walked = policy_rollout(model, start, horizon, noise=draws, mode=True)
                states, taken = walked.states, joined(walked.leaves)
            else:
                draws = draw_noise(model, start[:, None], taken.shape[1], noise)  # [N, 1, H, Z]
                states = rollout(model, start, taken[:, None], draws)[:, 0]
        values = model.value(states).mean(0) if hasattr(model, "value") else None
        parts = (states, taken, model.reward(states), values)
        return Dream(*(None if part is None else form.answer(part) for part in parts))

    def _actions(self, actions: Any, rows: int) -> Tensor:
        taken, form = read("actions", actions, ("H", self.action_dim), torch.float32, self.agent.device)
        if len(taken) != rows:
            raise ValueError(f"actions of {len(taken)} environments do not fit {rows} states: give as many of both")
        return taken.clamp(-1, 1)

    @torch.no_grad()
    def decode(self, states: Any) -> Array:
        """The images that latent states [..., S] stand for: uint8 [..., H, W, C]. ValueError as from `imagine`."""
        fits = isinstance(states, np.ndarray | Tensor) and tuple(states.shape[-1:]) == (self.state_dim,)
        shape = states.shape[:-1] if fits else ()
        flat = states.reshape(-1, self.state_dim) if len(shape) else states
        rows, form = read("a state", flat, (self.state_dim,), torch.float32, self.agent.device)
        image = form.answer(self.agent.model.world_model.decode(rows))
        return image.reshape(*shape, *image.shape[-3:])


def load(path: str | Path, device: str | torch.device = "auto") -> TrainedAgent:
    """The agent of a checkpoint file, or of the newest checkpoint of a run folder.

    `device`: auto, cpu, cuda or cuda:N. UserError, in one line, where there is no checkpoint or device, or it does not
    fit. Training cannot go on from here: that is `run.py --resume` and `--init-from`.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"a path must be a text or a pathlib.Path, got {type(path).__name__}")
    chosen = choose_device(device)
    subject = Subject.load(path)
    config = replace(subject.trained, device=str(chosen))
    agent = load_agent(subject.checkpoint, config, subject.checkpoint.action_dim, chosen)
    return TrainedAgent(subject.path, subject.trained, subject.checkpoint.counters.env_steps, agent)
