"""Scenes, and the images that a CPU made of them, in tests/data/warp.npz.

    python -m tests.support.drawings

writes the file again, after a deliberate change of what is drawn.
"""

from pathlib import Path

import numpy as np
import torch

from dreamer_mpc.envs import make_vector_env

FILE = Path(__file__).resolve().parent.parent / "data" / "warp.npz"
TASKS = ("cheetah-run", "finger-turn_hard", "quadruped-fetch")


def stored(task):
    """float32 [B, F], uint8 [B, H, W, 3]."""
    with np.load(FILE) as file:
        return file[f"{task} scenes"], file[f"{task} images"]


def drawing(task, scenes, device):
    """The images of scenes, drawn on `device`."""
    from dreamer_mpc.rendering.renderer import Renderer

    rows = make_vector_env(task, 1, workers=False, render_quality="warp")
    renderer = Renderer(rows.stage(), len(scenes), 64, device)
    rows.close()
    return renderer.draw(scenes)


def main():
    """Write the file."""
    arrays = {}
    for task in TASKS:
        rows, rng = make_vector_env(task, 1, workers=False, render_quality="warp"), np.random.default_rng(0)
        scenes = [rows.reset(seed=0)[0]]
        for _ in range(2):
            scenes.append(rows.step(rng.uniform(-1, 1, (1, *rows.single_action_space.shape)).astype(np.float32))[0])
        rows.close()
        arrays[f"{task} scenes"] = np.concatenate(scenes)
        images = drawing(task, arrays[f"{task} scenes"], torch.device("cpu"))
        arrays[f"{task} images"] = images.numpy()
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
