"""A package that this program needs and that the Python which runs it lacks. Imports none of them itself."""

import sys
import traceback
from pathlib import Path

from dreamer_mpc.util.program import FOLDER, SCRIPT


def missing_package(error: BaseException) -> str | None:
    """The line for the user where an import by this program's own code found no such package; None for other errors.

    Not that of a user's module, or of a package that is there but lacks one of its own.
    """
    package = (getattr(error, "name", None) or "").partition(".")[0]
    importers = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, ModuleNotFoundError) or not importers or package in ("", FOLDER.name):
        return None
    if importers[-1].partition(".")[0] != FOLDER.name:
        return None
    return f"this Python ({sys.executable}) has no {package}: {_remedy()}"


def _remedy() -> str:
    """What gives a Python with all packages: the clone's environment, if it is there and another one runs."""
    clone = SCRIPT.parent
    if not SCRIPT.exists():
        return "install this program again, with the packages that it needs"
    here = Path.cwd() == clone
    activate, setup = (name if here else str(clone / name) for name in (".venv/bin/activate", "scripts/setup.sh"))
    if (clone / ".venv").is_dir() and (clone / ".venv").resolve() != Path(sys.prefix).resolve():
        return f"activate the environment with `. {activate}`"
    return f"set up an environment with `bash {setup}`, then activate it with `. {activate}`"
