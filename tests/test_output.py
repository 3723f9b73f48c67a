"""What a program prints can be lost without its work: no reader, full disks, closed output, terminals, encodings."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from dreamer_mpc.envs.output import LastingStream
from dreamer_mpc.runs.checkpoint import find_checkpoint, load_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from tests.support.agents import CHEAP, TINY
from tests.support.commands import ROOT, env_steps_in

RUN = [
    sys.executable, "run.py", *TINY, *CHEAP, "--env-steps", "32", "--train.seed-episodes", "2", "--train.updates", "2",
    "--eval.every", "100", "--num-envs", "1", "--planner", "policy",
]  # fmt: skip


def start(folder, steps=32, **settings):
    full = [*RUN, "--run-dir", str(folder), "--env-steps", str(steps)]
    environment = {**os.environ, **settings.pop("environment", {})}
    return subprocess.Popen(full, cwd=ROOT, env=environment, **settings)


def complete(folder, steps=32):
    checkpoint = load_checkpoint(find_checkpoint(folder))
    return checkpoint.counters.env_steps >= steps and env_steps_in(RunFolder(folder))[-1] >= steps


def test_a_run_whose_reader_has_gone_ends_saved(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    process = start(tmp_path / "run", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert not error and complete(tmp_path / "run")


def test_a_run_whose_log_disk_is_full_ends_saved(tmp_path):
    with open("/dev/full", "wb") as full:
        process = start(tmp_path / "run", stdout=full, stderr=full)
    assert process.wait(120) == 0
    assert complete(tmp_path / "run")


def test_a_run_without_standard_output_writes_nothing_into_its_files(tmp_path):
    process = start(tmp_path / "run", stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert not error and complete(tmp_path / "run")


def test_characters_that_the_encoding_lacks_are_replaced(tmp_path):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "environment": {"PYTHONIOENCODING": "ascii"}}
    process = start(tmp_path / "run", **settings)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert b" ? " in output and b"run folder" in output


@pytest.mark.parametrize("ignored", [True, False], ids=["SIGHUP ignored", "SIGHUP"])
def test_a_run_whose_terminal_goes_away_goes_on_or_stops_saved(tmp_path, ignored):
    ours, theirs = pty.openpty()

    def begin():
        os.setsid()
        os.open(os.ttyname(0), os.O_RDWR)  # its controlling terminal, whose end sends SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    steps = 160 if ignored else 20_000
    process = start(tmp_path / "run", steps, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, preexec_fn=begin)
    os.close(theirs)
    seen = b""
    while b"mean return" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert complete(tmp_path / "run", steps if ignored else 1)


def test_a_stream_that_fails_loses_only_what_it_refused():
    with open("/dev/full", "w") as full:
        stream = LastingStream(full)
        print("a" * 100_000, file=stream, flush=True)
        assert not stream.isatty()
        stream.end()
    full.close()
    stream.write("closed")
    stream.flush()
