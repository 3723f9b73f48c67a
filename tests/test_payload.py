"""Payload files: written values are read back, and foreign or damaged files are refused in one line."""

import errno
import io
import json
import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dreamer_mpc.runs import payload as payload_module
from dreamer_mpc.runs.payload import FORMAT_VERSION, read_payload, write_payload
from dreamer_mpc.util.errors import UserError
from tests.support.checkpoints import equal

PAYLOAD = {
    "model": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.zeros(2, dtype=torch.bfloat16)),
    "replay": [torch.zeros(2, 3, dtype=torch.uint8)],
    "config": {"env": "cheetah-run", "lr": 1e-3, "compile": None, "sizes": (1, 2)},
    "counters": {"env_steps": 2000, "rng": 2**127},
}


def refused(path, words):
    with pytest.raises(UserError, match=words) as error:
        read_payload(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "payloads" / "a.safetensors"
    write_payload(path, PAYLOAD)
    return path


def test_what_is_saved_is_loaded(saved):
    version, payload = read_payload(saved)
    assert version == FORMAT_VERSION
    torch.testing.assert_close(payload.pop("model"), PAYLOAD["model"])
    torch.testing.assert_close(payload.pop("replay"), PAYLOAD["replay"])
    assert payload == {"config": PAYLOAD["config"], "counters": PAYLOAD["counters"]}


def test_it_is_a_safetensors_file_with_its_marker_and_version(saved):
    with safe_open(saved, "pt") as file:
        about, names = file.metadata(), set(file.keys())
        assert torch.equal(file.get_tensor("model/weight"), PAYLOAD["model"]["weight"])
    assert (about["format"], about["version"]) == ("dreamer-mpc", str(FORMAT_VERSION))
    assert names == {"model/weight", "model/bias", "replay/0"}
    assert json.loads(about["state"])["config"]["env"] == "cheetah-run"


def test_odd_values_come_back_as_they_were(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    payload = {
        "numbers": [0.1, -0.0, 1e-320, float("inf"), float("nan"), 2**200, True, None, ""],
        "empty": [{}, [], (), torch.zeros(0, 3)],
        "keys": {0: "a", 1: {"$tensor": "no tensor"}, "$tuple": [1], "": 2, "a/b": torch.ones(1)},
        "a": {"b": torch.zeros(1)},
        "keys/a": {"b": torch.full((1,), 2.0)},
        "tensors": [torch.tensor(3), torch.tensor(True), torch.tensor([1, 2], dtype=torch.bfloat16), torch.tensor(1j)],
        "shared": (whole, whole[1:], whole.t(), whole),
        "text": "line\nbreak \u2028 \U0001f600 \x00",
    }
    write_payload(tmp_path / "a.safetensors", payload)
    assert equal(read_payload(tmp_path / "a.safetensors")[1], payload)


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), object(), {1, 2}, b"bytes", {1.5: 2}])
def test_what_could_not_be_read_back_is_refused_by_name(tmp_path, value):
    with pytest.raises(TypeError, match=r"payload\['a'\]\[1\]"):
        write_payload(tmp_path / "a.safetensors", {"a": [1, value]})
    assert list(tmp_path.iterdir()) == []


def test_compiled_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="_orig_mod"):
        write_payload(tmp_path / "a.safetensors", {"model": {"rssm._orig_mod.weight": torch.zeros(1)}})


class FullDisk(io.FileIO):
    """A file that accepts 1000 bytes."""

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

    monkeypatch.setattr(payload_module, "open", small_open, raising=False)
    with pytest.raises(UserError, match="No space left on device.*free space"):
        write_payload(saved, {"a": torch.zeros(10_000)})
    assert opened
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_the_kernels_own_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(
        payload_module, "open", lambda path, mode: io.FileIO("/dev/full", mode), raising=False
    )
    with pytest.raises(UserError, match="No space left on device"):
        write_payload(tmp_path / "a.safetensors", {"a": torch.zeros(10)})


def test_a_failed_replacement_leaves_the_previous_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="Input/output error"):
        write_payload(saved, {"a": 1})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def about(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("version", ["0", "1", "4", "two", "2.0"])
def test_another_format_version_is_named(saved, version):
    save_file({"a": torch.zeros(1)}, saved, {**about(saved), "version": version})
    refused(saved, f"format {version!r}, this code reads 2 and 3")


def test_a_checksum_that_does_not_fit_is_damage(saved):
    save_file({"model/weight": torch.zeros(2, 3)}, saved, about(saved))
    refused(saved, "damaged")
