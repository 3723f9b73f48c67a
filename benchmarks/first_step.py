"""Time one update, one policy action and one Dream-MPC plan at the paper's sizes: median of 50, batch 1.

    python benchmarks/first_step.py [--device cuda] [--repeats 50]

Prints a table, and with --out writes the same as JSON with hardware and versions.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.planners import make_planner
from dreamer_mpc.util.device import choose_device, device_name
from dreamer_mpc.world_model import Batch

ACTION_DIM = 6  # cheetah-run


def random_batch(device: torch.device, length: int = 50, batch_size: int = 50) -> Batch:
    """A batch of the paper's size."""
    is_first = torch.zeros(length, batch_size, dtype=torch.bool, device=device)
    return Batch(
        torch.randint(0, 256, (length, batch_size, 64, 64, 3), dtype=torch.uint8, device=device),
        torch.rand(length, batch_size, ACTION_DIM, device=device) * 2 - 1,
        torch.rand(length, batch_size, device=device),
        is_first,
        torch.zeros_like(is_first),
        torch.arange(length * batch_size, device=device).view(length, batch_size),
    )


def median_ms(function, device: torch.device, repeats: int, warmup: int = 5) -> float:
    """Median wall time of a call, with synchronisation."""
    times = []
    for _ in range(warmup + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[warmup:])


def measure(device: torch.device, capture: bool, bf16: bool, repeats: int, update_repeats: int) -> dict[str, float]:
    """ms of each, with or without CUDA graphs and bf16."""
    torch.manual_seed(0)
    agent = Dreamer(ACTION_DIM, device=device, capture=capture, bf16=bf16)
    batch = random_batch(device)
    result = {"update": median_ms(lambda: agent.update(batch), device, update_repeats, warmup=min(5, update_repeats))}
    image, first = batch.image[0, :1], torch.zeros(1, dtype=torch.bool, device=device)
    for name in ("policy", "dream-mpc"):
        planner, carry = make_planner(name), agent.initial(1)
        for _ in range(2):
            carry = agent.act(planner, carry, image, first).carry
        result[f"{name} action"] = median_ms(lambda: agent.act(planner, carry, image, first), device, repeats)  # noqa: B023
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--update-repeats", type=int, help="default: --repeats")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    settings = {"captured, bf16": (True, True), "captured, fp32": (True, False), "eager, fp32": (False, False)}
    if device.type == "cpu":
        settings = {"eager, fp32": (False, False)}
    record = {"device": device_name(device), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "ms": {}}
    for name, (capture, bf16) in settings.items():
        record["ms"][name] = measure(device, capture, bf16, args.repeats, args.update_repeats or args.repeats)
        print(name, {key: round(value, 2) for key, value in record["ms"][name].items()}, flush=True)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
