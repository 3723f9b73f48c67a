"""What starts the runs of a sweep: one file for each way, and a row in `LAUNCHERS` (`launchers.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from dreamer_mpc.config import SweepConfig
    from dreamer_mpc.sweeps.run import Run


@dataclass(frozen=True)
class End:
    """How a started run ended."""

    code: int | None  # 0: it is complete, or ended of itself; None: its metrics say whether it is complete
    said: str = ""  # how it ended, where the run itself could not say it
    again: bool = True  # whether it may be started again
    asked: bool = False  # it was asked to save and end, by this command or another one


@runtime_checkable
class Job(Protocol):
    """A run that was started."""

    running: bool  # False: it waits in a queue
    where: str  # where it runs or waits, for the user

    def poll(self) -> End | None:
        """How it ended; None while it has not."""

    def stop(self) -> None:
        """Ask it to save and exit."""

    def kill(self) -> None:
        """Kill it."""


@runtime_checkable
class Launcher(Protocol):
    """Starts runs."""

    Settings: ClassVar[type | None]  # a dataclass of options --NAME.OPTION, or None
    lasting: bool  # whether its jobs go on when the command ends
    poll_s: float  # seconds between two looks at jobs and metrics

    @classmethod
    def open(cls, sweep: "SweepConfig", settings: object, device: str) -> "Launcher":
        """For runs with `--device`; UserError where it cannot start any."""

    def find(self, runs: Sequence["Run"]) -> dict[str, tuple[Job, int]]:
        """The jobs of an earlier command that did not see their end, by name of run, and how often it was started."""

    def start(self, runs: Sequence["Run"], starts: Sequence[int]) -> list[Job]:
        """Start the first of `runs`, as many as there is room for; `starts`: how often each will have been started."""

    def forget(self, run: "Run") -> None:
        """The end of its job was seen."""

    def cancel(self, names: Sequence[str]) -> list[str]:
        """Ask the jobs of these runs, of all if there are none, to save and end; one line for each of them."""
