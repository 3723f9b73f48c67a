"""DreamerV3's scan by teams of programs and by its loop, on the same numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamer_mpc.kernels import block_scan
from dreamer_mpc.kernels.block_cell import BlockWeights
from dreamer_mpc.kernels.block_scan import ready, scan
from dreamer_mpc.kernels.graphs import Aside


class Sizes(NamedTuple):
    """Sizes of the layers, by default those of the preset."""

    deter: int = 2048
    blocks: int = 8
    hidden: int = 256
    variables: int = 32
    classes: int = 16


def scan_both(monkeypatch, sizes, steps, rows, unimix=0.01, bf16=False, device="cpu", kinds=(True, False)):
    """States, posterior and all gradients by the kernels, and by the loop in float32; or by one of the `kinds`.

    The noise decides every draw by itself, so that rounding changes none.
    """
    given, noise, is_first, weights, grads = make_scan(sizes, steps, rows, device)
    found = []
    for teams in kinds:
        monkeypatch.setattr(block_scan, "team", choose if teams else lambda *_: None)
        deter, stoch, moved, seen = given
        aside = Aside(noise.device, "weights")
        with aside:
            prepared = ready(moved, noise, is_first, weights, bf16 and teams, aside)
        outputs = scan(deter, stoch, seen, unimix, 1e-4, prepared)
        value = sum((x * g).sum() for x, g in zip(outputs, grads, strict=True))
        found.append((*outputs, *torch.autograd.grad(value, (*given, *weights))))
    return found


def choose(deter, noise, w, bf16):
    """Teams on any device."""
    how = block_scan.kernels.launch(block_scan.sizes_of(noise, w), deter.device, bf16)
    assert how is not None
    return how


def make_scan(
    sizes: Sizes, steps: int, rows: int, device: str
) -> tuple[list[Tensor], Tensor, Tensor, BlockWeights, list[Tensor]]:
    """Inputs, noise, first frames, weights, and gradients of the outputs; nothing is saturated, nothing is zero."""
    torch.manual_seed(rows)
    d, g, h, k, c = sizes
    x, z = d // g, k * c

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, device=device)).requires_grad_()

    def layer(outputs: int, inputs: int) -> Tensor:
        return draw(outputs, inputs, scale=inputs**-0.5)

    def gain(size: int) -> Tensor:
        return (torch.rand(size, device=device) + 0.5).requires_grad_()

    weights = BlockWeights(
        layer(h, d), draw(h), gain(h), layer(h, z), draw(h), gain(h),
        draw(g, x + 3 * h, x, scale=x**-0.5)[:, :x], layer(d, 3 * h), draw(g, 1, x), gain(d),
        draw(g, x, 3 * x, scale=x**-0.5), draw(g, 1, 3 * x), layer(h, d + 24)[:, :d], gain(h), layer(z, h), draw(z),
    )  # fmt: skip
    given = [draw(rows, d), draw(rows, z), draw(steps, rows, h), draw(steps, rows, h)]
    noise = 1e3 * torch.randn(steps, rows, k, c, device=device)
    is_first = torch.rand(steps, rows, device=device) < 0.2
    is_first[-1, 0], is_first[-1, -1] = True, False
    return given, noise, is_first, weights, [draw(steps, rows, d), draw(steps, rows, z), draw(steps, rows, k, c)]
