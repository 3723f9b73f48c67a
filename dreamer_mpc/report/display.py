"""What the progress of runs, episodes and sweeps is shown with: a live display on a terminal, plain lines elsewhere."""

import os
from abc import ABC, abstractmethod

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dreamer_mpc.util.stop import Stop

LINE_EVERY_S = 30.0  # at most, where no display is live


def is_live(console: Console) -> bool:
    """Whether a display can be drawn again and again: not in a file, even where FORCE_COLOR asks for colours there."""
    return console.is_terminal and not console.is_dumb_terminal and (console.file.isatty() or not _forced())


def _forced() -> bool:
    return any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


class Lines:
    """Prints lines, above a display where one is live."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._is_live = is_live(self._console)

    def line(self, text: str) -> None:
        """Print a line above the live display."""
        self._console.print(Text(text), soft_wrap=True)


class LiveDisplay(Lines, ABC):
    """Context manager of a display that is live on a terminal, with the notice of `stop` below it.

    The notice is a part of the display, which would overwrite it otherwise; it stays with the last state on the screen.
    """

    REFRESHES_PER_S = 4

    def __init__(self, console: Console | None, stop: Stop | None):
        super().__init__(console)
        self._stop = stop or Stop()

    @abstractmethod
    def _display(self) -> Table:
        """What is shown now."""

    @abstractmethod
    def _end(self) -> None:
        """Print the last state where no display was live."""

    def _render(self) -> RenderableType:
        notice = self._stop.notice
        return Group(self._display(), Text(notice, style="bold yellow")) if notice else self._display()

    def __enter__(self):
        if self._is_live:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=self.REFRESHES_PER_S
            )
            self._live.start()
            self._stop.displayed = True
        return self

    def __exit__(self, *error):
        if self._is_live:
            self._live.stop()
            self._stop.displayed = False
        else:
            self._end()
