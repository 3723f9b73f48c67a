"""The end of this program: an error that nobody expected, and the end of the process with the command's exit code."""

import atexit
import contextlib
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from dreamer_mpc.util.errors import in_one_line
from dreamer_mpc.util.versions import program_version

VARIABLE = "DREAMER_MPC_TRACEBACK"  # variable: print tracebacks in place of the line
TRACEBACKS = "traceback.txt"
THREAD_SECONDS = 5.0  # that threads of others may go on after the last line


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
    """Exit, and wait at most `THREAD_SECONDS` for threads that an environment or a library started and did not end."""
    joined = threading.Event()
    atexit.register(joined.set)  # these functions are called when Python has joined all threads
    threading.Thread(target=_end_without, args=(joined, code), daemon=True).start()
    sys.exit(code)


def _end_without(joined: threading.Event, code: int) -> None:
    if joined.wait(THREAD_SECONDS):
        return
    left = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
    with contextlib.suppress(OSError, ValueError):
        print(f"threads that do not end are left behind: {', '.join(left)}", file=sys.stderr, flush=True)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)
