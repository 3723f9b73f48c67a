"""Time a plan of every planner, for one environment and for eight.

    python -m benchmarks.plan [--peer CHECKOUT] [--device cuda] [--out plan.json]

plan: `planner.plan(model, state, memory)` alone, on a GPU captured as in acting. act: `agent.act` and the copy of
the action to the host: copies, encoder, posterior, plan. With and without kernels; also the peer's CEM.
On a GPU, a plan of few candidates is hundreds of dependent steps: their latency is the floor, not the roofline.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings, common, peers, roofline
from dreamer_mpc.agents.dreamer import THREADED_ROWS, Dreamer, one_thread
from dreamer_mpc.config import planner_from, planner_presets
from dreamer_mpc.config.make import make_agent
from dreamer_mpc.kernels.graphs import WARMUP_CALLS, Captured
from dreamer_mpc.planners import PLANNERS, Ascent, Planner
from dreamer_mpc.util.device import choose_device

TOO_SLOW = 200_000  # model steps, forward or backward, per call; slower planners run on a CPU only if named


def plan_call(agent: Dreamer, planner: Planner, batch: int) -> Callable[[], Any]:
    """A plan in mid-episode, as a function."""
    state = 0.1 * torch.randn(batch, agent.model.world_model.state_dim, device=agent.device)

    @torch.no_grad()
    def plan(state, memory):
        found = planner.plan(agent.model, state, memory)
        return found.action, found.memory, found.value

    memory = plan(state, None)[1]
    captured = Captured(plan) if agent.capture else plan
    return lambda: captured(state, memory)


def act_call(agent: Dreamer, planner: Planner, batch: int) -> Callable[[], Any]:
    """A step of acting from an image on the host to an action on the host, as a function."""
    image = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8)
    is_first = torch.zeros(batch, dtype=torch.bool)
    carry = agent.act(planner, agent.initial(batch), image.to(agent.device), is_first.to(agent.device)).carry

    def act():
        return agent.act(planner, carry, image.to(agent.device), is_first.to(agent.device)).action.cpu()

    return act


def measure(agent: Dreamer, planner: Planner, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Times of plan and act."""
    device = agent.device
    warmup = WARMUP_CALLS + 2 if device.type == "cuda" else 1
    calls = {"repeats": args.repeats, "seconds": args.seconds, "warmup": warmup}
    act = common.timed(act_call(agent, planner, batch), device, **calls)
    few = batch * getattr(planner, "candidates", 1) < THREADED_ROWS  # as in acting
    with one_thread(device) if few else contextlib.nullcontext():
        plan = common.timed(plan_call(agent, planner, batch), device, **calls)
    return {**plan, "act_ms": act["ms"]}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    parser = common.parser(__doc__)
    names = [*PLANNERS, *planner_presets()]
    parser.add_argument("--planners", nargs="+", choices=names, help="default: all, and two presets")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="environments planned for at once")
    parser.add_argument("--kernels-off", nargs="*", choices=names, default=["dream-mpc", "cem"],
                        help="planners that are also timed without kernels")  # fmt: skip
    parser.add_argument("--peer", type=Path, help="checkout of the peer to time as well, or a JSON of benchmarks.peers")
    args, rest = parser.parse_known_args(argv)
    config = replace(common.parse_settings(rest), agent="dreamer")
    device = choose_device(config.device)
    limits, rate, rows = ceilings.load(args.ceilings, device), roofline.rate_of(config, device), []
    for kernels in ("auto", "off"):
        agent = make_agent(replace(config, kernels=kernels), common.ACTION_DIM, device)
        for name in args.planners or [*PLANNERS, "dream-mpc-paper", "dream-mpc-cpu"]:
            planner = planner_from(config, name)
            if kernels == "off" and name not in args.kernels_off:
                continue
            flops = roofline.plan_flops(config, planner) if kernels == "auto" else None
            for batch in args.batches:
                evaluations = getattr(planner, "model_evaluations", 0)
                steps = evaluations * batch * (3 if isinstance(planner, Ascent) else 1)
                if device.type == "cpu" and steps > TOO_SLOW and args.planners is None:
                    continue
                row = {"planner": name, "kernels": kernels, "batch": batch, "model_evaluations": evaluations}
                row |= measure(agent, planner, batch, args)
                if flops is not None:
                    moved = roofline.plan_bytes(config, planner, batch, rate == "bf16")
                    row["roofline"] = roofline.floor(flops * batch, moved, limits, rate)
                    row["share"] = row["roofline"]["floor_ms"] / row["ms"]
                rows.append(row)
                print(f"{name}, batch {batch}, kernels {kernels}: {common.show(row['ms'])} ms", flush=True)
    if args.peer:
        found = peers.rows(args.peer, "plan", ["--device", config.device], args.seconds, args.repeats)
        rows += [{"planner": row.pop("name"), **row} for row in found]
    record = {"benchmark": "plan", **common.describe(device), "rows": rows}
    columns = {"planner": "planner", "kernels": "kernels", "batch": "batch", "ms": "plan, ms", "p10_ms": "10 %"}
    columns |= {"p90_ms": "90 %", "act_ms": "act, ms", "model_evaluations": "evaluations", "gflop": "GFLOP"}
    columns |= {"mb": "MB", "floor_us": "floor, us", "share": "share"}
    footer = f"roofline: the larger of GFLOP at the {rate} ceiling and MB at the copy ceiling is the floor"
    common.print_table(f"A plan: {record['device']}", columns, [row | _flat(row) for row in rows], footer)
    common.write(args.out, record)
    return record


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """The roofline of a row as columns."""
    found = row.get("roofline")
    if found is None:
        return {}
    return {"gflop": found["flops"] / 1e9, "mb": found["bytes"] / 1e6, "floor_us": 1e3 * found["floor_ms"]}


if __name__ == "__main__":
    main()
