"""Evaluations beside training: the parent's side of the process that plays them, and what plays them without one."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from dreamer_mpc.agents.protocol import Agent
from dreamer_mpc.config import Config
from dreamer_mpc.envs.processes import SPAWN, how_it_ended, kill, start_process
from dreamer_mpc.envs.rows import RowVectorEnv
from dreamer_mpc.evaluation.player import (
    Failure,
    Order,
    Played,
    Player,
    evaluation_envs,
    player_of_checkpoints,
    serve,
)
from dreamer_mpc.evaluation.progress import lines_of_evaluation
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util.errors import UserError

POLL_SECONDS = 0.2  # between two looks at what else happened, where an evaluation is waited for
CLOSE_SECONDS = 5.0


def plays_beside(config: Config, device: torch.device) -> bool:
    """Whether evaluations are played beside training; of itself only where that costs no determinism and saves time."""
    if config.eval.beside == "auto":
        return device.type == "cuda" and config.num_envs > 1
    return config.eval.beside == "on"


class EvaluationFailed(Exception):
    """The process cannot play, and has ended; the text is for the user."""


class Beside:
    """The process that plays the evaluations of the run that `config` describes, one at a time.

    It sets itself up while the run goes on; what fails there is reported by the first `receive`.
    """

    def __init__(self, config: Config):
        self._pipe, theirs = SPAWN.Pipe()
        try:
            self._process = start_process(serve, (config, theirs), "evaluation")
        except OSError as error:
            raise UserError(
                f"no process for evaluations can be started ({error.strerror}): end other programs, or start with "
                "--eval.beside off"
            ) from error
        finally:
            theirs.close()
        # At exit, multiprocessing would wait for ever for a process that nobody ends.
        self._kill = Finalize(self, _kill, args=(self._process,), exitpriority=0)
        self._idle = False  # it has answered, and was not asked again

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Begin to play `order`, whose checkpoint is a file; `receive` reports a process that has died."""
        self._idle = False
        with contextlib.suppress(OSError):
            self._pipe.send(order)

    def receive(self, seconds: float) -> Played | None:
        """The result, waited for at most `seconds`; None: it is not there yet. Raises EvaluationFailed."""
        alive = self._process.is_alive()  # asked first: what it sent before its end can then be read
        if not self._pipe.poll(seconds):
            if alive:
                return None
            raise self._died()
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(answer, Failure):
            if answer.out_of_memory:
                raise EvaluationFailed("ran out of memory (--eval.beside off starts none)")
            raise EvaluationFailed(f"failed ({answer.reason})")
        self._idle = True
        return answer

    def close(self) -> None:
        """End the process: by request when idle, killed amid its set-up or an evaluation."""
        if self._idle:
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(CLOSE_SECONDS)
        self._kill()
        self._pipe.close()

    def _died(self) -> EvaluationFailed:
        self._process.join(CLOSE_SECONDS)
        kill(self._process)
        self._process.join()
        return EvaluationFailed(f"died ({how_it_ended(self._process)}; if memory ran out: --eval.beside off)")


def _kill(process: BaseProcess) -> None:
    kill(process)
    process.join()


class Evaluator:
    """Plays the evaluations of one run: of the agent as it is, while nothing trains, or of its snapshots `beside`.

    `beside` is the process for that, or None; without it, environments are `envs`, which are made when they are needed
    first and closed by `opened`. Where the process fails, one line says so, and all further evaluations, the failed one
    included, are played here. `say` takes a line for the user. `on_step` is called at each step of an evaluation here,
    and while a result is waited for; what it raises leaves everything as it was.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        agent: Agent,
        envs: RowVectorEnv | None,
        beside: Beside | None,
        opened: contextlib.ExitStack,
    ):
        self._config, self._folder, self._agent = config, folder, agent
        self._envs, self._opened = envs, opened
        self.say: Callable[[str], None] = print
        self.on_step: Callable[[], None] = lambda: None
        self._order: Order | None = None  # what is played beside
        self.beside = beside
        self.number, self.seconds, self.waited = 0, 0.0, 0.0  # of the evaluations that were played beside

    def play(self, env_steps: int) -> Played:
        """Play the agent as it is."""
        return self._here(Order(env_steps, self._config.planner, self._stem(env_steps)))

    def begin(self, env_steps: int, snapshot: Path) -> None:
        """Begin to play the agent of a checkpoint file, which must not change before `result` gave its result."""
        self._begin(Order(env_steps, self._config.planner, self._stem(env_steps), snapshot))

    def result(self, wait: bool = False) -> Played | None:
        """The result of what was begun; None: it is not there yet, unless it is waited for."""
        began = time.monotonic()
        while self.beside:
            try:
                played = self.beside.receive(POLL_SECONDS if wait else 0.0)
            except EvaluationFailed as failed:
                self.say(f"the process of evaluations {failed}: from this one on, training waits for each")
                self.beside.close()
                self.beside = None
                break
            if played or not wait:
                self._count(played, time.monotonic() - began)
                return played
            self.on_step()
        return self._here(self._order)

    def under(self, planner: str, checkpoint: Path) -> Played:
        """Play the agent, which `checkpoint` holds as well, under another planner, and wait for the result."""
        order = Order(0, planner, None)
        if not self.beside:
            return self._here(order)
        self._begin(replace(order, checkpoint=checkpoint))
        return self.result(wait=True)

    def _begin(self, order: Order) -> None:
        self._order = order
        if self.beside:
            self.beside.send(order)

    def _here(self, order: Order) -> Played:
        if self._envs is None:
            self._envs = evaluation_envs(self._config, self._agent.device)
            self._opened.callback(self._envs.close)
        if order.checkpoint is None:
            player = Player(self._config, self._agent, self._envs)
        else:  # training has gone on since
            player = player_of_checkpoints(self._config, self._envs, self._agent.device)
        said = lines_of_evaluation(self.say, order.planner, self._config.eval.episodes, self._envs.num_envs)

        def on_step(step: int, ended: int) -> None:
            self.on_step()
            said(step, ended)

        return player.play(order, on_step)

    def _count(self, played: Played | None, waited: float) -> None:
        self.waited += waited
        if played:
            self.number, self.seconds = self.number + 1, self.seconds + played.seconds

    def _stem(self, env_steps: int) -> Path:
        return self._folder.videos / f"{env_steps:08d}"
