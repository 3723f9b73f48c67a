"""The free memory that is reported, here and in a container with a limit."""

import psutil
import pytest

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


def test_a_tenth_is_left_free(tmp_path):
    assert fits(9 * GIB, 10 * GIB) and not fits(9 * GIB + 1, 10 * GIB)
    assert free_disk(tmp_path / "not" / "there" / "yet") > 0
