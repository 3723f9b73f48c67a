"""Agent steps per second of collecting cheetah-run (action repeat 2), with random actions and with a planner.

    python -m benchmarks.collect [--num-envs 1 4 8 12 16] [--qualities full fast] [--device cuda] [--out collect.json]

A step is planning in one batch, stepping and rendering in workers, and storing in replay; there are no updates. The
ceiling is the rate of the same number of processes that render without an agent and wait for nothing (`rendering.py`);
with the quality `warp`, of as many environments that are drawn together.
"""

# Imports of torch are inside the functions: the environments' workers import this module, and should start fast.
import os
import time
from collections.abc import Sequence
from typing import Any


def measure(config, num_envs: int, planners: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Agent steps per second with each of `planners` (`random`: no planner), on the same environments."""
    from dreamer_mpc.config import planner_from
    from dreamer_mpc.config.make import make_agent, make_envs
    from dreamer_mpc.data.collect import Collector, Counters
    from dreamer_mpc.data.replay import Replay
    from dreamer_mpc.kernels.graphs import WARMUP_CALLS
    from dreamer_mpc.util.device import choose_device

    device = choose_device(config.device)
    start = time.perf_counter()
    envs = make_envs(config, num_envs, device)
    try:
        action_dim = envs.single_action_space.shape[0]
        agent, counters = make_agent(config, action_dim, device), Counters()
        replay = Replay(1000 * num_envs, action_dim, num_envs, device=device)
        collector = Collector(envs, agent, replay, counters, seed=0)
        set_up, rows = time.perf_counter() - start, []
        for name in planners:
            planner = None if name == "random" else planner_from(config, name)
            ahead = (WARMUP_CALLS + 2) * num_envs * config.action_repeat
            collector.collect(counters.env_steps + ahead, planner, config.train.action_noise)
            before, start = counters.agent_steps, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                collector.collect(counters.env_steps + 1, planner, config.train.action_noise)
            rate = (counters.agent_steps - before) / elapsed
            rows.append({"planner": name, "agent_steps_per_s": rate, "set_up_s": set_up})
        return rows
    finally:
        envs.close()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    from dataclasses import replace

    from benchmarks import common, rendering
    from dreamer_mpc.envs import RENDER_QUALITIES, choose_gl_backend, match_egl_device
    from dreamer_mpc.envs.scene import WARP
    from dreamer_mpc.planners import PLANNERS
    from dreamer_mpc.util.device import choose_device

    cores = len(os.sched_getaffinity(0))
    parser = common.parser(__doc__)
    parser.set_defaults(seconds=3.0)
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1, 4, 8, 12, 16], help="those up to the cores")
    parser.add_argument("--qualities", nargs="+", choices=tuple(RENDER_QUALITIES), default=["full", "fast"])
    parser.add_argument("--planners", nargs="+", choices=("random", *PLANNERS), default=["random", "dream-mpc"])
    args, rest = parser.parse_known_args(argv)
    config = replace(common.parse_settings(rest), agent="dreamer")
    device = choose_device(config.device)
    if ":" not in config.env:
        choose_gl_backend()
        if device.type == "cuda":
            match_egl_device(device.index)
    rows = []
    for quality in args.qualities:
        numbers = [n for n in args.num_envs if n <= max(cores, 1)]
        asked = ["--env", config.env, "--action-repeat", str(config.action_repeat), "--quality", quality]
        if quality == WARP:  # one renderer for all: they wait for each other
            rest = (config.device, args.seconds, config.action_repeat)
            ceiling = rendering.rows_per_s(config.env, quality, max(numbers), *rest)
        else:
            ceiling = rendering.frames_per_s([*asked, "--seconds", str(args.seconds)], max(numbers))
        rows.append({"quality": quality, "num_envs": max(numbers), "planner": "no agent", "agent_steps_per_s": ceiling})
        for num_envs in numbers:
            chosen = replace(config, num_envs=num_envs, render_quality=quality)
            for row in measure(chosen, num_envs, args.planners, args.seconds):
                row |= {"quality": quality, "num_envs": num_envs, "share": row["agent_steps_per_s"] / ceiling}
                rows.append(row)
                print(f"{quality}, {num_envs} environments, {row['planner']}: "
                      f"{row['agent_steps_per_s']:.0f} agent steps/s", flush=True)  # fmt: skip
    record = {"benchmark": "collect", **common.describe(device), "env": config.env, "rows": rows}
    columns = {"quality": "rendering", "num_envs": "environments", "planner": "acted by"}
    columns |= {"agent_steps_per_s": "agent steps/s", "share": "share of the ceiling", "set_up_s": "set-up, s"}
    footer = "roofline: the ceiling is 'no agent', frames/s of processes that wait for nobody; a step is one frame"
    common.print_table(f"Collecting {config.env}: {record['device']}, {cores} cores", columns, rows, footer)
    common.write(args.out, record)
    return record


if __name__ == "__main__":
    main()
