"""Tables on the console: their style, and a width that shows all of their letters."""

import sys

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MOST_WIDTH = 1000  # characters of a table


def table_console(width: int) -> Console:
    """The console for a table. A file or pipe has no width: `width` keeps each label on one line there."""
    return Console(width=None if sys.stdout.isatty() else width)


def new_table(title: str = "") -> Table:
    """An empty table in the style of all of them."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = Text(title), "left"  # Text: rich would parse [...] in a folder's name as markup
    return table


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table with all its letters: a terminal that is too narrow for them breaks the lines itself."""
    console = console or Console()
    before, wide = console.width, console.options.update(width=MOST_WIDTH)
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", False
    console.width = max(before, Measurement.get(console, wide, table).minimum)  # it prints nothing wider than itself
    console.print(table)
    console.width = before
