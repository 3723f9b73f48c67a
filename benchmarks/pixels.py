"""The effect of the render qualities on the agent's images, and the cost of a frame.

    python -m benchmarks.pixels [--envs cheetah-run walker-run hopper-hop acrobot-swingup] [--frames 60]

One process, with the same seeded random actions for every quality. `changed`: values whose upper five bits (input of
the world model) differ from those of `full`. `ms`: a step with its frame.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from dreamer_mpc.envs import RENDER_QUALITIES, make_env


def frames(env_name: str, quality: str, count: int) -> tuple[np.ndarray, float]:
    """uint8 [count + 1, H, W, C], the first steps of one episode, and milliseconds per step."""
    env = make_env(env_name, render_quality=quality)
    actions = np.random.default_rng(0).uniform(-1, 1, (count, *env.action_space.shape)).astype(np.float32)
    images = [env.reset(seed=0)[0]]
    start = time.perf_counter()
    images += [env.step(action)[0] for action in actions]
    elapsed = time.perf_counter() - start
    env.close()
    return np.stack(images), 1e3 * elapsed / count


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["cheetah-run", "walker-run", "hopper-hop", "acrobot-swingup"])
    parser.add_argument("--frames", type=int, default=60)
    args = parser.parse_args(argv)
    rows = []
    print(f"{'env':18}{'quality':16}{'ms':>7}{'mean |difference|':>20}{'changed':>10}")
    for env in args.envs:
        full, _ = frames(env, "full", args.frames)  # measured again below: any difference is due to the quality
        for quality in RENDER_QUALITIES:
            images, ms = frames(env, quality, args.frames)
            difference = np.abs(images.astype(int) - full).mean()
            changed = (images >> 3 != full >> 3).mean()
            rows.append({"env": env, "quality": quality, "ms": ms, "difference": difference, "changed": changed})
            print(f"{env:18}{quality:16}{ms:7.2f}{difference:15.4f}/255{changed:10.3%}")
    return rows


if __name__ == "__main__":
    main()
