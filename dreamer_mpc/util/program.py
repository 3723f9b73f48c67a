"""How this program is called: from a clone, `python run.py`; installed, `dreamer-mpc` or `python -m dreamer_mpc`."""

import shlex
import sys
from pathlib import Path

import dreamer_mpc

FOLDER = Path(dreamer_mpc.__file__).resolve().parent
SCRIPT = FOLDER.parent / "run.py"  # of a clone


def program(command: str = "") -> str:
    """`python run.py`, or as it was called otherwise, and a command of it, for lines that a user may repeat there."""
    called = Path(sys.argv[0]).parts[-2:]
    if called[-1:] == ("dreamer-mpc",):
        words = ["dreamer-mpc"]
    elif called == (FOLDER.name, "__main__.py") or not SCRIPT.exists():
        words = ["python", "-m", "dreamer_mpc"]
    else:
        words = ["python", "run.py" if Path.cwd() == SCRIPT.parent else shlex.quote(str(SCRIPT))]
    return " ".join([*words, command] if command else words)


def start_words() -> list[str]:
    """The first words of a command that starts this program in another process, from any folder."""
    return [sys.executable, str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "dreamer_mpc"]
