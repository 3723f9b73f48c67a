"""The free memory that is reported, here and in a container with a limit."""

import psutil
import pytest
import torch

from dreamer_mpc.data.placement import choose_storage
from dreamer_mpc.report.doctor import check_memory
from dreamer_mpc.util import memory
from dreamer_mpc.util.memory import GIB, available_memory, fits, free_disk, total_memory


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Sets a container's limit and use; this machine has 8 GiB free."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 8 * GIB, "total": 16 * GIB}))

    def limit(most, used):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")

    return limit


@pytest.mark.parametrize("most, used, free", [(4 * GIB, GIB, 3 * GIB), (64 * GIB, GIB, 8 * GIB), ("max", GIB, 8 * GIB)])
def test_a_container_s_limit_counts_where_it_is_lower(container, most, used, free):
    container(most, used)
    assert available_memory() == free and total_memory() == 16 * GIB


def test_without_a_container_all_that_is_free_can_be_had(container):
    assert available_memory() == 8 * GIB


def test_memory_that_cannot_be_read_is_not_known_and_taken_as_enough(container, monkeypatch, tmp_path):
    def fail():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    assert available_memory() is None and fits(1000 * GIB, None)
    assert "not known" in choose_storage("ram", GIB, torch.device("cpu"), tmp_path)[2]
    assert check_memory().status == "warn"
    container(4 * GIB, GIB)
    assert available_memory() == 3 * GIB


def test_a_tenth_is_left_free(tmp_path):
    assert fits(9 * GIB, 10 * GIB) and not fits(9 * GIB + 1, 10 * GIB)
    assert free_disk(tmp_path / "not" / "there" / "yet") > 0
