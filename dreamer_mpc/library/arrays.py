"""What a user of the library gives and gets: NumPy arrays or torch tensors, of one environment or of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


@dataclass(frozen=True)
class Form:
    """The form of an input, which answers have too: the library, for torch the device, and whether it had rows."""

    torch: bool
    device: torch.device
    rows: bool  # False: one environment, without the leading dimension

    def answer(self, x: Tensor) -> Array:
        """`x` [N, ...] in this form."""
        x = x if self.rows else x[0]
        return x.to(self.device) if self.torch else x.cpu().numpy()


def read(
    what: str, x: Any, shape: Sequence[int | str], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Form]:
    """`x` as a tensor [N, *shape] on `device`, and its form; words in `shape` stand for any size.

    ValueError, in one line, where it is no array, is empty, has another dtype or shape, or numbers that are not finite.
    """
    expected = f"{what} must be {_name(dtype)} [{', '.join(map(str, shape))}], or [N, ...] of several environments"
    if not isinstance(x, np.ndarray | Tensor):
        raise ValueError(f"{expected}, as a NumPy array or a torch tensor, got {type(x).__name__}")
    got = f"{_name(x.dtype)} {list(x.shape)}"
    fits = len(x.shape) - len(shape) in (0, 1) and all(
        isinstance(size, str) or size == given for size, given in zip(reversed(shape), reversed(x.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{expected}, got {got}{_remedy(x.shape, shape)}")
    if _name(x.dtype) != _name(dtype):
        scaled = _name(dtype) == "uint8" and "float" in _name(x.dtype)
        raise ValueError(f"{expected}, got {got}{': pixels go from 0 to 255' if scaled else ''}")
    if 0 in x.shape:
        raise ValueError(f"{expected}, got {got}, which is empty")
    rows = len(x.shape) > len(shape)
    tensor = x if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements=["C", "W"]))
    if not tensor.isfinite().all():
        raise ValueError(f"{expected}, got numbers that are not finite")
    form = Form(isinstance(x, Tensor), tensor.device, rows)
    return (tensor if rows else tensor[None]).to(device), form


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _remedy(given: Sequence[int], shape: Sequence[int | str]) -> str:
    """What to do about images whose channels come first."""
    height, width, channels = shape if len(shape) == 3 else (None, None, None)
    if channels is None or tuple(given[-3:]) != (channels, height, width):
        return ""
    order = "1, 2, 0" if len(given) == 3 else "0, 2, 3, 1"
    return f": channels come last, as x.permute({order}) of torch and np.transpose(x, ({order})) put them"
