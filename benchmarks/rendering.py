"""Frames per second of rendering without an agent: the ceiling of collecting.

    python -m benchmarks.rendering --processes 1 4 8 16 [--quality full] [--seconds 3]
    python -m benchmarks.rendering --num-envs 1 4 8 16 32 --quality full warp [--device auto] [--seconds 3] [--out FILE]

Random actions in cheetah-run. With `--processes`, processes that step, render and wait for nothing; every one starts
counting when all are ready, and the sum is printed. With `--num-envs`, rows of environments in workers that wait for
each other in every step, as in training; a step ends when its images are on `--device`. `drawing alone`: scenes that
are there already, drawn by warp again and again. With CUDA the device is waited for once for each step.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.together import report, total_rate, wait_for_start
from dreamer_mpc.envs import choose_gl_backend, make_env
from dreamer_mpc.envs.scene import WARP


def work(args: argparse.Namespace, folder: Path, name: str) -> None:
    """One process: step until the time is over; writes its rate to `folder`."""
    env = make_env(args.env, action_repeat=args.action_repeat, render_quality=args.quality[0])
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


def _rate(step: Callable[[], None], seconds: float, warm_up: int = 5) -> float:
    """Calls per second, after `warm_up` calls."""
    for _ in range(warm_up):
        step()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        step()
        calls += 1
    return calls / (time.perf_counter() - start)


def rows_per_s(env: str, quality: str, num_envs: int, device: str, seconds: float, action_repeat: int = 2) -> float:
    """Frames per second of `num_envs` environments in workers that wait for each other in every step."""
    import numpy as np
    import torch

    from dreamer_mpc.config import Config
    from dreamer_mpc.config.make import make_envs
    from dreamer_mpc.util.device import choose_device, images_on

    chosen = choose_device(device)
    config = Config(env=env, num_envs=num_envs, render_quality=quality, action_repeat=action_repeat)
    envs, rng = make_envs(config, num_envs, chosen), np.random.default_rng(0)

    def step() -> None:
        actions = rng.uniform(-1, 1, (num_envs, *envs.single_action_space.shape)).astype(np.float32)
        images, _, terminated, truncated, _ = envs.step(actions)
        images_on(images, chosen)
        if chosen.type == "cuda":
            torch.cuda.synchronize(chosen)
        if (terminated | truncated).any():
            envs.reset(options={"reset_mask": terminated | truncated})

    try:
        envs.reset(seed=0)
        return num_envs * _rate(step, seconds)
    finally:
        envs.close()


def drawn_per_s(env: str, num_envs: int, device: str, seconds: float) -> float:
    """Frames per second of drawing the scenes of `num_envs` environments again and again."""
    import torch

    from dreamer_mpc.envs import make_vector_env
    from dreamer_mpc.rendering.renderer import Renderer
    from dreamer_mpc.util.device import choose_device

    chosen, rows = choose_device(device), make_vector_env(env, num_envs, workers=False, render_quality=WARP)
    scenes, _ = rows.reset(seed=0)
    renderer = Renderer(rows.stage(), num_envs, 64, chosen)
    rows.close()

    def step() -> None:
        renderer.draw(scenes)
        if chosen.type == "cuda":
            torch.cuda.synchronize(chosen)

    return num_envs * _rate(step, seconds)


def rows(args: argparse.Namespace) -> list[dict]:
    """Frames per second of every number of environments and quality; in words where a quality cannot be drawn here."""
    from dreamer_mpc.envs import EnvError
    from dreamer_mpc.envs.scene import check_installed
    from dreamer_mpc.util.errors import in_one_line

    found = []
    for num_envs in args.num_envs:
        for quality in args.quality:
            found.append(row := {"num_envs": num_envs, "quality": quality, "frames_per_s": None})
            try:
                if quality == WARP:
                    check_installed()
                row["frames_per_s"] = rows_per_s(
                    args.env, quality, num_envs, args.device, args.seconds, args.action_repeat
                )
                if quality == WARP:
                    row["drawing_alone"] = drawn_per_s(args.env, num_envs, args.device, args.seconds)
            except Exception as error:  # whatever a driver or a renderer raises, the other rows are measured
                row["text"] = f"skipped: {error if isinstance(error, EnvError) else in_one_line(error)}"
            rate = row["frames_per_s"]
            text = row.get("text") or f"{rate:.1f} frames/s"
            text += f", drawing alone {row['drawing_alone']:.1f}" if "drawing_alone" in row else ""
            print(f"{num_envs:3d} environments, {quality:14}{text}", flush=True)
    return found


def write(args: argparse.Namespace, found: list[dict]) -> None:
    """The rows, with machine and versions, as JSON."""
    from benchmarks import common
    from dreamer_mpc.util.device import choose_device

    device = choose_device(args.device)
    common.write(args.out, {"benchmark": "rendering", **common.describe(device), "env": args.env, "rows": found})


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure and print; the rows of `--num-envs`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="cheetah-run")
    parser.add_argument("--action-repeat", type=int, default=2)
    parser.add_argument("--quality", nargs="+", default=["full"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--processes", nargs="+", type=int, default=[])
    parser.add_argument("--num-envs", nargs="+", type=int, default=[])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write, of the rows of --num-envs")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args, Path(args.worker[0]), args.worker[1])
        return []
    alone = args.processes or not args.num_envs
    if alone and (len(args.quality) > 1 or WARP in args.quality):
        parser.error("--processes takes one --quality, and not warp, which draws for all: give --num-envs")
    if ":" not in args.env:
        choose_gl_backend()  # the processes inherit the choice
    for processes in args.processes or ([] if args.num_envs else [1]):
        print(f"{processes} processes, {args.quality[0]}: {frames_per_s(argv, processes):.1f} frames/s", flush=True)
    found = rows(args)
    if args.out:
        write(args, found)
    return found


if __name__ == "__main__":
    main()
