"""A folder has one owner: another process is refused in one line, and a crash leaves no lock behind."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from dreamer_mpc.config import load_presets
from dreamer_mpc.runs.checkpoint import list_checkpoints
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.util import files, heartbeat, owner
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import temporary_path
from dreamer_mpc.util.heartbeat import Owner
from dreamer_mpc.util.owner import alone_in, in_turn
from scripts import export_weights
from tests.support.agents import CHEAP, TINY
from tests.support.commands import ROOT, quietly, records, train

HOLD = """
import multiprocessing, os, sys, time
from dreamer_mpc.util.owner import alone_in, in_turn
with alone_in(sys.argv[1], "wait", *sys.argv[2:]):
    if os.fork() == 0:
        time.sleep(60)  # a helper that outlives its parent
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""
LONG = [*TINY, "--planner", "policy", "--env-steps", "100000", "--num-envs", "1", "--train.checkpoint-seconds", "0.2"]


@pytest.fixture
def hold():
    """`hold(folder)`: another process locks the folder, and a helper of it lives on; all are killed at the end."""
    held = []

    def start(folder, *name):
        code = [sys.executable, "-c", HOLD, str(folder), *name]
        held.append(subprocess.Popen(code, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert held[-1].stdout.readline() == "locked\n"
        return held[-1]

    yield start
    for process in held:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_second_process_is_told_who_the_first_is_and_a_crash_leaves_no_lock(tmp_path, hold):
    folder = tmp_path / "a" / "b"
    other = hold(folder)
    with pytest.raises(UserError, match=f"{folder} .host .+, pid {other.pid}.: wait$"), alone_in(folder, "wait"):
        pass
    other.kill()  # its helper lives, and holds nothing
    other.wait()
    with alone_in(folder, "wait"):
        assert f"pid {os.getpid()}" in (folder / ".lock").read_text()
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_for_the_lock_alone_is_removed(tmp_path):
    with alone_in(tmp_path / "a" / "b", "wait"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with alone_in(tmp_path / "mine" / "c", "wait"):
        (tmp_path / "mine" / "c" / "result").write_text("")
    assert (tmp_path / "mine" / "c" / "result").exists()


def test_a_file_system_without_locks_is_named_once_and_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_said", set())
    for _ in range(2):
        with alone_in(tmp_path, "wait"), in_turn(tmp_path):
            pass
    said = capsys.readouterr().err
    assert said == f"{tmp_path} is not protected from a second process (its file system: No locks available)\n"


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_without_locks_a_folder_still_has_one_owner(tmp_path, no_locks):
    with alone_in(tmp_path, "wait"):
        refused = pytest.raises(UserError, match=f"{tmp_path} .host .+, pid {os.getpid()}.: wait$")
        with refused, alone_in(tmp_path, "wait"):
            pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").write_text(Owner(pid=2**22 + 1).text())  # of a process that is no more
    with alone_in(tmp_path, "wait"):
        assert owner.read_owner(tmp_path / ".lock").pid == os.getpid()


def test_without_locks_the_file_of_an_owner_that_came_in_between_is_put_back(tmp_path, no_locks, monkeypatch):
    other, path = Owner(pid=1, started=heartbeat.psutil.Process(1).create_time()), tmp_path / ".lock"
    path.write_text(Owner(pid=2**22 + 1).text())
    rename = os.rename

    def late(*paths):
        path.write_text(other.text())
        monkeypatch.setattr(os, "rename", rename)
        rename(*paths)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(UserError, match="pid 1"), alone_in(tmp_path, "wait"):
        pass
    assert owner.read_owner(path) == other and [file.name for file in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def fast_hearts(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "STALE_S": 0.5, "LOOK_S": 0.05}.items():
        monkeypatch.setattr(heartbeat, name, seconds)


@pytest.fixture(params=["locks of one host", "no locks"])
def elsewhere(request, tmp_path, fast_hearts):
    """The file of an owner on another host, which no lock of this one keeps out."""
    if request.param == "no locks":
        request.getfixturevalue("no_locks")
    path = tmp_path / ".lock"
    path.write_text(Owner(host="far", machine="another", pid=7, job="12_3").text())
    return path


def test_an_owner_on_another_host_is_kept_out_while_its_heart_beats(elsewhere, monkeypatch):
    monkeypatch.setattr(heartbeat.slurm, "state", lambda job: pytest.fail("the beat decides"))
    with elsewhere.open() as file, heartbeat.Heartbeat(file, elsewhere, owner.read_owner(elsewhere)):
        refused = pytest.raises(UserError, match="host far, pid 7, SLURM job 12_3.: wait$")
        with refused, alone_in(elsewhere.parent, "wait"):
            pass
    assert owner.read_owner(elsewhere).pid == 7


@pytest.mark.parametrize("state", ["SUSPENDED", "", None], ids=["suspended", "gone", "no answer"])
def test_an_owner_without_a_heartbeat_is_dead_unless_slurm_runs_its_job(state, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat.slurm, "state", lambda job: state if job == "12_3" else pytest.fail(job))
    if state:
        with pytest.raises(UserError, match="SLURM job 12_3"), alone_in(elsewhere.parent, "wait"):
            pass
    else:
        with alone_in(elsewhere.parent, "wait"):
            assert owner.read_owner(elsewhere).pid == os.getpid()
        assert not elsewhere.exists()
    assert "belonged to host far, pid 7, SLURM job 12_3: waiting" in capsys.readouterr().err


def test_a_heart_that_beats_does_not_end_the_lock(tmp_path, fast_hearts):
    """Closing a file ends the record locks that the process has on it, through whatever descriptor."""
    code = "import sys; from dreamer_mpc.util.owner import alone_in\nwith alone_in(sys.argv[1], 'wait'): pass"
    with alone_in(tmp_path, "wait"):
        time.sleep(0.3)
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert f"another process works in {tmp_path}" in done.stderr


TAKEN_OVER = """
import sys, time
from pathlib import Path
from dreamer_mpc.util import heartbeat
from dreamer_mpc.util.owner import alone_in
heartbeat.BEAT_S = 0.05
with alone_in(sys.argv[1], "wait"):
    (Path(sys.argv[1]) / ".lock").write_text(heartbeat.Owner(host="far").text())
    time.sleep(20)
"""


def test_a_process_whose_folder_was_taken_over_ends_before_it_writes(tmp_path):
    code = [sys.executable, "-c", TAKEN_OVER, str(tmp_path)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{tmp_path} was taken over by host far" in done.stderr


def test_where_nothing_can_be_written_the_writer_says_so_and_not_the_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with alone_in(tmp_path / "file", "wait"):
        pass


def test_temporary_names_are_unique_and_those_of_killed_runs_removed(tmp_path):
    paths = {temporary_path(tmp_path / "metrics.jsonl") for _ in range(10)}
    assert len(paths) == 10
    folder = RunFolder.create(tmp_path)
    for path in [*paths, temporary_path(folder.videos / "1.mp4")]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    folder.clear_leftovers()
    assert {path.name for path in tmp_path.rglob("*")} == {"versions.json", "videos"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owned") / "run"
    train(*TINY, *CHEAP, "--planner", "policy", "--num-envs", "1", "--run-dir", folder)
    return folder


def refused(done, other):
    return done.code == 2 and f"pid {other.pid}" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("what", ["resume", "overwrite", "eval", "compare", "plot"])
def test_every_command_refuses_a_folder_in_which_another_process_works(what, trained, hold):
    short = ["--episodes", "1", "--num-envs", "1"]
    commands = {
        "resume": (trained, ["--resume", trained, "--env-steps", "24"]),
        "overwrite": (trained, [*TINY, "--num-envs", "1", "--run-dir", trained, "--overwrite"]),
        "eval": (trained / "eval", ["eval", "--checkpoint", trained, "--planner", "policy", *short]),
        "compare": (trained / "compare", ["compare", "--checkpoint", trained, "--planners", "policy", *short]),
        "plot": (trained.parent, ["plot", trained.parent, "--runs", trained], ".plot.lock"),
    }
    folder, command, *name = commands[what]
    before = sorted(trained.rglob("*"))
    other = hold(folder, *name)
    assert refused(quietly(*command), other)
    assert [path for path in before if not path.exists()] == []


def test_an_old_run_is_not_deleted_while_it_is_evaluated(trained, hold):
    other = hold(trained / "eval")
    with pytest.raises(UserError, match=f"pid {other.pid}"):
        RunFolder.create(trained, overwrite=True)
    assert list_checkpoints(trained / "checkpoints")


def test_weights_are_not_exported_into_a_folder_of_another(trained, hold, tmp_path):
    other = hold(tmp_path / "weights")
    with pytest.raises(UserError, match=f"pid {other.pid}"):
        export_weights.main([str(trained), str(tmp_path / "weights")])


def test_a_run_is_not_resumed_while_it_goes_on_and_is_after_it_was_killed(tmp_path):
    command = [sys.executable, "run.py", *LONG, "--run-dir", str(tmp_path / "run")]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list_checkpoints(tmp_path / "run" / "checkpoints"):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
        assert refused(quietly("--resume", tmp_path / "run"), first)
        assert refused(quietly(*LONG, "--run-dir", tmp_path / "run"), first)
    finally:
        first.kill()
        first.wait()
    train("--resume", tmp_path / "run", "--env-steps", "16")
    steps = [record["env_steps"] for record in records(tmp_path / "run")]
    assert steps == sorted(steps)
    assert load_presets(str(tmp_path / "run" / "config.yaml")).resume is None
