"""The Triton kernel of `pixels.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # of a program


@triton.jit
def _centred_blocks(image, out, W: tl.constexpr, C: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr, COUNT):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = tl.program_id(0).to(tl.int64)
    block, slot = at // (2 * ROW), at % (2 * ROW)
    row, rest = slot // ROW, slot % ROW
    source = ((block // (W // 2) * 2 + row) * W + block % (W // 2) * 2) * C + rest
    real = (at < COUNT) & (rest < 2 * C)
    x = tl.load(image + m * (COUNT // ROW * 2 * C) + source, mask=real, other=0).to(tl.float32) / 255 - 0.5
    tl.store(out + m * COUNT + at, tl.where(real, x, 0.0), mask=at < COUNT)


def centred_blocks(image: Tensor, row: int, dtype: torch.dtype) -> Tensor:
    """See `pixels.py`; `image` [M, H, W, C] is contiguous, H and W are even, `row` is 2 C or more."""
    images, height, width, channels = image.shape
    out = torch.empty(images, height // 2, width // 2, 2, row, dtype=dtype, device=image.device)
    count = out[0].numel()
    grid = (images, triton.cdiv(count, ELEMENTS))
    _centred_blocks[grid](image, out, W=width, C=channels, ROW=row, BLOCK=ELEMENTS, COUNT=count)
    return out
