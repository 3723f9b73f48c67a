"""The evaluations of a training run: played by the run itself, or from its checkpoints in a process of their own."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import Config, planner_from
from dreamer_mpc.config.make import make_agent, make_envs, side_by_side_envs
from dreamer_mpc.envs import EnvError
from dreamer_mpc.envs.output import lasting_output
from dreamer_mpc.envs.processes import belong_to_parent
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.evaluation.episodes import EpisodeRecording, Evaluation, evaluate
from dreamer_mpc.evaluation.visualize import write_visuals
from dreamer_mpc.report.rows import drawn_by
from dreamer_mpc.runs.checkpoint import load_checkpoint
from dreamer_mpc.util.device import choose_device, preserved_rng
from dreamer_mpc.util.errors import UserError, in_one_line
from dreamer_mpc.util.memory import is_out_of_memory


@dataclass(frozen=True)
class Order:
    """What to play: the agent at `env_steps` under a planner, with video and picture at `stem` unless it is None."""

    env_steps: int
    planner: str
    stem: Path | None
    checkpoint: Path | None = None  # the file with the agent's weights; None: the agent as it is


@dataclass(frozen=True)
class Played:
    """An evaluation without its recording, which video and picture show."""

    evaluation: Evaluation
    shown: list[Path]  # video and picture
    notes: list[str]  # lines for the user, about a video or a picture that could not be written
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why an evaluation could not be played, in words."""

    reason: str
    out_of_memory: bool = False


class Player:
    """Plays evaluations of the run that `config` describes, with an agent and `RowVectorEnv`s that are its owner's."""

    def __init__(self, config: Config, agent: Agent, envs: RowVectorEnv):
        self._config, self._agent, self._envs = config, agent, envs

    def play(self, order: Order, on_step: Callable[[int, int], None] | None = None) -> Played:
        """The same numbers in every process (on a CPU: bit for bit). Raises what environments and `on_step` raise."""
        began, settings = time.monotonic(), self._config.eval
        if order.checkpoint:
            self._agent.load_state_dict({"model": load_checkpoint(order.checkpoint).agent["model"]})
        planner = planner_from(self._config, order.planner)
        recorded = settings.video_steps if settings.video and order.stem else 0
        evaluation = evaluate(
            self._agent, planner, self._envs, settings.episodes, settings.seed, recorded, on_step
        )
        shown: list[Path] = []
        notes: list[str] = []
        if recorded:
            world = drawn_by(self._config.evaluated_in, self._config.render_quality)
            title = f"{self._config.env}, {order.planner}, {order.env_steps:,} env steps{world}"
            shown = write_visuals(order.stem, self._agent, planner, order.planner, evaluation, title, notes.append)
        return Played(replace(evaluation, recording=EpisodeRecording()), shown, notes, time.monotonic() - began)


def evaluation_envs(config: Config, device: torch.device) -> RowVectorEnv:
    """The environments of evaluations, for their owner to close."""
    drawn = replace(config, render_quality=config.evaluated_in)
    return make_envs(drawn, side_by_side_envs(config.eval.num_envs, config.eval.episodes), device)


def player_of_checkpoints(config: Config, envs: RowVectorEnv, device: torch.device) -> Player:
    """A player with an agent of its own, whose weights come with each order. torch's generators are not touched."""
    with preserved_rng(device):
        return Player(config, make_agent(config, envs.single_action_space.shape[0], device), envs)


@lasting_output()
def serve(config: Config, pipe: Connection) -> None:
    """Main loop of a process: answer each `Order` by `Played` or, as the last answer, `Failure`, until None comes."""
    belong_to_parent()
    try:
        device = choose_device(config.device)
        with contextlib.closing(evaluation_envs(config, device)) as envs:
            player = player_of_checkpoints(config, envs, device)
            while (order := pipe.recv()) is not None:
                pipe.send(player.play(order))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the latter if a library restored the handler of SIGINT
        pass
    except Exception as error:
        reason = str(error) if isinstance(error, (EnvError, UserError)) else in_one_line(error)
        with contextlib.suppress(OSError):
            pipe.send(Failure(reason, is_out_of_memory(error)))
