"""Frames per second of processes that only step and render cheetah-run: the ceiling of collecting.

    python -m benchmarks.rendering --processes 8 [--quality full] [--seconds 3]

Random actions, no agent. Every process starts counting when all are ready. The sum is printed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.together import report, total_rate, wait_for_start
from dreamer_mpc.envs import choose_gl_backend, make_env


def work(args: argparse.Namespace, folder: Path, name: str) -> None:
    """One process: step until the time is over; writes its rate to `folder`."""
    env = make_env(args.env, action_repeat=args.action_repeat, render_quality=args.quality)
    env.action_space.seed(0)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    wait_for_start(folder, name)
    start, frames = time.perf_counter(), 0
    while time.perf_counter() < start + args.seconds:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        frames += 1
        if terminated or truncated:
            env.reset()
    report(folder, name, frames / (time.perf_counter() - start))


def frames_per_s(argv: Sequence[str], processes: int) -> float:
    """Frames per second of all processes, with the OpenGL backend in MUJOCO_GL."""
    return total_rate("benchmarks.rendering", argv, processes)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="cheetah-run")
    parser.add_argument("--action-repeat", type=int, default=2)
    parser.add_argument("--quality", default="full")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args, Path(args.worker[0]), args.worker[1])
    else:
        if ":" not in args.env:
            choose_gl_backend()  # the processes inherit the choice
        print(f"{frames_per_s(argv, args.processes):.1f} frames/s")


if __name__ == "__main__":
    main()
