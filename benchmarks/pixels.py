"""The effect of the render qualities on the agent's images, and the cost of a frame.

    python -m benchmarks.pixels [--envs cheetah-run walker-run hopper-hop acrobot-swingup] [--frames 60]
        [--qualities small-shadows fast warp] [--pictures FOLDER]

One process, on the CPU, with the same seeded random actions for every quality. `changed`: values whose upper five bits
(input of the world model) differ from those of `full`. `ms`: a step with its frame. `all` names every task.
`--pictures` writes a PNG for each task and quality: full, the quality, and their difference.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dreamer_mpc.config import Config
from dreamer_mpc.config.make import make_envs
from dreamer_mpc.envs import RENDER_QUALITIES, EnvError, list_tasks
from dreamer_mpc.envs.scene import WARP
from dreamer_mpc.util.device import images_on_host

SHOWN = 4  # frames of a picture


def frames(env_name: str, quality: str, count: int) -> tuple[np.ndarray, float]:
    """uint8 [count + 1, H, W, C], the first steps of one episode, and milliseconds per step."""
    env = make_envs(Config(env=env_name, render_quality=quality, num_envs=1), 1, torch.device("cpu"))
    shape = (count, 1, *env.single_action_space.shape)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    images = [env.reset(seed=0)[0]]
    start = time.perf_counter()
    images += [env.step(action)[0] for action in actions]
    elapsed = time.perf_counter() - start
    env.close()
    return np.concatenate([images_on_host(image) for image in images]), 1e3 * elapsed / count


def picture(path: Path, full: np.ndarray, images: np.ndarray) -> None:
    """Three rows of `SHOWN` frames, enlarged: full, the other quality, and their absolute difference."""
    import imageio.v3

    shown = np.linspace(0, len(full) - 1, SHOWN).astype(int)
    difference = np.abs(full.astype(int) - images).astype(np.uint8)
    rows = [np.concatenate(list(each[shown]), axis=1) for each in (full, images, difference)]
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.v3.imwrite(path, np.concatenate(rows).repeat(3, axis=0).repeat(3, axis=1))


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["cheetah-run", "walker-run", "hopper-hop", "acrobot-swingup"])
    parser.add_argument("--frames", type=int, default=60)
    own = [quality for quality in RENDER_QUALITIES if quality != WARP]
    parser.add_argument("--qualities", nargs="+", choices=tuple(RENDER_QUALITIES), default=own)
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args(argv)
    rows = []
    print(f"{'env':24}{'quality':16}{'ms':>7}{'mean |difference|':>20}{'changed':>10}")
    for env in list_tasks() if args.envs == ["all"] else args.envs:
        full, _ = frames(env, "full", args.frames)  # measured again below: any difference is due to the quality
        for quality in args.qualities:
            try:
                images, ms = frames(env, quality, args.frames)
            except EnvError as error:
                print(f"{env:24}{error}")
                continue
            if args.pictures:
                picture(args.pictures / f"{env}-{quality}.png", full, images)
            difference = np.abs(images.astype(int) - full).mean()
            changed = (images >> 3 != full >> 3).mean()
            rows.append({"env": env, "quality": quality, "ms": ms, "difference": difference, "changed": changed})
            print(f"{env:24}{quality:16}{ms:7.2f}{difference:15.4f}/255{changed:10.3%}", flush=True)
    return rows


if __name__ == "__main__":
    main()
