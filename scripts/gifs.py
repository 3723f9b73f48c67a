"""Draw README's GIFs, of the agents that are named: `python -m scripts.gifs pretrained/cheetah-run ...`

An agent plays `WARM_UP` steps with Dream-MPC and then `STEPS` more. From the state before these, the world model
imagines the same actions without seeing an image. Left: the environment's own render; right: the decoded imagination.
"""

import sys
from pathlib import Path

import cv2
import imageio
import numpy as np

import dreamer_mpc
from dreamer_mpc.envs.view import facts_of, view_of

WARM_UP, STEPS, SIDE, SECONDS = 100, 50, 128, 2.5


def draw(checkpoint: str, path: Path) -> str:
    """Write the GIF of a checkpoint; returns a line about it."""
    agent = dreamer_mpc.load(checkpoint)
    env, player = agent.make_env(), agent.player("dream-mpc-cpu", seed=0)
    image, _ = env.reset(seed=0)
    for _ in range(WARM_UP):
        image, *_ = env.step(player(image))
    states, taken, real = [], [], []
    for _ in range(STEPS):
        taken.append(player(image))
        states.append(player.state)
        image, *_ = env.step(taken[-1])
        real.append(view_of(env))
    dreamed = agent.decode(agent.imagine(states[0], np.stack(taken)).states)  # uint8 [STEPS, 64, 64, 3]
    frames = [np.concatenate([sized(left), sized(right)], axis=1) for left, right in zip(real, dreamed, strict=True)]
    imageio.mimsave(path, frames, duration=1000 * SECONDS / STEPS, loop=0, subrectangles=True)
    simulated = STEPS / facts_of(env).steps_per_s
    env.close()
    return f"{path}: {path.stat().st_size / 1e6:.2f} MB, {simulated:.2f} s of the simulator in {SECONDS} s"


def sized(frame: np.ndarray) -> np.ndarray:
    """The square in the middle of a frame, `SIDE` pixels a side."""
    height, width = frame.shape[:2]
    side, top, left = min(height, width), (height - min(height, width)) // 2, (width - min(height, width)) // 2
    square = frame[top : top + side, left : left + side]
    way = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    return cv2.resize(square, (SIDE, SIDE), interpolation=way)


if __name__ == "__main__":
    for checkpoint in sys.argv[1:]:
        print(draw(checkpoint, Path("docs/images") / f"{Path(checkpoint).name}.gif"))
