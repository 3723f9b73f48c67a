import errno
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from dreamer_mpc import checkpoint as checkpoint_module
from dreamer_mpc.checkpoint import (
    FORMAT_VERSION,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from dreamer_mpc.errors import UserError

PAYLOAD = {
    "model": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.zeros(2, dtype=torch.bfloat16)),
    "replay": [torch.zeros(2, 3, dtype=torch.uint8)],
    "config": {"env": "cheetah-run", "lr": 1e-3, "compile": None, "sizes": (1, 2)},
    "counters": {"env_steps": 2000, "rng": 2**127},
}


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.fixture
def saved(tmp_path):
    path = checkpoint_path(tmp_path / "checkpoints", 2000)
    save_checkpoint(path, PAYLOAD)
    return path


def test_what_is_saved_is_loaded(saved):
    payload = load_checkpoint(saved)
    torch.testing.assert_close(payload.pop("model"), PAYLOAD["model"])
    torch.testing.assert_close(payload.pop("replay"), PAYLOAD["replay"])
    assert payload == {"config": PAYLOAD["config"], "counters": PAYLOAD["counters"]}


def test_optimizer_and_generator_states_survive(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    payload = {
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.Random(0).getstate(),
        "numpy": np.random.default_rng(0).bit_generator.state,
    }
    save_checkpoint(tmp_path / "a.pt", payload)
    loaded = load_checkpoint(tmp_path / "a.pt")
    torch.testing.assert_close(loaded["optimizer"]["state"], payload["optimizer"]["state"])
    assert loaded["python"] == payload["python"]
    assert loaded["numpy"] == payload["numpy"]


def test_the_file_carries_its_marker_and_version(saved):
    raw = torch.load(saved, weights_only=True)
    assert (raw["format"], raw["version"]) == ("dreamer-mpc", FORMAT_VERSION)


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), object(), {1, 2}])
def test_what_could_not_be_read_back_is_refused_by_name(tmp_path, value):
    with pytest.raises(TypeError, match=r"payload\['a'\]\[1\]"):
        save_checkpoint(tmp_path / "a.pt", {"a": [1, value]})
    assert list(tmp_path.iterdir()) == []


def test_compiled_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="_orig_mod"):
        save_checkpoint(tmp_path / "a.pt", {"model": {"rssm._orig_mod.weight": torch.zeros(1)}})


def test_the_markers_are_not_free_for_use(tmp_path):
    with pytest.raises(ValueError, match="version"):
        save_checkpoint(tmp_path / "a.pt", {"version": 7})


class FullDisk(io.FileIO):
    """A file that takes 1000 bytes."""

    def write(self, data):
        if self.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_leaves_the_previous_file(saved, monkeypatch):
    before = saved.read_bytes()
    opened = []

    def small_open(path, mode):
        opened.append(path)
        return FullDisk(path, mode)

    monkeypatch.setattr(checkpoint_module, "open", small_open, raising=False)
    with pytest.raises(UserError, match="No space left on device.*--run-dir"):
        save_checkpoint(saved, {"a": torch.zeros(10_000)})
    assert opened
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_kernels_own_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoint_module, "open", lambda path, mode: io.FileIO("/dev/full", mode), raising=False
    )
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path / "a.pt", {"a": torch.zeros(10)})


def test_a_failed_replacement_leaves_the_previous_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="Input/output error"):
        save_checkpoint(saved, {"a": 1})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_other_errors_of_torch_save_are_not_blamed_on_the_disk(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        save_checkpoint(tmp_path / "a.pt", {})


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.99, 0.9999])
def test_a_file_cut_short_is_refused(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    refused(saved, "damaged or cut short")


def test_one_flipped_byte_in_a_tensor_is_noticed(saved):
    data = bytearray(saved.read_bytes())
    place = data.index(np.arange(6, dtype=np.float32).tobytes())
    data[place + 5] ^= 0xFF
    saved.write_bytes(data)
    refused(saved, "damaged")


@pytest.mark.parametrize("content", [b"hello, I am text\n", b"\x80\x02}q\x00.", b"P"])
def test_files_that_are_no_archive(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    refused(path, "no dreamer-mpc checkpoint|damaged")


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_other_archives_are_foreign(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    for name in ("a.zip", "state.pt", "list.pt", "script.pt"):
        refused(tmp_path / name, "no dreamer-mpc checkpoint")


def test_code_in_a_file_does_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"format": "dreamer-mpc", "version": 1, "x": Bomb(trap)}, tmp_path / "new.pt")
    torch.save(Bomb(trap), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Bomb(trap)))
    for name in ("new.pt", "old.pt", "bare.pt"):
        refused(tmp_path / name, "no dreamer-mpc checkpoint")
    assert not trap.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes()).close()
    assert trap.exists(), "the trap itself does not work"


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, None])
def test_another_format_version_is_named(tmp_path, version):
    torch.save({"format": "dreamer-mpc", "version": version}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", f"format {version}, this code reads {FORMAT_VERSION}")


def test_missing_files_and_empty_folders_say_what_was_looked_for(tmp_path):
    refused(tmp_path / "nothing", "no checkpoint ")
    refused(tmp_path, r"no checkpoint-\*.pt in")


def test_a_device_that_is_not_here_is_not_a_damaged_file(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        load_checkpoint(saved, map_location="cuda")


def test_the_newest_is_found_by_number_from_every_level(tmp_path):
    folder = tmp_path / "checkpoints"
    for env_steps in (900, 99_999_999, 100_000_000, 1000):
        save_checkpoint(checkpoint_path(folder, env_steps), {"env_steps": env_steps})
    (folder / "checkpoint-best.pt").write_text("")
    (folder / ".checkpoint-999999999.tmp.pt").write_text("")
    for path in (tmp_path, folder, checkpoint_path(folder, 100_000_000)):
        assert find_checkpoint(path).name == "checkpoint-100000000.pt"
        assert load_checkpoint(path) == {"env_steps": 100_000_000}


def test_checkpoint_path_sorts_by_name():
    assert checkpoint_path("x", 200_000).name == "checkpoint-00200000.pt"


def test_prune_keeps_the_last_and_other_peoples_files(tmp_path):
    for env_steps in (5, 10, 100, 1000):
        checkpoint_path(tmp_path, env_steps).write_text("")
    (tmp_path / "checkpoint-best.pt").write_text("")
    (tmp_path / ".checkpoint-00002000.tmp.pt").write_text("")
    prune(tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-00000100.pt", "checkpoint-00001000.pt", "checkpoint-best.pt"]
    prune(tmp_path, keep=5)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError):
        prune(tmp_path, keep=0)
