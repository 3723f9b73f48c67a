"""The choice of implementations, and the message when a fast one cannot be used."""

import pytest
import torch

from dreamer_mpc.kernels import graphs
from dreamer_mpc.kernels.choice import choose_forms, misfit

PAPER = {"deter": 200, "stoch": 30, "hidden": 200, "action": 6, "units": 200}
ALL = {"kernels": True, "bf16": True, "graphs": True, "has_triton": True}


def test_a_gpu_has_all_of_them_and_a_cpu_the_plain_ones():
    gpu = choose_forms(torch.device("cuda"), **ALL, **PAPER)
    assert (gpu.kernels, gpu.bf16, gpu.graphs, gpu.reasons) == (True, True, True, ())
    cpu = choose_forms(torch.device("cpu"), **ALL, **PAPER | {"deter": 300})
    assert (cpu.kernels, cpu.bf16, cpu.graphs, cpu.reasons) == (True, False, False, ())
    off = choose_forms(torch.device("cuda"), **ALL | {"kernels": False}, **PAPER | {"deter": 300})
    assert not off.kernels and off.reasons == (), "nothing was asked for"


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"deter": 257}, "257 units"), ({"hidden": 300}, "300 units"), ({"units": 512}, "512 units"),
        ({"stoch": 65}, "65 numbers"), ({"action": 70}, "70 numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(sizes, words):
    (reason,) = choose_forms(torch.device("cuda"), **ALL, **PAPER | sizes).reasons
    assert words in reason and "\n" not in reason and "takes up to" in reason


def test_without_triton_that_is_the_reason():
    (reason,) = choose_forms(torch.device("cuda"), **ALL | {"has_triton": False}, **PAPER).reasons
    assert "Triton is not installed" in reason
    assert misfit(256, 64, 256, 64, 256) is None


def test_a_replay_s_outputs_are_copied_whatever_they_are():
    outputs = {"loss": torch.tensor(1.5), "rest": (torch.ones(3, 4).t(), torch.tensor(True), None, 3, torch.arange(5))}
    copies = graphs._copies(outputs)
    torch.testing.assert_close(copies["loss"], outputs["loss"])
    for found, given in zip(copies["rest"], outputs["rest"], strict=True):
        assert torch.equal(found, given) if isinstance(given, torch.Tensor) else found == given
    outputs["loss"].zero_()
    outputs["rest"][0].zero_()
    assert copies["loss"] == 1.5 and copies["rest"][0].all(), "the next replay overwrites what it returned"
