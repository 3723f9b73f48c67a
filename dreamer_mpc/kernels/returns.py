"""Lambda-returns without gradient in one launch on a GPU, where a loop has an operation or more in each step."""

import torch
from jaxtyping import Float
from torch import Tensor

try:  # torch builds for CUDA include Triton
    from dreamer_mpc.kernels import returns_triton as kernels
except ImportError:
    kernels = None

LONGEST = 256  # steps, which are unrolled


def fuses(*given: Tensor) -> bool:
    """Whether the kernel takes these tensors [T, *]."""
    first = given[0]
    fits = kernels is not None and first.is_cuda and 0 < len(first) <= LONGEST and first.numel() > 0
    return fits and not any(x.requires_grad or x.dtype != torch.float32 for x in given)


def lambda_return(
    r_t: Float[Tensor, "T *b"],
    v_tp1: Float[Tensor, "T *b"],
    discount: float,
    lambda_: float,
    continues: Float[Tensor, "T *b"] | None,
) -> Float[Tensor, "T *b"]:
    """As in `agents/returns.py`."""
    return kernels.lambda_return(r_t, v_tp1, discount, lambda_, continues)
