import errno
import json
import os
import stat
import sys

import pytest

import dreamer_mpc.runs.folder
import dreamer_mpc.util.files as atomic
from dreamer_mpc.config import Config, load_presets, parse
from dreamer_mpc.runs.folder import PROGRAM, WRITTEN, RunFolder, default_run_dir, source_commit
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.files import atomic_path


@pytest.fixture(autouse=True)
def fake_git(tmp_path_factory, monkeypatch):
    """A fake `git` that answers as in a clean checkout; tests rewrite it for other cases."""
    folder = tmp_path_factory.mktemp("bin")
    git = folder / "git"

    def answer(tracked=True, changed=""):
        git.write_text(
            f'#!/bin/sh\ncase "$3" in\nls-files) exit {0 if tracked else 1} ;;\nrev-parse) echo abc123 ;;\n'
            f'status) printf "%s" "{changed}" ;;\n*) exit 9 ;;\nesac\n'
        )
        git.chmod(0o755)

    answer()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    dreamer_mpc.runs.folder._own_commit.cache_clear()  # once before, and once after these tests
    yield answer
    dreamer_mpc.runs.folder._own_commit.cache_clear()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_create_refuses_what_exists_and_names_the_three_ways_out(tmp_path):
    run = tmp_path / "x"
    RunFolder.create(run).write_config("seed: 1\n")
    with pytest.raises(UserError) as error:
        RunFolder.create(run)
    for way in (f"--resume {run}", "--overwrite", "--run-dir"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)


def test_create_accepts_no_folder_an_empty_one_and_one_where_no_run_has_started(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run-dir"):
        RunFolder.create(tmp_path / "file")
    assert RunFolder.create(tmp_path / "a" / "b").path.is_dir()
    (tmp_path / "x").mkdir()
    assert RunFolder.create(tmp_path / "x").is_run()
    folder = RunFolder.create(tmp_path / "x")
    folder.write_versions({})
    with pytest.raises(UserError):
        RunFolder.create(tmp_path / "x")


def test_overwrite_removes_what_a_run_writes_and_nothing_else(tmp_path):
    folder = RunFolder.create(tmp_path / "x")
    for name in WRITTEN:
        path = folder.path / name
        if "." in name:
            path.write_text("old")
        else:
            path.mkdir()
            (path / "file").write_text("old")
    folder.write_versions({})
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "extra").mkdir()
    RunFolder.create(folder.path, overwrite=True)
    assert files(folder.path) == ["extra", "notes.txt", "versions.json"]
    assert json.loads(folder.versions.read_text()) == {"program": PROGRAM}


@pytest.mark.parametrize("versions", [None, "not json", "[]", '{"program": "other"}'])
def test_overwrite_leaves_a_folder_alone_that_no_run_wrote(tmp_path, versions):
    (tmp_path / "config.yaml").write_text("precious")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "holiday.mp4").write_text("precious")
    if versions is not None:
        (tmp_path / "versions.json").write_text(versions)
    before = files(tmp_path)
    with pytest.raises(UserError, match="--overwrite refused"):
        RunFolder.create(tmp_path, overwrite=True)
    assert files(tmp_path) == before


def test_overwrite_does_not_follow_links(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("")
    folder = RunFolder.create(tmp_path / "x")
    folder.checkpoints.symlink_to(elsewhere)
    RunFolder.create(folder.path, overwrite=True)
    assert (elsewhere / "keep").exists()
    assert not folder.checkpoints.is_symlink()


def test_open_wants_a_run(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open(tmp_path / "missing")
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "checkpoint-00000001.safetensors").write_text("")
    with pytest.raises(UserError, match="is no run folder"):
        RunFolder.open(tmp_path / "checkpoint-00000001.safetensors")
    assert RunFolder.open(RunFolder.create(tmp_path / "x").path).config == tmp_path / "x" / "config.yaml"


def test_write_config_keeps_the_old_file_when_the_replacement_fails(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "x")
    folder.write_config("seed: 1\n")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        folder.write_config("seed: 2\n")
    assert folder.config.read_text() == "seed: 1\n"
    assert files(folder.path) == ["config.yaml", "versions.json"]


def fsync_without_folders(monkeypatch, number):
    """Flushing folders fails with the error `number`, as on network drives and in FUSE; files are flushed."""
    fsync = os.fsync

    def odd(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", odd)
    monkeypatch.setattr(atomic, "_said", set())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_flush_folders_is_written_to_and_said_once(tmp_path, monkeypatch, capsys, number):
    fsync_without_folders(monkeypatch, number)
    for text in ("one", "two"):
        atomic.write_text(tmp_path / "a.txt", text)
    assert (tmp_path / "a.txt").read_text() == "two"
    said = capsys.readouterr().err
    assert said.count("cannot flush folders") == said.count("\n") == 1


def test_a_disk_error_on_flushing_a_folder_is_one(tmp_path, monkeypatch):
    fsync_without_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError):
        atomic.write_text(tmp_path / "a.txt", "one")


def test_atomic_path_leaves_nothing_when_the_block_raises(tmp_path):
    with pytest.raises(KeyError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert files(tmp_path) == []


def test_versions_say_what_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--env", "cheetah-run"])
    folder = RunFolder.create(tmp_path / "x")
    folder.write_versions({"device": "cpu"})
    versions = json.loads(folder.versions.read_text())
    assert versions["command"] == ["run.py", "--env", "cheetah-run"]
    assert versions["device"] == "cpu"
    assert versions["commit"] == "abc123"
    assert versions["packages"]["numpy"]
    assert versions["started"].endswith("+00:00")
    assert "earlier" not in versions


def test_versions_of_a_resumed_run_keep_the_earlier_ones(tmp_path):
    folder = RunFolder.create(tmp_path / "x")
    for device in ("a", "b", "c"):
        folder.write_versions({"device": device})
    versions = json.loads(folder.versions.read_text())
    assert [versions["device"], *(old["device"] for old in versions["earlier"])] == ["c", "a", "b"]


def test_commit_tells_dirty_trees_and_missing_git(tmp_path, fake_git, monkeypatch):
    file = tmp_path / "a.py"
    fake_git(changed=" M a.py")
    assert source_commit(file) == "abc123-dirty"
    fake_git(tracked=False)
    assert source_commit(file) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(file) is None


@pytest.mark.parametrize("left", [[".versions.tmp.json"], ["versions.json", ".config.tmp.yaml"]])
def test_a_folder_that_a_run_was_killed_in_before_it_began_is_free(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text('{"program": "dreamer-mpc"}')
    RunFolder.create(tmp_path)
    assert RunFolder(tmp_path).is_run()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="exists"):
        RunFolder.create(tmp_path)


def test_a_checkpoint_belongs_to_the_run_around_it(tmp_path):
    """Output folders of `eval` and `compare`; for a file copied out of its run, in the folder of the file."""
    assert RunFolder.of_checkpoint(tmp_path / "run" / "checkpoints" / "a.safetensors").path == tmp_path / "run"
    copied = RunFolder.of_checkpoint(tmp_path / "a.safetensors")
    assert (copied.evaluation, copied.comparison) == (tmp_path / "eval", tmp_path / "compare")
    assert {copied.evaluation.name, copied.comparison.name, copied.skipped_updates.name} <= set(WRITTEN)


def test_a_run_of_v3_has_a_default_folder_of_its_own():
    assert default_run_dir(load_presets("v3")) == "runs/cheetah-run-dream-mpc-v3-seed0"
    assert default_run_dir(load_presets("default")) == "runs/cheetah-run-dream-mpc-seed0"
    assert default_run_dir(load_presets("v3,planet")) == "runs/cheetah-run-cem-v3-seed0"


@pytest.mark.parametrize(("presets", "name"), [("quick", "quick"), ("quick,v3-small", "v3-quick")])
def test_a_run_of_quick_is_not_in_the_way_of_one_at_full_size(presets, name):
    config = parse(Config, ["--config", presets], load_presets(presets))
    assert default_run_dir(config) == f"runs/cheetah-run-dream-mpc-{name}-seed0"
