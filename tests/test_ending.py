"""The end of the program: its exit code, whatever others left running."""

import sys

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


# Packages that are missing

WITHOUT = """
import runpy, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        return None if name in {missing!r} else self.finder.find_spec(name, *where)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = ["run.py", *{args!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize("missing, args", [("gymnasium", ["--help"]), ("tyro", ["eval", "--checkpoint", "runs/x"])])
def test_a_package_that_this_python_lacks_is_one_line_with_what_installs_it(missing, args, tmp_path):
    code = WITHOUT.format(missing=[missing], args=args, program=str(ROOT / "run.py"))
    done = script(tmp_path / "without.py", code, timeout=60, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    assert done.stderr.startswith(f"error: this Python ({sys.executable}) has no {missing}: ")
    assert str(ROOT / ".venv/bin/activate") in done.stderr


def test_an_import_that_fails_in_a_users_module_is_shown_as_theirs(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_package\n")
    code = WITHOUT.format(missing=[], args=["envs", "mine:make"], program=str(ROOT / "run.py"))
    done = script(tmp_path / "without.py", code, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot import mine" in done.stderr and "but imports no_such_package: install that" in done.stderr
