"""Arguments of environments as users write them: name=value."""

import json
from collections.abc import Sequence
from typing import Any

WORDS = {"True": True, "False": False, "None": None}


def read_env_args(words: Sequence[str]) -> dict[str, Any]:
    """The arguments by name. A value is read as JSON, or as Python's True, False and None, else as text.

    ValueError, in one line, for a word that is not name=value, and for a name that comes twice.
    """
    args: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"env_args must be name=value, with a name of Python, got {word!r}")
        if name in args:
            raise ValueError(f"env_args must have each name once, got {name} twice")
        args[name] = _read(value)
    return args


def _read(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
