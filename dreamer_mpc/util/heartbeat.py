"""Who owns a folder, over hosts: a process that writes its name to a file and touches it every few seconds.

Kernel locks are safer and freed at once, but do not reach other hosts on every network file system.
"""

import contextlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import psutil

from dreamer_mpc.util import slurm
from dreamer_mpc.util.files import temporary_path

BEAT_S = 10.0
STALE_S = 60.0  # an owner on another host that has not touched its file for so long is dead
LOOK_S = 1.0


def _machine() -> str:
    """The same for processes that can see each other's ids: the kernel since its start, and the namespace of ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return platform.node()


@dataclass(frozen=True)
class Owner:
    """A process that owns a folder."""

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=lambda: psutil.Process().create_time())
    machine: str = field(default_factory=_machine)
    job: str | None = field(default_factory=slurm.own_job)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self):
        if self.job is not None and not slurm.JOB_ID.fullmatch(self.job):
            raise ValueError(f"{self.job[:40]!r} is no id of a job")

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}" + (f", SLURM job {self.job}" if self.job else "")

    def text(self) -> str:
        """What its file holds: words for the user, then all fields."""
        return f"{self}\n{json.dumps(asdict(self))}\n"

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """The owner that wrote `text`; None where it is no owner's, or not whole yet."""
        try:
            values = json.loads(text.splitlines()[1])
            return cls(**values | {"pid": int(values["pid"]), "started": float(values["started"])})
        except (IndexError, KeyError, ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine, which can be asked for it."""
        return self.machine == _machine()

    def lives_here(self) -> bool:
        """Whether a process of this machine goes on; only for one that `is_here`."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1.0
        except psutil.Error:
            return False


def read_owner(path: Path) -> Owner | None:
    """The owner in the file `path`; None if there is none."""
    try:
        return Owner.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def text_of(file: IO[str]) -> str:
    """What an open file holds; it is not opened again, which would end a lock on it when that is closed."""
    try:
        return os.pread(file.fileno(), 4096, 0).decode("utf-8", "replace")
    except OSError:
        return ""


def is_still(file: IO[str], path: Path) -> bool:
    """Whether the open file has the name `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def owner_in(file: IO[str], path: Path) -> Owner | None:
    """The owner that `path` names, which is open as `file` unless it was replaced; None if there is none."""
    if is_still(file, path):
        return Owner.parse(text_of(file))
    return read_owner(path)


def lives(owner: Owner, path: Path) -> bool:
    """Whether the process that wrote `path` goes on.

    On another host: it does while the file was touched less than `STALE_S` ago, which is waited for, and while SLURM
    runs its job, even if that is suspended. A touch in the meantime decides at once.
    """
    if owner.is_here:
        return owner.lives_here()
    said, before = False, _touched(path)
    while before is not None and (left := STALE_S - (_now(path.parent) - before)) > 0:
        if not said:
            said = True
            print(
                f"{path.parent} belonged to {owner}: waiting {left:.0f} s to be sure that it has ended", file=sys.stderr
            )
        time.sleep(min(LOOK_S, left))
        now = _touched(path)
        if now != before:
            return now is not None
    if owner.job is None or owner.job == slurm.own_job():  # SLURM starts a requeued job when the one before has ended
        return False
    return slurm.state(owner.job) in slurm.ON_NODES


def _touched(path: Path) -> float | None:
    """When the file was touched last, by the clock of its file system; None if it is gone."""
    try:
        with path.open("rb") as file:  # on NFS, opening a file asks the server
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return None


def _now(folder: Path) -> float:
    """The time by the same clock, which may differ from that of this host."""
    probe = temporary_path(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class Heartbeat:
    """In its context a thread touches the file of its owner; where another has taken it over, the process ends at once.

    That can only be after a pause of `STALE_S` (a suspended process, a file system that hung): whatever this process
    would write then would damage the other one's files.
    """

    def __init__(self, file: IO[str], path: Path, owner: Owner):
        self._file, self._path, self._owner, self._end = file, path, owner, threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        owner = owner_in(self._file, self._path)
        if owner is not None and owner.token != self._owner.token:
            line = f"error: {self._path.parent} was taken over by {owner}: this process ends without writing\n"
            os.write(2, line.encode())
            os._exit(2)
        with contextlib.suppress(OSError):
            os.utime(self._path)
