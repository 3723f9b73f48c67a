"""Environments, each in its own process, and what happens when such a process dies."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np

from envs.errors import EnvError
from envs.rows import RowVectorEnv, check_equal_spaces

MAX_DEATHS = 5  # of one row's processes, within a minute or without a step between them
MINUTE = 60.0
POLL_SECONDS = 1.0
SILENT_SECONDS = 300.0  # awaited for one answer; then a worker that hangs is taken for dead
CLOSE_SECONDS = 5.0
STOPS = {signal.SIGINT, signal.SIGTERM}  # sent to a whole group; the parent ends its workers
SPAWN = multiprocessing.get_context("spawn")  # a forked copy of a process that uses CUDA or OpenGL would not work


class WorkerDied(Exception):
    """A worker gives no answer any more: it has ended, or hangs."""


class Worker:
    """A spawned process that makes an environment, says `(observation space, action space)`, then answers calls."""

    def __init__(self, factory: Callable[[], gymnasium.Env], row: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=_serve, args=(factory, theirs), name=f"env-{row}", daemon=True)
        # Blocked while it starts, as a child inherits that: Ctrl-C is the parent's to handle, from the first moment.
        resource_tracker.ensure_running()  # multiprocessing's helper, whose own start would unblock it again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._spaces: tuple[gymnasium.Space, gymnasium.Space] | None = None
        self.has_stepped, self._hangs = False, False

    @property
    def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        """Of observations and actions, waited for once. Raises as `receive`."""
        if self._spaces is None:
            self._spaces = self._read()
        return self._spaces

    def send(self, call: str, *args: Any) -> None:
        """Ask for `env.<call>(*args)`; a dead process is found by `receive`."""
        try:
            self._pipe.send((call, args))
        except OSError:
            pass

    def receive(self) -> Any:
        """The answer to the call sent before; WorkerDied, or what the environment raised."""
        _ = self.spaces
        return self._read()

    def bury(self) -> str:
        """End the process if it has not, and say how it ended."""
        self._pipe.close()
        if not self._hangs:
            self.process.join(POLL_SECONDS)
        self.process.kill()
        self.process.join()
        if self._hangs:
            return f"no answer in {SILENT_SECONDS:.0f} s"
        code = self.process.exitcode
        if code >= 0:
            return f"exit status {code}"
        known = -code in signal.valid_signals() and -code in {s.value for s in signal.Signals}
        return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"

    def _read(self) -> Any:
        # The end of its process closes the pipe, unless a child of its own holds it open: hence the polls.
        polls = 0  # counted, because a clock would also count the time that a whole job is suspended
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
    """`num_envs` environments of one factory, in a spawned process each.

    A process that dies (out of memory, a crash of the simulator) or hangs is replaced. If that happens in or before a
    step, the row's answer is: image and reward zero, truncated, `info["env_steps"]` 0, `info["lost"]` true and
    `info["death"]` how it ended; reset it next. In or before a reset nothing is lost: the new one makes it, with the
    same seed. `EnvError` if it goes on dying, or dies at the set-up. An environment's own error is raised here.
    """

    def __init__(self, name: str, factory: Callable[[], gymnasium.Env], num_envs: int) -> None:
        self._name, self._factory = name, factory
        self._deaths: list[list[float]] = [[] for _ in range(num_envs)]  # of each row, in seconds
        self._pending: str | None = None  # the call whose answers are not all read
        self._workers: list[Worker] = []
        # At a program's end multiprocessing asks them with SIGTERM, which they ignore, and waits for ever.
        Finalize(self, _kill_all, args=(self._workers,), exitpriority=0)
        try:
            spaces = self._set_up(num_envs)
        except BaseException:
            self.close()
            raise
        super().__init__(num_envs, spaces)

    @property
    def processes(self) -> list[multiprocessing.Process]:
        """The workers' processes, row by row."""
        return [worker.process for worker in self._workers]

    def close_extras(self) -> None:
        """End the workers: asked to when idle, killed at once and quietly amid a call."""
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
        """The spaces of one environment, once all have said theirs."""
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

    def _replace(self, row: int) -> str:
        """Start another process for `row`, not waiting for it; how the last one ended."""
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
        worker.process.kill()
    for worker in workers:
        worker.process.join()


def _serve(factory: Callable[[], gymnasium.Env], pipe: Connection) -> None:
    """A worker's whole life: answers (`ok`, `error` or `bug`, and what) until told to close, or its parent is gone."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env = None
    try:
        env = factory()
        pipe.send(("ok", (env.observation_space, env.action_space)))
        while True:
            call, args = pipe.recv()
            if call == "reset":
                pipe.send(("ok", env.reset(seed=args[0])))
            elif call == "step":
                pipe.send(("ok", env.step(args[0])))
            else:
                break
    except EnvError as error:
        _send_last(pipe, ("error", str(error)))
    except (EOFError, KeyboardInterrupt):  # the latter where a library put SIGINT's handler back
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


def _end_with_parent() -> None:
    """End this process as soon as its parent has, even in the middle of a step."""
    multiprocessing.parent_process().join()
    os._exit(1)
