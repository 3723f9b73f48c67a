"""Range checks of settings; each error names its setting."""

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

LARGEST = 2**31 - 1  # for integers: counts, sizes and seeds, which some libraries keep in 32 bits
WIDEST = 2**16  # for layers of networks


def check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    """ValueError unless value is finite and low <= value <= high; None means no bound, for integers `LARGEST`."""
    if high is None and isinstance(value, int) and value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {str(value)[:20]}")
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        bounds = bounds if math.isfinite(value) else "finite"
        raise ValueError(f"{name} must be {bounds}, got {value}")


def check_ranges(settings: Any, **ranges: tuple[float | None, float | None]) -> None:
    """`check_range` for every named field of `settings`, and for each value of a tuple."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, (tuple, list)) else [value]:
            check_range(name, number, low, high)


def check_most(settings: Any, most: int, *names: str) -> None:
    """ValueError unless every named field of `settings`, and each value of a tuple, is at most `most`."""
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, (tuple, list)) else [value]:
            if number > most:
                raise ValueError(f"{name} must be at most {most}, got {str(number)[:20]}")


def check_each(name: str, values: tuple[str, ...], known: Any) -> None:
    """ValueError unless each of `values` is one of the values of the Literal `known`."""
    for value in values:
        if value not in get_args(known):
            raise ValueError(f"{name} must be among {', '.join(get_args(known))}, got {value!r}")


def check_choices(settings: Any) -> None:
    """ValueError unless each field typed as a Literal holds one of its values."""
    for name, annotation in get_type_hints(type(settings)).items():
        if get_origin(annotation) is Literal and getattr(settings, name) not in get_args(annotation):
            known = ", ".join(map(str, get_args(annotation)))
            raise ValueError(f"{name} must be one of {known}, got {getattr(settings, name)!r}")
