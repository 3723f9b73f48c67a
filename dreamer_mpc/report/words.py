"""Numbers in words, as every message and table writes them."""

from typing import SupportsFloat


def plural(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: SupportsFloat) -> str:
    """`0:12:33`, or `2d 03:04` for a day or more."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}" if days else f"{hours}:{minute:02d}:{second:02d}"


def mean_and_spread(mean: float, std: float, episodes: int) -> str:
    """A return with the standard deviation over the episodes, which one episode does not have."""
    return f"{mean:.1f} ± {std:.1f}" if episodes > 1 else f"{mean:.1f}"


def rate_in_words(value: float) -> str:
    """A number per second: `0.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def return_in_words(value: SupportsFloat | None) -> str:
    """The return of an episode, a dash for None."""
    return "-" if value is None else f"{float(value):.1f}"
