"""The end of the program: its exit code, whatever others left running."""

import pytest

from tests.support.commands import ROOT, script

ENDS = """
import atexit, multiprocessing, runpy, sys, threading, time
import dreamer_mpc.util.ending as ending
ending.SECONDS = {limit}
threading.Thread(target=time.sleep, args=({seconds},), name="camera").start()
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=({seconds},), name="helper")
child.start()
atexit.register(print, "atexit")
sys.argv = ["run.py", {command!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("command", ["--version", "nonsense"])
@pytest.mark.parametrize("left", [True, False], ids=["a thread that goes on", "a thread that ends"])
def test_a_thread_or_process_that_does_not_end_does_not_hold_up_the_end(command, left, tmp_path):
    """Exit code, output and what others registered for the end are the same as without them."""
    limit, seconds = (0.3, 600) if left else (60, 0.5)
    code = ENDS.format(limit=limit, seconds=seconds, command=command, program=str(ROOT / "run.py"))
    done = script(tmp_path / "ends.py", code, timeout=30)
    assert done.returncode == (0 if command == "--version" else 2)
    assert done.stdout.endswith("atexit\n") and ("dreamer-mpc" in done.stdout) == (command == "--version")
    assert ("threads that do not end are left behind: camera\n" in done.stderr) == left
    assert ("processes that do not end are killed: helper\n" in done.stderr) == left
    assert ("unknown command" in done.stderr) == (command == "nonsense")
