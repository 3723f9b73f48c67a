"""A Triton kernel of `agents/laprop.py`: the step of one tensor in one pass over memory."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers of a program


@triton.jit
def _step(
    p, g, m, v, factor, skipped, correction, rate, count, keep1, take1, keep2, take2, eps, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = (at < count) & (tl.load(skipped) == 0)  # a skipped step reads and writes nothing
    u = tl.load(g + at, mask=real, other=0.0) * tl.load(factor)
    square = keep2 * tl.load(v + at, mask=real, other=0.0) + take2 * u * u
    size = tl.sqrt(square) / tl.load(correction) + eps
    average = keep1 * tl.load(m + at, mask=real, other=0.0) + take1 * u / size
    tl.store(v + at, square, mask=real)
    tl.store(m + at, average, mask=real)
    tl.store(p + at, tl.load(p + at, mask=real, other=0.0) - tl.load(rate) * average, mask=real)


def step(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, factor: Tensor, skipped: Tensor, correction: Tensor, rate: Tensor,
    betas: tuple[float, float], eps: float,
) -> None:  # fmt: skip
    """Changes p, m and v in place, unless `skipped`. The gradient g counts `factor` times.

    `correction` is the root of that of v, `rate` the learning rate over that of m; each is a number on the device.
    """
    shares = [share for beta in betas for share in (beta, 1 - beta)]
    grid = (triton.cdiv(p.numel(), BLOCK),)
    _step[grid](p, g, m, v, factor, skipped, correction, rate, p.numel(), *shares, eps, BLOCK=BLOCK)
