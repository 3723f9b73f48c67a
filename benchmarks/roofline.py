"""Rooflines: counts of operations and bytes, and their time at the ceilings that `ceilings.py` measures.

FLOPs are those of matrix products and convolutions, counted by torch on the plain reference (`kernels off`); a
multiplication and an addition count as two. Bytes are the least memory traffic of a perfect implementation, by the
formulas below. The floor is the larger of the two times, because they can overlap.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import common
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.config import Config
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.planners import Planner
from dreamer_mpc.planners.ascent import Ascent
from dreamer_mpc.world_model import WorldModelConfig

CPU = torch.device("cpu")
IMAGE = 64 * 64 * 3


class _Counter(TorchDispatchMode):
    """torch's FLOP formulas, without the module hooks of its FlopCounterMode, which fail under no_grad."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of matrix products and convolutions in a call, its backward passes included."""
    with _Counter() as counter:
        function()
    return counter.flops


def reference(config: Config) -> Dreamer:
    """The plain agent on the CPU, eager."""
    plain = replace(config, kernels="off", compile="off", precision="fp32")
    return make_agent(plain, common.ACTION_DIM, CPU)


def update_flops(config: Config) -> int:
    """FLOPs of an update. They are proportional to the number of sequences, so one sequence is counted."""
    one = replace(config, replay=replace(config.replay, batch_size=1))
    agent, batch = reference(one), common.random_batch(one, CPU)
    return count_flops(lambda: agent.update(batch)) * config.replay.batch_size


def update_bytes(config: Config, bf16: bool) -> int:
    """Fewest bytes of an update.

    Every pixel is read once (uint8). Every activation that a backward pass needs is written once and read once, in 2
    bytes with `bf16`, else in 4: layers' outputs, the dequantised image, the error of the decoded one. A parameter (4
    bytes) is read forward and backward; its gradient is written and read; the optimizer reads and writes two moments
    and writes the parameter: 9 accesses.
    """
    world, behavior = config.world_model, config.behavior
    frames = config.replay.sequence_length * config.replay.batch_size
    rows = frames * behavior.horizon  # imagined states
    reward = world.reward_layers * world.reward_hidden
    stoch = world.stoch * (world.classes if world.kind == "categorical" else 1)
    frame = image_numbers(world) + step_numbers(world) + world.hidden + 2 * stoch + reward
    row = step_numbers(world) + behavior.actor_layers * behavior.actor_hidden + reward
    row += behavior.value_heads * behavior.value_layers * behavior.value_hidden
    kept = frames * frame + rows * row
    parameters = sum(p.numel() for p in reference(config).model.parameters())
    return frames * IMAGE + 2 * kept * (2 if bf16 else 4) + 9 * 4 * parameters


def image_numbers(world: WorldModelConfig) -> int:
    """Numbers stored per frame by encoder and decoder: the input image, every layer's output, the error at the end."""
    if world.kind == "categorical":
        return _normed_image_numbers(world)
    side, numbers = 64, IMAGE
    for channels in world.encoder_channels:
        side = (side - 4) // 2 + 1
        numbers += side * side * channels
    side, numbers = 1, numbers + world.decoder_dense
    for channels, kernel in zip((*world.decoder_channels, 3), (5, 5, 6, 6), strict=True):
        side = 2 * (side - 1) + kernel
        numbers += side * side * channels
    return numbers


def _normed_image_numbers(world: WorldModelConfig) -> int:
    """The same for DreamerV3's: a convolution's output, at full size before max-pooling, and its norm's."""
    side, numbers = 64, IMAGE
    for channels in world.encoder_channels:
        half = side // 2
        numbers += ((side if world.downsampling == "max-pool" else half) ** 2 + half**2) * channels
        side = half
    numbers += 2 * world.decoder_dense
    for channels in (*world.decoder_channels, 3):
        side *= 2
        numbers += 2 * side**2 * channels
    return numbers


def step_numbers(world: WorldModelConfig) -> int:
    """Numbers stored per step of the recurrent cell.

    The paper's: deter and four gates, stoch and two statistics, two layers. DreamerV3's: deter, its hidden layer before
    and after its norm, three gates; the layers of deter, stoch and action likewise, the prior's two, logits and sample.
    """
    if world.kind == "categorical":
        return 6 * world.deter + 9 * world.hidden + 2 * world.stoch * world.classes
    return 5 * world.deter + 3 * world.stoch + 2 * world.hidden


def step_modules(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that one step without an image reads, the reward head included."""
    world, rssm = model.world_model, model.world_model.rssm
    if world.kind == "categorical":
        inputs = [rssm.deter_input, rssm.stoch_input, rssm.action_input]
        return [*inputs, rssm.hidden, rssm.hidden_norm, rssm.gates, rssm.prior_logits, world.reward_head]
    return [rssm.input, rssm.cell, rssm.prior_hidden, rssm.prior_out, world.reward_head]


def plan_flops(config: Config, planner: Planner) -> int:
    """FLOPs of a plan for one environment in mid-episode. Each iteration after the second costs the same."""
    agent = reference(config)
    state = agent.initial(1).state + 0.1

    def count(planner: Planner) -> int:
        memory = planner.plan(agent.model, state, None).memory
        return count_flops(lambda: planner.plan(agent.model, state, memory))

    iterations = getattr(planner, "iterations", 1)
    if iterations < 3:
        return count(planner)
    first, second = (count(replace(planner, iterations=i)) for i in (1, 2))
    return first + (iterations - 1) * (second - first)


def plan_bytes(config: Config, planner: Planner, batch: int, bf16: bool) -> int:
    """Fewest bytes of a plan: its weights once (4 bytes), and the tensors stored for a gradient twice.

    Those are the cell's numbers for every step of the model, in 2 bytes with `bf16`, else in 4. A planner without a
    gradient can keep its candidates on the chip.
    """
    model, world = reference(config).model, config.world_model
    used = {"policy": "actor", "value": "critic"}
    parts = [getattr(model, used[name]) for name in planner.requires]
    steps = getattr(planner, "model_evaluations", 0)
    if steps:
        parts += step_modules(model)
    weights = sum(p.numel() for part in parts for p in part.parameters())
    kept = batch * steps * step_numbers(world) if isinstance(planner, Ascent) else 0
    return 4 * weights + 2 * kept * (2 if bf16 else 4)


def floor(flops: int, moved: int, ceilings: dict[str, float], rate: str) -> dict[str, float]:
    """The counts, and their time in ms at the ceilings; `rate` is the ceiling of products: bf16, tf32 or fp32."""
    compute, memory = flops / ceilings[f"{rate}_tflops"] / 1e9, moved / ceilings["copy_gb_s"] / 1e6
    return {"flops": flops, "bytes": moved, "flops_ms": compute, "bytes_ms": memory, "floor_ms": max(compute, memory)}


def rate_of(config: Config, device: torch.device) -> str:
    """The unit that does most of the products with the fast settings."""
    return "fp32" if device.type == "cpu" else "bf16" if config.precision == "bf16" else "tf32"


def line(found: dict[str, float], measured_ms: float, rate: str) -> str:
    """The roofline as words."""
    return (
        f"roofline: {found['flops'] / 1e9:,.3g} GFLOP = {found['flops_ms']:.3g} ms at the {rate} ceiling, "
        f"{found['bytes'] / 1e6:,.3g} MB = {found['bytes_ms']:.3g} ms at the copy ceiling; "
        f"the larger is the floor, {found['floor_ms'] / measured_ms:.1%} of the time measured"
    )
