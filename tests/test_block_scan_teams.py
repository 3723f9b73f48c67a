"""DreamerV3's scan by teams of programs (`block_scan_triton.py`) against its loop, on a GPU or in the interpreter."""

from importlib import metadata

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton, which CPU builds of torch lack: docs/architecture.md says how")

from dreamer_mpc.agents import laprop
from dreamer_mpc.kernels import (
    block_cell,
    block_scan,
    block_walk,
    cell_triton,
    image_error,
    norm,
    pooled_norm,
    two_hot,
)
from dreamer_mpc.kernels.block_scan_triton import Sizes as Shape
from dreamer_mpc.kernels.block_scan_triton import launch
from dreamer_mpc.networks import norm_mlp
from dreamer_mpc.world_model import block_rssm, norm_decoder, norm_encoder
from tests.support import interpreter
from tests.support.agents import CATEGORICAL, make_agent, make_batch
from tests.support.block_scans import Sizes, choose, make_scan, scan_both
from tests.support.cell_walks import assert_near

GPU = torch.cuda.is_available()
compiled = pytest.mark.skipif(not GPU, reason="needs a CUDA device")
known = metadata.version("triton").startswith(("3.7.", "3.8."))  # docs/architecture.md says why others fail
interpreted = pytest.mark.skipif(GPU or not known, reason="for the interpreter of Triton 3.7.1, without a GPU")
# No size is a power of two.
SMALL = Sizes(deter=60, blocks=3, hidden=23, variables=5, classes=3)
CASES = {
    "3 programs": (SMALL, 3, 3),
    "one step": (SMALL, 1, 2),
    "one program": (SMALL._replace(deter=20, blocks=1, variables=2), 2, 2),
    "teams of 4": (Sizes(deter=80, blocks=2, hidden=35, variables=6, classes=5), 2, 18),
    "programs without a variable": (Sizes(deter=90, blocks=2, hidden=21, variables=2, classes=4), 2, 1),
    "parts of products": (Sizes(deter=160, blocks=4, hidden=9, variables=3, classes=40), 1, 2),
}


@pytest.fixture
def programs(monkeypatch):
    """Programs that take turns, as many as wanted, and fresh memory full of NaN."""
    interpreter.complete(monkeypatch)
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (132, 101_376))
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@interpreted
@pytest.mark.parametrize("case", CASES)
def test_teams_do_what_the_loop_does(case, programs, monkeypatch):
    """A program that does not wait for the others, or waits for what does not come, shows here."""
    assert_near(*scan_both(monkeypatch, *CASES[case]), 1e-5)


@interpreted
def test_without_unimix_teams_do_what_the_loop_does(programs, monkeypatch):
    assert_near(*scan_both(monkeypatch, *CASES["one step"], unimix=0.0), 1e-5)


@interpreted
def test_bf16_products_are_near_fp32(programs, monkeypatch):
    """The interpreter truncates numbers where a GPU rounds them, so the error may be twice as large."""
    assert_near(*scan_both(monkeypatch, *CASES["3 programs"], bf16=True), 6e-2)


@interpreted
def test_an_update_with_all_kernels_is_the_plain_one(programs, monkeypatch):
    """With what is prepared before the scan, and what is left for behind it."""
    cut_up = (norm, two_hot, pooled_norm, image_error)
    others = (block_cell, block_walk, block_rssm, norm_mlp, norm_encoder, norm_decoder, laprop)
    for module in cut_up:
        monkeypatch.setattr(module.kernels, "PROGRAMS", 2, raising=False)
        monkeypatch.setattr(module.kernels, "ELEMENTS", 2**17)  # the interpreter's time is that of single operations
    found = []
    for used in (True, False):
        for module in (*cut_up, *others):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        monkeypatch.setattr(block_scan, "team", choose if used else lambda *_: None)
        agent = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL, kind="laprop", lr=1e-3, warmup=0)
        with torch.no_grad():
            for p in agent.model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        torch.manual_seed(17)
        update = agent.update(make_batch())
        found.append([*update.metrics.values(), update.states, *(p.detach() for p in agent.model.parameters())])
    assert_near(*found, 2e-3)


def test_a_team_has_as_many_programs_as_there_are_units_for(monkeypatch):
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (132, 232_448))
    preset = Shape(64, 16, 2048, 8, 256, 32, 16)
    device = torch.device("cpu")
    how = launch(preset, device, True)
    assert (how["P"], how["BM"], how["SU"]) == (64, 16, 32)
    assert launch(preset._replace(rows=32), device, True)["BM"] == 16  # two teams
    assert launch(preset._replace(rows=64), device, True)["BM"] == 32
    assert launch(preset._replace(rows=65), device, True) is None  # more programs than run at once
    assert launch(preset._replace(deter=4096), device, True) is None  # blocks of 512 units
    assert torch.get_float32_matmul_precision() == "highest" and launch(preset, device, False) is None
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (40, 232_448))
    assert launch(preset, device, True) is None
    monkeypatch.setattr(cell_triton, "_hardware", lambda device: (132, 101_376))  # a GPU with less memory in each
    assert launch(preset, device, True)["BM"] == 16 and launch(preset._replace(rows=64), device, True) is None


def test_without_a_gpu_and_in_float64_the_loop_scans():
    given, noise, _, weights, _ = make_scan(SMALL, 1, 2, "cpu")
    assert block_scan.kernels is not None and block_scan.team(given[0], noise, weights, False) is None
    if GPU:
        assert block_scan.team(given[0].cuda(), noise, weights, False) is not None
        assert block_scan.team(given[0].cuda().double(), noise, weights, False) is None


@compiled
@pytest.mark.parametrize("rows, bf16", [(1, True), (16, True), (18, True), (40, True), (18, False)])
def test_compiled_teams_do_what_the_loop_does(rows, bf16, monkeypatch):
    """At the preset's sizes, in bf16 or with TF32; the loop is in fp32."""
    precision, found = torch.get_float32_matmul_precision(), []
    for name in ("high", "highest"):
        torch.set_float32_matmul_precision(name)
        both = scan_both(monkeypatch, Sizes(), 12, rows, bf16=bf16, device="cuda", kinds=(name == "high",))
        found.append(both[0])
    torch.set_float32_matmul_precision(precision)
    assert_near(*found, 2e-2)


@compiled
@pytest.mark.parametrize("case", CASES)
def test_compiled_teams_of_any_size_do_what_the_loop_does(case, full_fp32, monkeypatch):
    assert_near(*scan_both(monkeypatch, *CASES[case], device="cuda"), 1e-4)


@compiled
def test_a_scan_gives_the_same_numbers_again(monkeypatch):
    """No sum depends on the order in which programs come."""
    first, again = (scan_both(monkeypatch, Sizes(), 64, 16, bf16=True, device="cuda")[0] for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.fixture
def full_fp32():
    """Products in float32, not TF32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(precision)
