"""Checks of the types and ranges of settings; each error names its setting."""

import math
from dataclasses import fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**31 - 1  # for integers: counts, sizes and seeds, which some libraries keep in 32 bits
WIDEST = 2**16  # for layers of networks
NUMBERS: dict[Any, type] = {int: Integral, float: Real}
WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}


def check_range(name: str, value: float, low: float | None, high: float | None) -> None:
    """ValueError unless value is finite and low <= value <= high; None means no bound, for integers `LARGEST`."""
    if high is None and isinstance(value, int) and value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {str(value)[:20]}")
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        bounds = bounds if math.isfinite(value) else "finite"
        raise ValueError(f"{name} must be {bounds}, got {value}")


def check_whole(name: str, value: Any, low: int) -> None:
    """ValueError unless value is a whole number from `low` to `LARGEST`."""
    check_kind(name, value, int)
    check_range(name, value, low, None)


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


def check_kinds(settings: Any) -> None:
    """ValueError unless each field holds a value of its type.

    Numbers may be NumPy's; a whole one is a float too, and a bool is no number.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        check_kind(field.name, getattr(settings, field.name), hints[field.name])


def check_kind(name: str, value: Any, kind: Any) -> None:
    """ValueError unless value is of the type `kind`, as in `check_kinds`."""
    if not _is_of(value, kind):
        raise ValueError(f"{name} must be {_in_words(kind)}, got {' '.join(repr(value).split())[:80]}")


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in parts)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in parts)
    if origin is tuple:
        each = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_is_of, value, each))
    return isinstance(value, NUMBERS.get(kind, origin or kind)) and (kind is bool or not isinstance(value, bool))


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"a tuple of {'' if parts[-1] is ... else f'{len(parts)} '}values, each {_in_words(parts[0])}"
    return WORDS.get(kind) or f"a {(origin or kind).__name__}"
