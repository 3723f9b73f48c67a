"""The choice of implementations, made once when an agent is built, with the reason if a fast one cannot be used."""

from dataclasses import dataclass

import torch

WIDEST_LAYER, WIDEST_INPUT = 256, 64  # a row's activations stay in a program's registers


@dataclass(frozen=True)
class Forms:
    """The implementations that an agent runs; `reasons`: one line for each fast one that cannot be used."""

    kernels: bool  # fast forms of the recurrent cell and the convolutions; else plain modules, the reference
    bf16: bool  # products of bf16 numbers, summed in fp32
    graphs: bool  # acting and updating replayed as CUDA graphs
    reasons: tuple[str, ...] = ()


def choose_forms(
    device: torch.device, kernels: bool, bf16: bool, graphs: bool, has_triton: bool, **sizes: int
) -> Forms:
    """The requested implementations that `device` supports; `sizes` as in `misfit`."""
    on_gpu = device.type == "cuda"
    reasons: tuple[str, ...] = ()
    if on_gpu and kernels:
        reason = misfit(**sizes) if has_triton else "Triton is not installed"
        reasons = () if reason is None else (f"the recurrent cell runs as single torch operations, slower: {reason}",)
    return Forms(kernels, bf16 and on_gpu, graphs and on_gpu, reasons)


def misfit(deter: int, stoch: int, hidden: int, action: int, units: int = 0) -> str | None:
    """Why the cell's kernel cannot take these sizes; None if it can. `units`: width of the policy's hidden layers."""
    widest, longest = max(deter, hidden, units), max(stoch, action)
    if widest > WIDEST_LAYER:
        return f"a layer of {widest} units, its kernel takes up to {WIDEST_LAYER}"
    if longest > WIDEST_INPUT:
        return f"an input of {longest} numbers, its kernel takes up to {WIDEST_INPUT}"
    return None
