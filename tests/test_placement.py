"""Where replay goes: a GPU, RAM or a file, as far as there is room."""

import shutil

import pytest
import torch

from dreamer_mpc.data.placement import choose_storage
from dreamer_mpc.util.errors import UserError
from dreamer_mpc.util.memory import GIB

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """10 GiB of RAM, 20 GiB of disk."""
    disk = shutil.disk_usage("/")
    monkeypatch.setattr("dreamer_mpc.data.placement.available_memory", lambda: 10 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=20 * GIB))


@pytest.mark.parametrize("storage", ["auto", "ram"])
def test_ram_is_taken_where_it_fits(free, tmp_path, storage):
    device, memmap, line = choose_storage(storage, int(8.9 * GIB), CPU, tmp_path)
    assert (device, memmap) == (CPU, None)
    assert "8.90 GiB in RAM (10 GiB available)" in line


@pytest.mark.parametrize("folder", [".", "not/yet"])
def test_a_memory_map_is_taken_where_it_fits(free, tmp_path, folder):
    device, memmap, line = choose_storage("memmap", int(17 * GIB), CPU, tmp_path / folder)
    assert (device, memmap) == (CPU, tmp_path / folder / "replay.bin")
    assert str(memmap) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "storage, gib, words",
    [
        ("ram", 9.1, r"9\.10 GiB does not fit RAM: 10\.00 GiB available; .*memmap"),
        ("auto", 9.1, r"9\.10 GiB does not fit RAM: 10\.00 GiB available; .*memmap"),
        ("memmap", 18.1, r"18\.10 GiB does not fit the disk .*20\.00 GiB free; .*capacity.*ram"),
        ("gpu", 0.1, r"--replay\.storage gpu needs a CUDA device, this run is on cpu: use ram or memmap"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(free, tmp_path, storage, gib, words):
    with pytest.raises(UserError, match=words) as error:
        choose_storage(storage, int(gib * GIB), CPU, tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def cuda(free, monkeypatch):
    """A GPU with 4 of 5 GiB free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * GIB, 5 * GIB))
    return torch.device("cuda", 0)


@pytest.mark.parametrize("storage, gib, where", [("auto", 3, "cuda"), ("gpu", 3, "cuda"), ("auto", 4, "cpu")])
def test_auto_takes_the_gpu_where_it_fits_and_ram_where_not(cuda, tmp_path, storage, gib, where):
    device, memmap, _ = choose_storage(storage, gib * GIB, cuda, tmp_path)
    assert (device.type, memmap) == (where, None)


def test_a_gpu_that_is_too_full_is_refused_in_one_line(cuda, tmp_path):
    with pytest.raises(UserError, match=r"does not fit cuda:0: 4\.00 GiB free; .*ram or memmap") as error:
        choose_storage("gpu", 4 * GIB, cuda, tmp_path)
    assert "\n" not in str(error.value)
