"""The Triton kernel of `returns.py`: a recursion over time for every column, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 64  # of a program


@triton.jit
def _lambda_return(
    r, v, c, out, columns, discount, lambda_, T: tl.constexpr, CONTINUES: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    cols = tl.program_id(0) * B + tl.arange(0, B)
    kept = cols < columns
    last = tl.load(v + (T - 1) * columns + cols, mask=kept, other=0.0)
    # Unrolled, so that what is read does not wait for what is computed.
    for k in tl.static_range(T):
        at = (T - 1 - k) * columns + cols
        d = discount
        if CONTINUES:
            d = discount * tl.load(c + at, mask=kept, other=0.0)
        after = (1 - lambda_) * tl.load(v + at, mask=kept, other=0.0) + lambda_ * last
        last = tl.load(r + at, mask=kept, other=0.0) + d * after
        tl.store(out + at, last, mask=kept)


def lambda_return(r_t: Tensor, v_tp1: Tensor, discount: float, lambda_: float, continues: Tensor | None) -> Tensor:
    """See `returns.py`."""
    r, v = r_t.contiguous(), v_tp1.contiguous()
    c = r if continues is None else continues.contiguous()
    out, columns = torch.empty_like(r), r[0].numel()
    grid = (triton.cdiv(columns, COLUMNS),)
    _lambda_return[grid](
        r, v, c, out, columns, discount, lambda_, T=len(r), CONTINUES=continues is not None, B=COLUMNS, num_warps=2
    )
    return out
