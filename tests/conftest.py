"""Tests run in parallel, with the shapes in the signatures checked."""

import os
import sys
from pathlib import Path

os.environ.setdefault("DREAMER_MPC_TRACEBACK", "1")  # an error that is not the user's is raised, not told in a line
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share the cores, and sums are then the same on every machine
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

from tests.support import typecheck

if not torch.cuda.is_available():  # Triton, if installed, cannot compile: test_kernels_interpreted.py
    os.environ.setdefault("TRITON_INTERPRET", "1")
ROOT = Path(__file__).resolve().parent.parent
# Installed before any test imports the package; the hook stays for the whole run. Triton reads its kernels' source, so
# theirs must be the functions that it finds; a package's name would stand for all its modules.
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "dreamer_mpc").rglob("*.py")
    if not path.stem.endswith("_triton") and path.name != "__init__.py"
]
jaxtyping.jaxtyped = typecheck.jaxtyped_at_first  # the hook looks it up there
install_import_hook([*MODULES, "dreamer_mpc.agents.behavior", "dreamer_mpc.planners"], "tests.support.typecheck.check")

torch.set_num_threads(1)  # also for fixtures of whole files: reproducible sums, and small networks are faster


def pytest_report_header(config):
    """How long it takes, before the first dot."""
    return "the whole suite: about a quarter of an hour on two cores; [ n %] is how far it is. One file: -n 0 FILE"


@pytest.fixture
def unchecked(monkeypatch):
    """Leave signatures unchecked, as they are where the program is used: for what its own checks say."""
    monkeypatch.setattr(typecheck, "CALLS", 0)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def one_thread():
    """Restore one thread after a test that uses more, and check signatures again."""
    typecheck.begin_test()
    yield
    torch.set_num_threads(1)
