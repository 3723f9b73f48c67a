"""What other programs and people do to the files of a run: it costs those files, or is one line."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from dreamer_mpc.runs.checkpoint import list_checkpoints, load_checkpoint
from dreamer_mpc.runs.folder import RunFolder
from dreamer_mpc.runs.resume import open_run
from dreamer_mpc.util import files
from dreamer_mpc.util.errors import REMEDIES, cannot_write
from tests.support.agents import TINY
from tests.support.commands import quietly, records, train

MORE = ["--env-steps", 32, "--train.checkpoint-seconds", 0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(*TINY, "--planner", "policy", "--num-envs", 1, "--run-dir", folder)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_folders_with_names_of_files_are_in_nobody_s_way(run_folder):
    names = ("checkpoints/checkpoint-00000004", "checkpoints/checkpoint-00000999", "replay/chunk-000777")
    folders = [run_folder / f"{name}.safetensors" for name in names]
    for folder in folders:
        folder.mkdir()
    said = train("--resume", run_folder, *MORE)
    assert "cannot" not in said
    assert load_checkpoint(run_folder).counters.env_steps == 32
    assert all(folder.is_dir() for folder in folders)


def test_a_file_that_cannot_be_removed_costs_its_space_and_one_line(run_folder, monkeypatch):
    [stuck] = list_checkpoints(run_folder / "checkpoints")
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == stuck:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(files, "_said", set())
    said = train("--resume", run_folder, *MORE, "--train.keep-checkpoints", 1)
    assert said.count("cannot be removed") == 1 and str(stuck) in said
    kept = [path.name for path in list_checkpoints(run_folder / "checkpoints")]
    assert kept == [stuck.name, "checkpoint-00000032.safetensors"]


def test_metrics_that_are_lost_are_named_and_the_run_goes_on(run_folder):
    metrics = run_folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[-1])
    said = train("--resume", run_folder, *MORE)
    assert f"metrics.jsonl has 1 of the {len(lines)} records that were written up to env step 16" in said
    assert records(run_folder)[-1]["env_steps"] == 32
    assert load_checkpoint(run_folder).records == len(records(run_folder))


IN_THE_WAY = {  # what stands there in place of what a run needs, and what is said of it
    "metrics.jsonl/": "metrics.jsonl (Is a directory): move away the folder that has its name",
    "config.yaml/": "(Is a directory): move away the folder that has its name, or --resume a copy of it",
    "replay/chunk-000001.safetensors/": "chunk-000001.safetensors (Is a directory): move away the folder",
    "checkpoints/checkpoint-00000032.safetensors/": "00000032.safetensors (Is a directory): move away the folder",
}


def test_what_stands_in_the_way_of_a_run_is_one_line_and_costs_nothing(run_folder):
    for name, words in IN_THE_WAY.items():
        path = run_folder / name
        before = path.read_text() if path.exists() else None
        path.unlink(missing_ok=True)
        path.mkdir()
        done = quietly("--resume", run_folder, *MORE)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert words in done.err and "free space" not in done.err
        path.rmdir()
        if before is not None:
            path.write_text(before)
    said = train("--resume", run_folder, *MORE)
    assert load_checkpoint(run_folder).counters.env_steps == 32 and "records that were written" not in said


def test_a_run_is_known_by_its_checkpoints_alone(run_folder):
    (run_folder / "config.yaml").unlink()
    (run_folder / "versions.json").write_text("[" * 100_000)
    assert not RunFolder(run_folder).is_run()
    assert open_run(str(run_folder)).checkpoint.counters.env_steps == 16


def test_the_remedy_follows_from_the_reason():
    for number in (*REMEDIES, errno.EIO):
        said = str(cannot_write("x", OSError(number, os.strerror(number)), "y"))
        assert said.startswith(f"cannot write x ({os.strerror(number)}): ") and said.endswith(", or y")
        assert ("free space" in said) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert "no reason" in str(cannot_write("x", OSError("no reason")))
