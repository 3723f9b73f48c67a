"""The end of this program: an error that nobody expected, and the end of the process with the command's exit code."""

import atexit
import contextlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from dreamer_mpc.util.errors import in_one_line
from dreamer_mpc.util.versions import program_version

VARIABLE = "DREAMER_MPC_TRACEBACK"  # variable: print tracebacks in place of the line
TRACEBACKS = "traceback.txt"
SECONDS = 5.0  # that threads and processes of others may go on after the last line


@contextlib.contextmanager
def tracebacks_in(folder: Path) -> Iterator[None]:
    """An error that leaves this context has its traceback kept in `folder`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.traceback_folder = folder
        raise


def unexpected(error: BaseException) -> int:
    """One line on an error that is not the user's, with the file of its traceback; gives the exit code, 1.

    The file is in the folder of `tracebacks_in`, else among the temporary files. The traceback itself is printed where
    no file can be written. With `VARIABLE` in the environment, the error is raised again.
    """
    if os.environ.get(VARIABLE):
        raise error
    said = in_one_line(error)
    if isinstance(error, SystemExit):
        said = f"something ended the program from within ({said})"
    file = _keep("".join(traceback.format_exception(error)), getattr(error, "traceback_folder", None))
    if file is None:
        traceback.print_exception(error)
        print(f"error: unexpected: {said}", file=sys.stderr)
    else:
        print(f"error: unexpected: {said}; for a report, its traceback is in {file}", file=sys.stderr)
    return 1


def _keep(text: str, folder: Path | None) -> Path | None:
    """The file to which the traceback was added, with what a report needs besides; None where that failed."""
    about = f"{datetime.now(UTC).isoformat(timespec='seconds')}, {program_version()}\n{' '.join(sys.argv)}\n"
    for where in [folder, None] if folder else [None]:
        try:
            file = where / TRACEBACKS if where else Path(tempfile.mkstemp(f"-{TRACEBACKS}", "dreamer-mpc-")[1])
            with file.open("a", encoding="utf-8", errors="backslashreplace") as opened:
                opened.write(f"{about}{text}\n")
        except OSError:
            continue
        return file
    return None


def end_process(code: int) -> NoReturn:
    """Exit, and wait at most `SECONDS` for threads, and for processes, that others started here and did not end."""
    joined = threading.Event()
    atexit.register(_end_processes)  # before multiprocessing's own function, which waits for them without a limit
    atexit.register(joined.set)  # called first of these, when Python has joined all threads
    threading.Thread(target=_end_without, args=(joined, code), daemon=True).start()
    sys.exit(code)


def _end_processes() -> None:
    """Kill the processes of multiprocessing that are no daemons; Python itself ends those that are."""
    until = time.monotonic() + SECONDS
    waited_for = [child for child in multiprocessing.active_children() if not child.daemon]
    for child in waited_for:
        child.join(max(0.0, until - time.monotonic()))
    left = [child for child in waited_for if child.is_alive()]
    for child in left:
        child.kill()
    if left:
        _say(f"processes that do not end are killed: {', '.join(child.name for child in left)}")


def _end_without(joined: threading.Event, code: int) -> None:
    if joined.wait(SECONDS):
        return
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    _say(f"threads that do not end are left behind: {', '.join(left)}")
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
