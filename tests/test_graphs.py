"""What a CUDA graph leaves behind, without a graph: `test_gpu.py` has the rest."""

import torch

from dreamer_mpc.kernels.graphs import _Outputs


def test_outputs_are_copied_with_their_numbers_in_one():
    given = {
        "loss": torch.tensor(2.5), "states": (torch.randn(3, 2), None), "count": torch.tensor(7),
        "norm": torch.tensor(-1.0),
    }  # fmt: skip
    outputs = _Outputs(given)
    copied = outputs.copy()
    assert copied["states"][1] is None and copied.keys() == given.keys()
    for found, expected in zip(
        (*(copied[name] for name in ("loss", "count", "norm")), copied["states"][0]),
        (*(given[name] for name in ("loss", "count", "norm")), given["states"][0]), strict=True,
    ):  # fmt: skip
        assert found.dtype == expected.dtype and torch.equal(found, expected)
        found.zero_()
    again = outputs.copy()
    assert torch.equal(again["loss"], given["loss"]) and torch.equal(again["states"][0], given["states"][0])


def test_outputs_without_numbers_are_copied():
    x = torch.randn(2)
    copied = _Outputs(x).copy()
    assert torch.equal(copied, x) and copied.data_ptr() != x.data_ptr()
    assert _Outputs(None).copy() is None
