"""Numbers in words, as every message and table writes them."""

import math
from typing import SupportsFloat

MOST_DIGITS = 4  # behind the point


def plural(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: SupportsFloat) -> str:
    """`0:12:33`, or `2d 03:04` for a day or more."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}" if days else f"{hours}:{minute:02d}:{second:02d}"


def decimals(usual: int, *values: float | None) -> int:
    """Digits behind the point of numbers that stand together: `usual`, or those of two figures where all are small."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return min(1 - math.floor(math.log10(largest)), MOST_DIGITS) if usual and 0 < largest < 1 else usual


def mean_and_spread(mean: float, std: float, episodes: int) -> str:
    """A return with the standard deviation over the episodes, which one episode does not have."""
    spread = std if episodes > 1 else None
    digits = decimals(1, mean, spread)
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def rate_in_words(value: float) -> str:
    """A number per second: `0.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def return_in_words(value: SupportsFloat | None) -> str:
    """The return of an episode, a dash for None."""
    return "-" if value is None else f"{float(value):.{decimals(1, float(value))}f}"
