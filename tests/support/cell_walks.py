"""Rollouts by the cell's kernels and by its loop in torch, on the same numbers."""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamer_mpc.kernels import cell
from dreamer_mpc.networks import Actor

KINDS = ("observe", "rollout", "policy", "policy alone", "policy's mode")


class Sizes(NamedTuple):
    """Sizes of the layers, by default those of the paper."""

    deter: int = 200
    stoch: int = 30
    hidden: int = 200
    action: int = 6
    units: int = 200
    layers: int = 4


class Walk(NamedTuple):
    """The inputs of a rollout: with the posterior's inputs, with given actions, or with the policy in the loop."""

    weights: cell.Cell
    state: Tensor
    action: Tensor | cell.Acting
    add: Tensor
    noise: Tensor
    keep: Tensor | None
    grads: list[Tensor]  # of deter and stoch; with observations also of stats


def walk_both(kind, rows, monkeypatch, bf16=False, steps=7, sizes=Sizes(), device="cpu"):
    """Actions, trace and gradients by the Triton kernels, and by the loop; both go back through the kernels' states."""
    walk = make_walk(kind, rows, steps, sizes, device)
    inputs, found, trace = walk[1:-1], [], None
    for kernels in (True, False):
        monkeypatch.setattr(cell, "_on_gpu", lambda *_, kernels=kernels: kernels)
        with torch.no_grad():
            with torch.enable_grad():
                given = cell.products(walk.weights, bf16) if kind == "observe" else None
            taken, walked = cell.unroll(walk.weights, *inputs, 0.1, bf16=bf16, given=given)
            trace = trace or walked
            deltas = cell._backward(walk.weights, trace, walk.noise, walk.keep, *walk.grads, bf16=bf16, given=given)
            acted, light = cell.unroll(walk.weights, *inputs, 0.1, save=False, bf16=bf16)
        wanted = deltas if kind == "observe" else deltas[:3]
        found.append((taken, *walked, *wanted, acted, light.deter, light.stoch))
    return found


def make_walk(kind, rows, steps, sizes, device) -> Walk:
    """Random numbers at a scale where gates and policy are not saturated."""
    torch.manual_seed(rows)
    d, z, x, a = sizes[:4]
    draw = lambda *shape: 0.3 * torch.randn(*shape, device=device)  # noqa: E731
    layer = lambda outputs, inputs: 3 * inputs**-0.5 * draw(outputs, inputs)  # noqa: E731
    weights = cell.Cell(
        draw(x, z + a), draw(x), layer(3 * d, x), draw(3 * d), layer(3 * d, d), draw(3 * d),
        layer(x, d + 24)[:, :d], layer(2 * z, x), draw(2 * z),
    )  # fmt: skip
    state, noise, action = draw(rows, d + z), 3 * draw(steps, rows, z), draw(steps, rows, a).clamp(-1, 1)
    grads = [draw(steps, rows, d), draw(steps, rows, z)]
    if kind == "observe":
        keep = (torch.rand(steps, rows, device=device) > 0.2).float()
        return Walk(weights, state, action, draw(steps, rows, x), noise, keep, [*grads, draw(steps, rows, 2 * z)])
    if kind.startswith("policy"):
        mode = kind == "policy's mode"
        std = 0.3 if mode else 5.0  # a wide Gaussian has two modes, and rounding decides between them
        actor = Actor(d + z, a, sizes.layers, sizes.units, init_std=std).to(device)
        weight = torch.rand(steps, rows, device=device)
        blend = () if kind == "policy alone" else (4 * action, weight)  # some actions exceed the bounds
        action = cell.Acting(actor.weights(), None if mode else torch.randn_like(action), *blend)
    return Walk(weights, state, action, draw(x), noise, None, grads)


def assert_near(found, expected, tolerance):
    """Relative distance of each tensor; a tensor of zeros must be zero in both."""
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        distance = ((x - y).norm() / y.norm().clamp_min(1e-12)).item()
        assert distance < tolerance, f"tensor {i}: {distance}"
