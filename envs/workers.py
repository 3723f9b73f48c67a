"""Environments in one worker process each, and the replacement of a worker that dies."""

import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np

from dreamer_mpc.envs.errors import EnvError
from dreamer_mpc.envs.output import lasting_output
from dreamer_mpc.envs.processes import SPAWN, belong_to_parent, how_it_ended, kill, start_process
from dreamer_mpc.envs.rows import CALLS, RowVectorEnv, call, check_equal_spaces
from dreamer_mpc.envs.surroundings import seed_generators

MAX_DEATHS = 5  # of one row's workers, within a minute or without a step in between
MINUTE = 60.0
POLL_SECONDS = 1.0
SILENT_SECONDS = 300.0  # timeout of one answer, after which a worker counts as hanging and dead
CLOSE_SECONDS = 5.0


class WorkerDied(Exception):
    """A worker has ended or hangs."""


class Worker:
    """A spawned process that makes an environment, sends `(observation space, action space)`, then answers calls.

    It leads a process group, in which processes that the environment starts are ended with it.
    `WorkerVectorEnv` ends it before the program's end.
    """

    def __init__(self, factory: Callable[[], gymnasium.Env], row: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        try:
            self.process = start_process(_serve, (factory, theirs, row), f"env-{row}")
        finally:
            theirs.close()
        self._spaces: tuple[gymnasium.Space, gymnasium.Space] | None = None
        self.has_stepped, self._hangs = False, False

    @property
    def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        """The spaces of observations and actions, waited for once. Raises as `receive`."""
        if self._spaces is None:
            self._spaces = self._read()
        return self._spaces

    def send(self, call: str, *args: Any) -> None:
        """Request `env.<call>(*args)`; `receive` reports a dead process."""
        try:
            self._pipe.send((call, args))
        except OSError:
            pass

    def receive(self) -> Any:
        """The answer to the last call; raises WorkerDied, or the environment's exception."""
        _ = self.spaces
        return self._read()

    def bury(self) -> str:
        """End the process if it still runs; returns how it ended."""
        self._pipe.close()
        if not self._hangs:
            self.process.join(POLL_SECONDS)
        self.kill()
        self.process.join()
        if self._hangs:
            return f"no answer in {SILENT_SECONDS:.0f} s"
        return how_it_ended(self.process)

    def kill(self) -> None:
        """Kill the process, and what its environment started, without waiting."""
        kill(self.process)

    def _read(self) -> Any:
        # A worker's end closes the pipe, unless one of its child processes holds it open: so the loop also polls.
        polls = 0  # counted, because a clock would also count the time during which a whole job is suspended
        while not self._pipe.poll(POLL_SECONDS):
            polls += 1
            self._hangs = polls * POLL_SECONDS >= SILENT_SECONDS
            if self._hangs or (not self.process.is_alive() and not self._pipe.poll()):
                raise WorkerDied
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise WorkerDied from None
        if kind == "error":
            raise EnvError(answer)
        if kind == "bug":
            raise RuntimeError(f"in the process of an environment:\n{answer}")
        return answer


class WorkerVectorEnv(RowVectorEnv):
    """`num_envs` environments of one factory, each in its own spawned process.

    A process that dies (out of memory, a crash of the simulator) or hangs is replaced. If that happens in or before a
    step, the row's answer is: image and reward zero, truncated, `info["env_steps"]` 0, `info["lost"]` true and
    `info["death"]` how it ended; reset the row next. In or before a reset nothing is lost: the new process resets with
    the same seed. `EnvError` if it keeps dying, or dies during set-up. An environment's own error is raised here.
    """

    def __init__(self, name: str, factory: Callable[[], gymnasium.Env], num_envs: int) -> None:
        self._name, self._factory = name, factory
        self._deaths: list[list[float]] = [[] for _ in range(num_envs)]  # times of each row's deaths, in seconds
        self._pending: str | None = None  # the call whose answers are not all read yet
        self._workers: list[Worker] = []
        # At exit, multiprocessing would send SIGTERM, which workers ignore, and wait for ever.
        Finalize(self, _kill_all, args=(self._workers,), exitpriority=0)
        try:
            spaces = self._set_up(num_envs)
        except BaseException:
            self.close()
            raise
        super().__init__(num_envs, spaces)

    @property
    def processes(self) -> list[BaseProcess]:
        """The worker process of each row."""
        return [worker.process for worker in self._workers]

    def close_extras(self) -> None:
        """End the workers: by request when idle, killed without a message during a call."""
        if self._pending is None:
            for worker in self._workers:
                worker.send("close")
            deadline = time.monotonic() + CLOSE_SECONDS
            for process in self.processes:
                process.join(max(0.0, deadline - time.monotonic()))
        _kill_all(self._workers)

    def _begin(self, call: str) -> None:
        if self._pending is not None:
            raise gymnasium.error.AlreadyPendingCallError(f"{call} amid a {self._pending}", self._pending)
        self._pending = call

    def _ended(self) -> None:
        self._pending = None

    def _set_up(self, num_envs: int) -> tuple[gymnasium.Space, gymnasium.Space]:
        """The spaces of one environment, after all workers have sent theirs."""
        self.num_envs, self._pending, spaces = num_envs, "set-up", []
        for row in range(num_envs):
            self._workers.append(self._start(row))
        for row, worker in enumerate(self._workers):
            try:
                spaces.append(worker.spaces)
            except WorkerDied:
                raise self._error(row, f"died in its set-up ({worker.bury()})") from None
            check_equal_spaces(self._name, spaces)
        self._pending = None
        return spaces[0]

    def _begin_reset(self, rows: np.ndarray, seeds: Sequence[int | None]) -> None:
        self._begin("reset")
        for row in rows:
            self._workers[row].send("reset", seeds[row])

    def _begin_step(self, rows: np.ndarray, actions: np.ndarray) -> None:
        self._begin("step")
        for row in rows:
            self._workers[row].send("step", actions[row])

    def _end_step(self, row: int) -> tuple[np.ndarray | int, float, bool, bool, dict[str, Any]]:
        try:
            answer = self._workers[row].receive()
        except WorkerDied:
            return 0, 0.0, False, True, {"env_steps": 0, "lost": True, "death": self._replace(row)}
        self._workers[row].has_stepped = True
        return answer

    def _end_reset(self, row: int, seed: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        death = {}
        while True:
            try:
                image, info = self._workers[row].receive()
                return image, info | death
            except WorkerDied:
                death = {"death": self._replace(row)}
                self._workers[row].send("reset", seed)

    def _call(self, rows: np.ndarray, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A worker that dies here is an error: the state that it was in is lost."""
        self._begin(method)
        for row, each in zip(rows, args, strict=True):
            self._workers[row].send(method, *each)
        answers = []
        for row in rows:
            try:
                answers.append(self._workers[row].receive())
            except WorkerDied:
                raise self._error(row, f"died in {method} ({self._workers[row].bury()})") from None
        self._ended()
        return answers

    def _ask(self, row: int, method: str) -> Any:
        self._begin(method)
        self._workers[row].send(method)
        try:
            answer = self._workers[row].receive()
        except WorkerDied:
            answer = None
        self._ended()
        return answer

    def _replace(self, row: int) -> str:
        """Start another process for `row` without waiting for it; returns how the last one ended."""
        how, now = self._workers[row].bury(), time.monotonic()
        if self._workers[row].has_stepped:
            self._deaths[row] = [death for death in self._deaths[row] if now - death < MINUTE]
        self._deaths[row].append(now)
        if len(self._deaths[row]) > MAX_DEATHS:
            raise self._error(row, f"died {len(self._deaths[row])} times in short order (the last time: {how})")
        self._workers[row] = self._start(row)
        return how

    def _start(self, row: int) -> Worker:
        try:
            return Worker(self._factory, row)
        except OSError as error:
            raise self._error(row, f"cannot be started ({error.strerror})") from error

    def _error(self, row: int, what: str) -> EnvError:
        return EnvError(
            f"{self._name}: the process of environment {row} (of {self.num_envs}) {what}: "
            "if memory ran out, lower --num-envs; else try the environment alone, with --num-envs 1"
        )


def _kill_all(workers: list[Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.process.join()


@lasting_output()
def _serve(factory: Callable[[], gymnasium.Env], pipe: Connection, row: int) -> None:
    """Main loop of a worker: sends answers (`ok`, `error` or `bug`, and a value) until told to close or orphaned."""
    belong_to_parent()
    seed_generators(row)  # what a factory draws from them repeats, and differs from row to row
    env = None
    try:
        env = factory()
        pipe.send(("ok", (env.observation_space, env.action_space)))
        while True:
            method, args = pipe.recv()
            if method == "reset":
                pipe.send(("ok", env.reset(seed=args[0])))
            elif method == "step":
                pipe.send(("ok", env.step(args[0])))
            elif method in CALLS:
                pipe.send(("ok", call(env, method, args)))
            else:
                break
    except EnvError as error:
        _send_last(pipe, ("error", str(error)))
    except (EOFError, KeyboardInterrupt):  # the latter if a library restored the handler of SIGINT
        pass
    except Exception:
        _send_last(pipe, ("bug", traceback.format_exc()))
    finally:
        if env is not None:
            env.close()


def _send_last(pipe: Connection, answer: tuple[str, str]) -> None:
    try:
        pipe.send(answer)
    except OSError:
        pass
